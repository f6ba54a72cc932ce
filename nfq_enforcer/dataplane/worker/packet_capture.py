"""Captures of dropped and audited packets in a worker, each with limits of rate, bytes and time.

The agent starts a capture and renews it; a capture that is not renewed ends by itself, so none outlives its reader or
the agent. While none runs, a drop costs one test. A flood costs no more than the limits: of many alike packets the
first ones are recorded, as in the flow log (see ``sampling``), and the others are counted.
"""

from collections import deque

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.worker.channel import StartCapture, WorkerChannel
from nfq_enforcer.dataplane.worker.packet_reports import PacketRow, Packets, pack_rows, wire_length
from nfq_enforcer.dataplane.worker.reports import pack
from nfq_enforcer.dataplane.worker.sampling import INTERVAL, DropSample

_MAX_WAITING = 500  # packets between two runs of housekeeping
_MAX_BYTES = 4 << 20  # bytes of packets in an interval
_REPORT_BYTES = 1 << 20  # beyond which a report has no further packet
_NO_OPENING = Opening(b"", b"", 0, 0, 0, -1, -1, False, Identity(0), Identity(0))

_Waiting = tuple[FlowEvent, int, int, int, bytes]


class PacketCapture:
    """Packet capture: the packets of one capture that wait to be sent."""

    def __init__(self, request: StartCapture, now: float) -> None:
        """Begin with an empty interval."""
        self._sample = DropSample(request.rate)
        self._waiting: deque[_Waiting] = deque()
        self._lost = 0
        self._interval_end = now + INTERVAL
        self._room = _MAX_BYTES
        self.renew(request, now)

    def renew(self, request: StartCapture, now: float) -> None:
        """Go on with this request, until its lease is over."""
        self._request = request
        self.end = now + request.lease

    @property
    def waits(self) -> bool:
        """Return whether there is anything to send."""
        return bool(self._waiting or self._lost)

    def add(self, event: FlowEvent, payload: bytes, indev: int, outdev: int) -> None:
        """Record a packet if the filter admits it; count it as lost beyond a limit."""
        if not self._request.filter.admits(event):
            return
        if event.time >= self._interval_end:
            self._interval_end, self._room = event.time + INTERVAL, _MAX_BYTES
        data = payload[: self._request.snaplen]
        if len(self._waiting) >= _MAX_WAITING or len(data) > self._room or not self._sample.admits(event):
            self._lost += 1
            return
        self._room -= len(data)
        self._waiting.append((event, indev, outdev, wire_length(payload), data))

    def send(self, channel: WorkerChannel) -> None:
        """Send what waits, in reports; count the packets of a report that the channel refuses as lost."""
        while self._waiting or self._lost:
            rows, lost = self._take(), self._lost
            self._lost = 0
            if not channel.send(Packets(self._request.number, lost, pack_rows(rows))):
                self._lost = lost + len(rows)
                return

    def _take(self) -> list[PacketRow]:
        """Remove packets for one report."""
        rows: list[PacketRow] = []
        size = 0
        while self._waiting and size < _REPORT_BYTES:
            event, indev, outdev, length, data = self._waiting.popleft()
            row = PacketRow(pack((event,)), indev, outdev, length, data)
            rows.append(row)
            size += len(row.event) + len(row.data)
        return rows


class PacketCaptures:
    """Packet captures: all captures of a worker."""

    def __init__(self, channel: WorkerChannel) -> None:
        """Begin without a capture."""
        self._channel = channel
        self._captures: dict[int, PacketCapture] = {}
        self.running = False

    @property
    def wait(self) -> bool:
        """Return whether there is anything to send."""
        return self.running and any(capture.waits for capture in self._captures.values())

    def start(self, request: StartCapture, now: float) -> None:
        """Start a capture, or renew it; confirm it to the agent."""
        if (capture := self._captures.get(request.number)) is not None:
            capture.renew(request, now)
            return
        self._captures[request.number] = PacketCapture(request, now)
        self.running = True
        self._channel.send(Packets(request.number, 0, b""))

    def stop(self, number: int) -> None:
        """End a capture; its packets that still wait are not sent."""
        self._captures.pop(number, None)
        self.running = bool(self._captures)

    def add(self, event: FlowEvent | None, payload: bytes, indev: int, outdev: int) -> None:
        """Offer a packet to all captures; its event has a reason if it was dropped, or would be without audit mode."""
        if event is not None and event.reason is not None:
            for capture in self._captures.values():
                capture.add(event, payload, indev, outdev)

    def add_failed(self, now: float, payload: bytes, indev: int, outdev: int) -> None:
        """Offer a packet that was dropped because of an internal error, which has no event."""
        direction = Direction.INGRESS if indev else Direction.EGRESS
        reason = DropReason.INTERNAL_ERROR
        self.add(
            FlowEvent(now, FlowVerdict.DROPPED, reason, direction, _NO_OPENING, 0, is_reply=False),
            *(payload, indev, outdev),
        )

    def send(self, now: float) -> None:
        """Send what waits; end the captures that the agent has not renewed."""
        for number, capture in list(self._captures.items()):
            capture.send(self._channel)
            if now >= capture.end:
                self.stop(number)
