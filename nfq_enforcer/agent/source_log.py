"""Source log: packets with a forged source that the kernel has dropped, in the flow log and in the log of the agent."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.rules import source_samples
from nfq_enforcer.dataplane.rules.source_samples import Sample

_log = logging.getLogger(__name__)
_LOG_INTERVAL = 60.0  # s, between two lines about one interface


class SourceLog:
    """Source log: reads the samples of the source filter."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        add: Callable[[Sequence[FlowEvent]], None],
        capture: Callable[[FlowEvent, bytes, int], None],
    ) -> None:
        """Set the functions that return the snapshot in force, and that add events to the flow log.

        ``capture`` adds a packet to the captures that run: its event, its first bytes, the index of its interface.
        """
        self._snapshot = snapshot
        self._add = add
        self._capture = capture
        self._logged: dict[str, float] = {}  # interface: time of its last line

    async def run(self) -> None:
        """Read samples as they come; never return."""
        try:
            samples = source_samples.open_samples()
        except OSError as error:
            _log.warning("packets with a forged source are counted, but not shown in the flow log: %s", error)
            return
        loop = asyncio.get_running_loop()
        with samples:
            loop.add_reader(samples, self._read, samples)
            try:
                await loop.create_future()
            finally:
                loop.remove_reader(samples)

    def _read(self, samples: socket.socket) -> None:
        now = time.monotonic()
        if events := [self._event(sample, now) for sample in source_samples.read_samples(samples)]:
            self._add(events)

    def _event(self, sample: Sample, now: float) -> FlowEvent:
        interface = _interface_name(sample.interface)
        event = source_samples.drop_event(sample, self._snapshot(), interface, now)
        self._capture(event, sample.payload, sample.interface)
        if now - self._logged.get(interface, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged[interface] = now
            src, dst = (ip_address(address) if address else "?" for address in event.opening[:2])
            _log.warning(
                "dropped a packet from interface %s with a source address that does not belong there: from %s to %s; "
                "further ones are counted (status)",
                *(interface, src, dst),
            )
        return event


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
