"""Sample of drops for the flow log: the first ones of each kind in a second, and in all. Pure.

A flood makes so many events of one kind that they would fill the log within a second, and cost the agent the time to
keep them. Drops of a kind differ in ports and source addresses only: they have the same reason, the same identity of
the source, and the same destination. Drops that are left out still count in the counters.
"""

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.verdict import DropReason

INTERVAL = 1.0  # s
OF_A_KIND = 100  # drops in an interval
IN_ALL = 2000

_Kind = tuple[DropReason | None, int, bytes, int, int, int]


class DropSample:
    """Drop sample: admits drops to the flow log within the limits of an interval."""

    def __init__(self, in_all: int = IN_ALL) -> None:
        """Begin with an empty interval; ``in_all``: drops of all kinds in an interval."""
        self._end = 0.0
        self._kinds: dict[_Kind, int] = {}
        self._in_all = self._room = in_all

    def admits(self, event: FlowEvent) -> bool:
        """Return whether to log this drop; the times of the events never decrease."""
        if event.time >= self._end:
            self._end = event.time + INTERVAL
            self._kinds.clear()
            self._room = self._in_all
        if not self._room:
            return False
        opening = event.opening
        kind = event.reason, opening.source, opening.dst, opening.proto, opening.dport, opening.icmp_type
        count = self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if count > OF_A_KIND:
            return False
        self._room -= 1
        return True
