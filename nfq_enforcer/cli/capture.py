"""``nfq-enforcer capture``: dropped packets as they come, in a pcapng file, with the reason and the rule as comment."""

import base64
import os
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from nfq_enforcer import __version__
from nfq_enforcer.agent import client
from nfq_enforcer.captures import pcapng
from nfq_enforcer.captures.comment import describe
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Socket
from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.errors import BadInput, NfqError

_STANDARD_OUTPUT = Path("-")
_SNAPLEN = 128  # bytes: the headers of both layers with all options, a stamp, and little of the payload
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DISSECTOR = "nfq_enforcer.lua"


class CapturedVerdict(StrEnum):
    """Flow verdict of a packet that can be captured."""

    DROPPED = "DROPPED"
    AUDIT = "AUDIT"


def capture(
    write: Annotated[
        Path, typer.Option("--write", "-w", help="The file, which must not exist yet; - is the standard output.")
    ] = _STANDARD_OUTPUT,
    count: Annotated[int | None, typer.Option("--count", "-c", min=1, help="End after N packets.")] = None,
    duration: Annotated[float | None, typer.Option(min=0, help="End after so many seconds.")] = None,
    reasons: Annotated[
        list[DropReason] | None,
        typer.Option(
            "--drop-reason",
            help="Only packets with this drop reason; may be repeated.",
            case_sensitive=False,
            metavar="REASON",
        ),
    ] = None,
    verdicts: Annotated[
        list[CapturedVerdict] | None,
        typer.Option(
            "--verdict",
            help="DROPPED (the default), or AUDIT: packets that audit mode lets pass; may be repeated.",
            case_sensitive=False,
        ),
    ] = None,
    snaplen: Annotated[
        int, typer.Option(min=1, max=65535, help="Bytes of each packet, from the IP header on.")
    ] = _SNAPLEN,
    print_dissector: Annotated[
        bool, typer.Option("--print-dissector", help="Print the dissector for Wireshark and end.")
    ] = False,
    socket: Socket = DEFAULT,
) -> None:
    """Capture dropped packets of this node in a pcapng file, each with the reason and the rule as its comment.

    The file contains the first bytes of each packet, payload included. Only its owner can read it.
    """
    if print_dissector:
        for line in files("nfq_enforcer.captures").joinpath(_DISSECTOR).read_text().splitlines():
            output.line(line)
        return
    options: dict[str, Any] = {"count": count, "duration": duration, "reasons": reasons, "verdicts": verdicts}
    params = {name: value for name, value in options.items() if value is not None}
    with closing(client.stream(socket, "capture", snaplen=snaplen, **params)) as items:
        first = next(items, None)
        if first is None:
            raise NfqError("the agent ended before the capture began")
        try:
            with _open(write) as file:
                _Recording(file, first["begun"]).record(items)
        except BrokenPipeError:  # the reader of the standard output ended it
            return


def _open(path: Path) -> BinaryIO:
    """Open the output; raise BadInput for one that is there already, or for a terminal."""
    if path == _STANDARD_OUTPUT:
        if sys.stdout.isatty():
            raise BadInput("a capture is no text: name a file with --write, or pipe it to 'wireshark -k -i -'")
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    try:
        # A new file: nobody else has it open, and its mode is certain.
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
    except FileExistsError:
        raise BadInput(f"{path} exists: remove it, or choose another name") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None


class _Recording:
    """Recording: the file of one capture, and its counts."""

    def __init__(self, file: BinaryIO, begun: Mapping[str, Any]) -> None:
        self._file = file
        self._node = begun["node"]
        self._packets = 0
        self._lost = 0  # as far as the agent has reported it
        system = os.uname()
        file.write(pcapng.section(f"nfq-enforcer {__version__}", f"{system.sysname} {system.release}"))
        description = f"packets that nfq_enforcer drops on node {self._node}"
        file.write(pcapng.interface(pcapng.LINKTYPE_RAW, begun["snaplen"], "nfq-enforcer", description))
        file.flush()

    def record(self, items: Any) -> None:
        """Write the packets until the capture or the user ends; then write and print the counts."""
        output.note(f"capturing dropped packets on node {self._node}")
        ended = False
        try:
            for item in items:
                ended = self._add(item)
        except KeyboardInterrupt:
            ended = True
        self._end()
        if not ended:
            raise NfqError("the agent ended before the capture did")

    def _add(self, item: Mapping[str, Any]) -> bool:
        """Write a packet, or note a count; return whether the item is the last one."""
        if "packet" in item:
            self._packets += 1
            self._file.write(pcapng.packet(_record(item["packet"])))
            self._file.flush()  # for a reader at the other end of a pipe
            return False
        (counts,) = item.values()
        self._lost = counts["lost"]
        return "ended" in item

    def _end(self) -> None:
        lost = f"{self._lost} packets were dropped by the node and are not in the capture, to limit its rate"
        seen, now = self._packets + self._lost, time.time_ns() // 1000
        self._file.write(pcapng.statistics(now, seen, self._lost, lost if self._lost else "no packet is missing"))
        output.note(f"{self._packets} packets captured{f', {self._lost} more not recorded' if self._lost else ''}")


def _record(packet: Mapping[str, Any]) -> pcapng.Packet:
    """Return the record of a packet of the agent's stream."""
    time_us = (datetime.fromisoformat(packet["flow"]["time"]) - _EPOCH) // timedelta(microseconds=1)
    return pcapng.Packet(time_us, packet["length"], base64.b64decode(packet["data"]), describe(packet))
