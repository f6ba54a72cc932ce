"""``make test-faults``: every fault under real traffic, and one table of accepted packets and cut flows."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nfq_enforcer.core.modes import FailMode
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import new_run_id
from nfq_enforcer.lab.topology import Topology
from tests.bench import machine
from tests.faults import catalogue
from tests.faults.fault import Fault, limits_of, measure
from tests.faults.rows import HEADINGS, Counts, Row, markdown
from tests.faults.stage import Stage
from tests.support.labs import MODES

_DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
_TIMES = 10
_ABOUT = """\
# Faults under traffic

Written by `make test-faults`, which needs root; `tests/faults` has the faults. The lab has three nodes with one queue
each. Meanwhile frontends hold TCP connections, streams in which only the server sends, and UDP exchanges with backends,
on one node and between nodes, in IPv4 and IPv6, and open new connections. Everything else that the hosts attempt is
forbidden: other endpoints and the world to backends, backends to frontends, and datagrams with a forged stamp. A
forbidden packet counts as accepted if it arrives at the interface of the endpoint that it is for. A flow counts as cut
if it gets no answer within 60 s after the fault (15 s where it may be cut), a new connection as failed if it gets none
within 5 s. The gap is the longest time without a message in a flow that has one every 10 ms; without any fault the
machine's own scheduling causes the gap in the first row.
"""


def main() -> None:
    """Inject the chosen faults, and print the table; the exit status is 1 if a limit was exceeded."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = _options()
    chosen = [fault for fault in catalogue.FAULTS if options.only in fault.name]
    console = Console(width=160)
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    about = f"{datetime.now(UTC).date()}: {machine.sentence(machine.describe())}, {load}"
    console.print(about)
    try:
        tables = {mode: asyncio.run(run(mode, chosen, options, console)) for mode in options.mode or MODES}
    except NfqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit("interrupted; the lab is removed")
    full = not (options.only or options.mode) and options.times >= _TIMES
    if path := options.output or (_DOCUMENT if full else None):
        parts = [f"## Datapath {mode}\n\n{markdown(rows)}" for mode, rows in tables.items()]
        path.write_text("\n".join([_ABOUT, f"{about}.\n", *parts]))
        console.print(f"written to {path}")
    sys.exit(any(row.limits.exceeded(row.counts, row.times) for rows in tables.values() for row in rows))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    options.add_argument("--only", default="", help="only faults whose name contains this text")
    options.add_argument("--mode", choices=MODES, action="append", help="only this datapath; may be repeated")
    options.add_argument("--times", type=int, default=_TIMES, help="injections of each fault")
    options.add_argument(
        "--output", type=Path, help=f"file for the table; default for a full run: docs/{_DOCUMENT.name}"
    )
    return options.parse_args()


async def run(mode: str, faults: Sequence[Fault], options: argparse.Namespace, console: Console) -> list[Row]:
    """Inject faults in labs of this datapath mode, one for each fail mode; print and return their rows."""
    rows: dict[str, Row] = {}
    for fail in FailMode:
        if some := [fault for fault in faults if fault.fail is fail]:
            async with Lab(Topology(new_run_id())) as lab:
                stage = Stage(lab, {"datapath": mode, "queues": 1, "fail": fail.value})
                try:
                    await stage.start()
                    for fault in some:
                        times = min(options.times, fault.times or options.times)
                        rows[fault.name] = await _measure(stage, fault, times, console)
                finally:
                    await stage.stop()
    ordered = [rows[fault.name] for fault in faults]
    _show(console, mode, ordered)
    return ordered


async def _measure(stage: Stage, fault: Fault, times: int, console: Console) -> Row:
    """Inject a fault so often; print and return its row, which is empty after an error."""
    try:
        row = await measure(stage, fault, times)
    except (AssertionError, TimeoutError) as error:  # the other faults are of interest all the same
        console.print(f"{fault.name}: {error!r}")
        row = Row(fault.name, 0, Counts(), limits_of(stage, fault))
    console.print(" | ".join(row.cells()))
    for figures in row.counts.figures:
        console.print(f"  {figures}")
    for sentence in row.limits.exceeded(row.counts, row.times):
        console.print(f"  EXCEEDED: {sentence}")
    return row


def _show(console: Console, mode: str, rows: Sequence[Row]) -> None:
    table = Table(*HEADINGS, title=f"datapath {mode}")
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)


if __name__ == "__main__":
    main()
