"""Ends of flows: the flows that are over, until their end is in the log; bounded.

A TCP flow is over when both sides have sent a FIN, or one side a RST. Its end is reported a little later, with the
packets that still belong to it (the last acknowledgement, for example). Any other flow is over when it leaves the
table: after its time-out, for example.
"""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nfq_enforcer.core.tables.conntrack import Flow

_LINGER = 1.0  # s between the last FIN, or the RST, and the report
_INTERVAL = 1.0  # s
MAX_REPORTED = 2000  # ends in an interval
_MAX_WAITING = 4000
_PACKET = 1 << 48  # a count of packets and bytes is one integer: packets above this bit, bytes below it


class EndCause(StrEnum):
    """Cause of the end of a flow."""

    CLOSED = "closed"  # TCP: both sides have sent a FIN
    RESET = "reset"  # TCP: one side has sent a RST
    EXPIRED = "expired"  # no packet came before its time-out
    EVICTED = "evicted"  # the table was full
    REPLACED = "replaced"  # another flow with the same addresses and ports was opened
    FLUSHED = "flushed"  # the table was flushed (``conntrack flush``) before both ends had sent packets
    CUT = "cut"  # policy no longer allows it; a change of policy that allows it again reports no second end


class Traffic(NamedTuple):
    """Traffic: packets, and their bytes with IP headers (and stamps, if they arrived with them), in one direction."""

    packets: int
    bytes: int


def one_packet(length: int) -> int:
    """Return the count of one packet of this length, to be added to others."""
    return _PACKET + length


def traffic(count: int) -> Traffic:
    """Return the packets and bytes of a count."""
    return Traffic(*divmod(count, _PACKET))


class FlowEnds:
    """Ends of flows: holds flows that are over, in the order in which their ends are due."""

    def __init__(self) -> None:
        """Begin without any."""
        self._waiting: deque[tuple[float, Flow, EndCause]] = deque()
        self._room_until = 0.0
        self._room = MAX_REPORTED
        self.lost = 0  # ends that are not reported, because of their number

    def add(self, flow: "Flow", cause: EndCause, now: float, linger: float = 0.0) -> None:
        """Add a flow that is over, unless its end has been added before, or is not reported here."""
        if flow.over or not flow.is_reported:
            return
        flow.over = True
        if len(self._waiting) >= _MAX_WAITING:
            self.lost += 1
        else:
            self._waiting.append((now + linger, flow, cause))

    def close(self, flow: "Flow", cause: EndCause, now: float) -> None:
        """Add a TCP flow that has been closed or reset, whose last packets may still come."""
        self.add(flow, cause, now, _LINGER)

    def take(self, now: float) -> Iterator[tuple["Flow", EndCause]]:
        """Yield the flows whose ends are due, and forget them; in each interval a limited number."""
        if now >= self._room_until:
            self._room_until, self._room = now + _INTERVAL, MAX_REPORTED
        while self._waiting and self._waiting[0][0] <= now:
            _, flow, cause = self._waiting.popleft()
            if self._room:
                self._room -= 1
                yield flow, cause
            else:
                self.lost += 1
