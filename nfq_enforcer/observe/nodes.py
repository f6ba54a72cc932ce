"""Flows of several nodes in one stream: notes about nodes, and the order of flows that arrive by different ways.

The kept flows of each node are sorted, so they are merged exactly (``agent.peers.cluster_flows``). New flows arrive
with different delays: ``ReorderWindow`` holds each for a short time, so that an earlier flow of another node can pass.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nfq_enforcer.observe import form
from nfq_enforcer.observe.flow import HubbleFlow, render_lost
from nfq_enforcer.observe.text import is_flow

WINDOW = 0.2  # s for which a new flow is held
_MAX_HELD = 10_000  # flows; the oldest of more is released early

CONNECTED, UNAVAILABLE, ERROR = "NODE_CONNECTED", "NODE_UNAVAILABLE", "NODE_ERROR"  # of Hubble's ``NodeState``


def node_status(state: str, node: str, message: str) -> HubbleFlow:
    """Return the object that reports the state of a node (Hubble's ``NodeStatusEvent``)."""
    return {"node_status": {"state_change": state, "node_names": [node], "message": message}, "node_name": node}


def notice(sentence: str) -> HubbleFlow:
    """Return the object of a sentence about the whole stream; commands print it on standard error."""
    return {"notice": sentence}


def checked(item: object, node: str) -> HubbleFlow | None:
    """Return an item that another node has sent, with the node's name; None if it is neither flow nor loss.

    A flow of unknown content, as of a newer version, counts as a lost one.
    """
    if not isinstance(item, Mapping):
        return None
    lost = item.get("lost_events")
    if isinstance(lost, Mapping) and isinstance(number := lost.get("num_events_lost"), int):
        return render_lost(number, node)
    if not is_flow(item):
        return None
    try:
        form.check(item)
    except ValueError:
        return render_lost(1, node)
    return {**item, "node_name": node}


class ReorderWindow:
    """Reorder window: releases flows by their times, each at most ``window`` seconds after it came."""

    def __init__(self, window: float = WINDOW, limit: int = _MAX_HELD) -> None:
        """Hold nothing yet, and never more than ``limit`` flows."""
        self._window = window
        self._limit = limit
        self._held: list[tuple[str, int, Mapping[str, Any]]] = []  # a heap by time, then by arrival
        self._arrivals: deque[tuple[float, str]] = deque()  # of held and released flows: arrival, time of the flow
        self._number = 0

    def add(self, flow: Mapping[str, Any], now: float) -> None:
        """Hold a flow that came at ``now``."""
        heapq.heappush(self._held, (flow["time"], self._number, flow))
        self._arrivals.append((now, flow["time"]))
        self._number += 1

    def due(self, now: float) -> Iterator[Mapping[str, Any]]:
        """Yield the flows that are due: those held for the whole time, and all that are older than one of them."""
        while self._arrivals and (self._arrivals[0][0] + self._window <= now or len(self._held) > self._limit):
            _, until = self._arrivals.popleft()
            while self._held and self._held[0][0] <= until:
                yield heapq.heappop(self._held)[2]

    def rest(self) -> Iterable[Mapping[str, Any]]:
        """Return all held flows, in order; hold none."""
        rest = [flow for _, _, flow in sorted(self._held, key=lambda held: held[:2])]
        self._held.clear()
        self._arrivals.clear()
        return rest

    def wait(self, now: float) -> float | None:
        """Return the seconds until a flow is due; None if none is held."""
        return max(0.0, self._arrivals[0][0] + self._window - now) if self._arrivals else None
