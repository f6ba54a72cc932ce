"""Capture: dropped packets as they come, each with its flow."""

import base64
import socket
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.captures import Capture
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import count, seconds, texts
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.verdict import DropReason, FlowVerdict
from nfq_enforcer.dataplane.worker.packet_reports import MAX_SNAPLEN, PacketFilter, PacketRow
from nfq_enforcer.dataplane.worker.reports import unpack
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.flow import Logged, render
from nfq_enforcer.text import shorten

_VERDICTS = {str(verdict): verdict for verdict in (FlowVerdict.DROPPED, FlowVerdict.AUDIT)}
_REASONS = {str(reason): reason for reason in DropReason}
_LONGEST = 30 * 86400.0  # s
_COUNTS_INTERVAL = 1.0  # s, between two counts of lost packets

CaptureItem = dict[str, Any]


class CaptureHandlers:
    """Capture handlers: stream captured packets."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read."""
        self._parts = parts

    async def capture(self, params: Params) -> AsyncIterator[CaptureItem]:
        """Yield dropped packets, until ``count`` of them have come or ``duration`` s are over.

        The first item is ``{"begun": …}``, when every later drop is recorded. Each packet is ``{"packet": …}``, with
        its flow as ``observe`` has it and its bytes in Base64. ``{"counts": {"lost": …}}`` has the number of packets
        that were dropped and not recorded, so far; ``{"ended": …}`` is the last item and has the final number.
        """
        packet_filter, snaplen, limit = _filter(params), _snaplen(params), count(params, "count")
        duration = seconds(params, "duration", _LONGEST)
        end = time.monotonic() + (_LONGEST if duration is None else duration)
        async with self._parts.captures.begin(packet_filter, snaplen) as capture:
            yield {"begun": {"node": self._parts.settings.name, "snaplen": snaplen}}
            async for item in self._items(capture, limit, end):
                yield item
            yield {"ended": {"lost": capture.lost}}

    async def _items(self, capture: Capture, limit: int | None, end: float) -> AsyncIterator[CaptureItem]:
        sent, lost, counted = 0, 0, time.monotonic()
        while (limit is None or sent < limit) and (left := end - (now := time.monotonic())) > 0:
            if capture.lost > lost and now >= counted + _COUNTS_INTERVAL:
                lost, counted = capture.lost, now
                yield {"counts": {"lost": lost}}
            packet = await capture.next(min(left, _COUNTS_INTERVAL))
            if packet is not None:
                for event in unpack(packet.event):
                    sent += 1
                    yield {"packet": self._render(event, packet)}

    def _render(self, event: FlowEvent, packet: PacketRow) -> Mapping[str, Any]:
        wall_time = event.time + time.time() - time.monotonic()  # the event's is on the clock of the workers
        names, node = self._parts.names.ends(event.opening), self._parts.settings.name
        return {
            "flow": render(Logged(event, names, wall_time, node, self._parts.event_ids.next())),
            "arrived_by": _interface_name(packet.indev),
            "leaves_by": _interface_name(packet.outdev),
            "length": packet.length,
            "data": base64.b64encode(packet.data).decode(),
        }


def _interface_name(index: int) -> str | None:
    if not index:
        return None
    try:
        return socket.if_indextoname(index)
    except OSError:  # it exists no longer
        return f"if{index}"


def _filter(params: Params) -> PacketFilter:
    verdicts = frozenset(_choose(_VERDICTS, name, "verdict") for name in texts(params, "verdicts"))
    reasons = frozenset(_choose(_REASONS, name, "drop reason") for name in texts(params, "reasons"))
    return PacketFilter(verdicts or PacketFilter().verdicts, reasons or None)


def _choose(values: Mapping[str, Any], name: str, noun: str) -> Any:
    if name not in values:
        raise BadInput(f"a capture has no packets of the {noun} '{shorten(name)}'; allowed: {', '.join(values)}")
    return values[name]


def _snaplen(params: Params) -> int:
    snaplen = count(params, "snaplen")
    if snaplen is None or not 0 < snaplen <= MAX_SNAPLEN:
        raise BadInput(f"snaplen must be a number of bytes from 1 to {MAX_SNAPLEN}")
    return snaplen
