"""The same churn under address-based rules: the set entries that a setup without identities changes, and their cost.

Such a setup has an ipset for each peer selector of a policy, and every selected address is an entry of the set. So an
endpoint that starts or stops changes some sets, on every node with a policy that uses one of them.
"""

import resource
import subprocess
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from tests.support.apart import run_apart

_BATCH = 0.1  # seconds; all changes of a batch go into one ipset restore
_FIRST, _LATER = IPv4Address("10.64.0.0"), IPv4Address("10.80.0.0")


class SetUpdates(NamedTuple):
    """SetUpdates: set entries to change each second."""

    node: float  # on the measured node, which has only the sets in policies of its own endpoints
    cluster: float  # on all nodes together


def restore(sets: int, entries: int, rate: float, duration: float) -> float:
    """Return the share of a core that ``ipset restore``, in batches, uses for so many changes a second.

    ``entries`` is the total of entries in all sets at the start; half of the changes add an entry, the other half
    delete the oldest one.
    """
    return run_apart(_restore(sets, entries, rate, duration))


async def _restore(sets: int, entries: int, rate: float, duration: float) -> float:
    names = [f"selector-{number}" for number in range(sets)]
    _run(f"create {name} hash:ip maxelem 1048576" for name in names)
    _run(f"add {names[number % sets]} {_FIRST + number}" for number in range(entries))
    before, begun, done = _child_cpu(), time.perf_counter(), 0
    for batch in range(1, round(duration / _BATCH) + 1):
        due = round(rate * batch * _BATCH / 2)
        _run(_changes(names, range(done, due)))
        done = due
        time.sleep(max(0.0, begun + batch * _BATCH - time.perf_counter()))
    return (_child_cpu() - before) / (time.perf_counter() - begun)


def _changes(names: Sequence[str], numbers: Iterable[int]) -> Iterable[str]:
    for number in numbers:
        name = names[number % len(names)]
        yield f"add {name} {_LATER + number}"
        yield f"del {name} {_LATER + number - len(names)} -exist"


def _run(lines: Iterable[str]) -> None:
    subprocess.run(["ipset", "-exist", "restore"], input="\n".join(lines), text=True, check=True)


def _child_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
