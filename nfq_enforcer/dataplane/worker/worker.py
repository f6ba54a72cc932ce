"""Worker: one process with its queues, which returns a verdict for every packet.

The loop reads packets and returns verdicts, a batch at a time. Between batches, every 10 ms, it runs housekeeping:
messages from the agent (new snapshot, changed peers, stop), expiry of flows, event log. Packets wait meanwhile, so
housekeeping has a limit of few milliseconds: messages beyond it wait for the next run. Because all of this happens in
one thread and between packets, a packet always sees one complete snapshot and one state of the peers.
"""

import gc
import select
import signal
import socket
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.events import Decision, FlowEvent
from nfq_enforcer.core.tables import ipcache
from nfq_enforcer.core.tables.conntrack import Conntrack, Flow
from nfq_enforcer.core.tables.ipcache import PeerTable
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.core.wire.packet import read_key
from nfq_enforcer.dataplane.interfaces import Interfaces
from nfq_enforcer.dataplane.queue import ctnetlink, drivers
from nfq_enforcer.dataplane.worker import flow_list, privileges, sandbox
from nfq_enforcer.dataplane.worker.channel import ImportFlows, PeerChanges, Revision, Setup, Stop, WorkerChannel
from nfq_enforcer.dataplane.worker.counters import (
    ACCEPTED,
    EVENTS_LOST,
    FLOWS,
    FLOWS_EVICTED,
    INTERNAL_ERRORS,
    OFFLOADED,
    Counters,
)
from nfq_enforcer.dataplane.worker.flow_list import FlushFlows, ListFlows
from nfq_enforcer.dataplane.worker.map_transfer import MapChunk, MapReceiver, MapRemoval, SnapshotReference
from nfq_enforcer.dataplane.worker.reports import MAX_EVENTS, Bound, Enforced, Events, Failed, pack
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS
from nfq_enforcer.errors import NfqError

_MAX_EVENTS = 1000  # kept between two runs of housekeeping; more are counted as lost
# looking a member of an enum up takes longer than the packet path has
_ACCEPT, _DROP = Verdict.ACCEPT, Verdict.DROP
_OFFLOAD_OPENER, _OFFLOAD_FLOW = Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW


class Worker:
    """Worker: decides the packets of its queues by the snapshots that the agent sends."""

    def __init__(
        self,
        setup: Setup,
        maps: MapReceiver,
        channel: WorkerChannel,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        """Import flows and bind the queues; raise NfqError with the reason if the kernel refuses.

        ``maps`` has the entries that the first snapshot refers to.
        """
        self._maps = maps
        self._channel = channel
        self._counters = counters
        self._counts = counters.row
        self._clock = clock
        self._timings = setup.timings
        now = clock()
        self._flows = Conntrack(setup.max_flows, now)
        self._peers = PeerTable(setup.peers)
        self._interfaces = Interfaces()
        self._events: deque[FlowEvent] = deque()
        self._to_forget: list[Flow] = []  # flows that a flush has not forgotten yet
        self._next_housekeeping = now
        self._next_interface_refresh = now
        self._raw_sockets = {4: _raw_socket(socket.AF_INET), 6: _raw_socket(socket.AF_INET6)}
        self._deadline: float | None = None  # after Stop: the time to end, even if packets still wait
        self._messages_wait = False  # the last run of housekeeping had no time for some received messages
        snapshot = maps.resolve(setup.snapshot).with_peers(self._peers)
        # Flows are imported before the queues are bound. Otherwise a reply that arrives first would belong to no
        # known flow, and would be dropped (CT_NO_MATCH).
        self._import_flows(snapshot, now, self._timings.import_flows)
        self._queue = drivers.bind(
            *(setup.driver, setup.queues, self._verdict), fail_open=setup.fail_open, next_worker=setup.next_worker
        )
        self._enforcer = Enforcer(
            snapshot,
            self._flows,
            can_requeue=self._queue.requeues,
            has_next=self._queue.requeues and setup.next_worker is not None,
        )
        self._use(snapshot)
        self._poll = select.poll()
        self._poll.register(self._queue.fileno(), select.POLLIN)
        self._poll.register(channel.fileno(), select.POLLIN)
        self._only_packets = [(self._queue.fileno(), select.POLLIN)]  # result of ``poll`` without messages

    @property
    def bound(self) -> Bound:
        """Return the message to the agent about the bound queues."""
        return Bound(self._queue.driver, self._queue.numbers)

    def _import_flows(self, snapshot: Snapshot, now: float, limit: float) -> None:
        """Import the kernel's record of this node's flows, so that a new worker cuts no open connection.

        If the kernel refuses the dump, or has more flows than fit into the time limit, a missing flow is opened again
        by the next packet of its opener.
        """
        with suppress(OSError):
            for flow in ctnetlink.dump_flows():
                self._counters.beat()
                if self._clock() - now > limit:
                    return
                src, dst, *_ = read_key(flow.key)
                if src in snapshot.endpoints or dst in snapshot.endpoints:
                    self._flows.import_flow(flow, now)

    def run(self) -> None:
        """Return verdicts until the agent sends Stop or ends; then process the waiting packets and unbind."""
        more = False  # the last batch was full, so that packets may wait: no need to poll
        while self._deadline is None:
            # Under load ``more`` stays true: no poll, and housekeeping by the clock alone.
            housekeeping_due = not more and self._wait()
            more = self._queue.process_batch()
            self._counters.beat()
            now = self._clock()
            if housekeeping_due or now >= self._next_housekeeping:
                self._housekeeping(now)
        # The rules may still queue packets; closing the socket drops those that wait (nfqnl_flush). So the worker
        # returns verdicts until the queue is empty, but for a limited time.
        while self._clock() < self._deadline and self._packets_wait():
            self._queue.process_batch()
            self._counters.beat()
        self._send_events()
        self._close()

    def _close(self) -> None:
        self._queue.close()
        for raw in filter(None, self._raw_sockets.values()):
            raw.close()

    def _wait(self) -> bool:
        """Wait for packets, messages or the next housekeeping; return whether anything but packets ended the wait."""
        timeout = self._timings.housekeeping if self._events else self._timings.idle
        return self._poll.poll(0 if self._messages_wait else timeout * 1000) != self._only_packets

    def _packets_wait(self) -> bool:
        return self._only_packets[0] in self._poll.poll(0)

    def _verdict(self, payload: bytes, indev: int, outdev: int, skb: int) -> Verdict | bytes:
        """Return the verdict on a packet; never raise, because the kernel parks a packet until it gets a verdict.

        A parked packet occupies one of the places of its queue (QUEUE_MAXLEN). A packet whose decision fails by a bug
        is therefore dropped, and counted as INTERNAL_ERROR.
        """
        interfaces = self._interfaces
        try:
            decision = self._enforcer.decide(payload, interfaces[indev], interfaces[outdev], self._clock(), skb)
        except Exception:  # the last line of defence
            self._counts[INTERNAL_ERRORS] += 1
            self._counters.count_drop(DropReason.INTERNAL_ERROR)
            return _DROP
        if decision.event is not None or decision.answer is not None:
            self._record(decision)
        verdict = decision.verdict
        if verdict is _ACCEPT:
            self._counts[ACCEPTED] += 1
            return decision.payload or verdict  # the rewritten packet, if the decision has one
        if verdict is _OFFLOAD_FLOW or verdict is _OFFLOAD_OPENER:
            # NF_REPEAT: the packet traverses the rules again, which set the connmark and accept it without a queue.
            self._counts[ACCEPTED] += 1
            self._counts[OFFLOADED] += 1
        # A requeued packet (REQUEUE_*) counts when the next queue accepts or drops it, so each packet counts once.
        return verdict

    def _record(self, decision: Decision) -> None:
        """Count a drop, keep the event for the log and send the ICMP error of a decision."""
        event = decision.event
        if decision.verdict is _DROP and event is not None and event.reason is not None:
            self._counters.count_drop(event.reason)
        if event is not None:
            if len(self._events) < _MAX_EVENTS:
                self._events.append(event)
            else:
                self._counts[EVENTS_LOST] += 1
        if decision.answer is not None:
            self._send_packet(decision.answer)

    def _send_packet(self, packet: bytes) -> None:
        """Send an IP packet of our own, an ICMP error, to its destination address."""
        version = packet[0] >> 4
        raw = self._raw_sockets[version]
        if raw is None:
            return
        address = socket.inet_ntop(
            *((socket.AF_INET, packet[16:20]) if version == 4 else (socket.AF_INET6, packet[24:40]))
        )
        with suppress(OSError):  # an ICMP error that cannot be sent is lost; delivery is never guaranteed
            raw.sendto(packet, (address, 0))

    def _housekeeping(self, now: float) -> None:
        """Do all work besides packets: messages, expiry of flows, release of old maps, event log, interface cache."""
        self._next_housekeeping = now + self._timings.housekeeping
        self._receive(now)
        if self._channel.closed:  # the agent has ended, or was killed
            self._stop(now)
        self._flows.expire(now)
        if self._to_forget:
            flow_list.forget_some(self._flows, self._to_forget, now)
        self._maps.free_some()
        self._counts[FLOWS] = len(self._flows)
        self._counts[FLOWS_EVICTED] = self._flows.evicted
        self._send_events()
        if now >= self._next_interface_refresh:
            self._next_interface_refresh = now + self._timings.interface_cache
            self._interfaces.invalidate()

    def _receive(self, now: float) -> None:
        """Handle messages until the time limit, at least one."""
        for message in self._channel.receive():
            self._handle_message(message, now)
            self._counters.beat()
            if self._clock() - now >= self._timings.messages:
                break
        self._messages_wait = self._channel.has_message

    def _handle_message(self, message: object, now: float) -> None:
        if isinstance(message, PeerChanges):
            ipcache.apply_changes(self._peers, message.changes)
        elif isinstance(message, MapChunk):
            self._maps.add(message)
        elif isinstance(message, SnapshotReference):
            self._interfaces.invalidate()  # new endpoints may have new interfaces
            self._enforce(self._maps.resolve(message).with_peers(self._peers))
        elif isinstance(message, MapRemoval):
            self._maps.remove(message)
        elif isinstance(message, Revision):
            self._enforce(self._enforcer.snapshot.with_revision(message.number, message.epoch))
        elif isinstance(message, ImportFlows):
            self._import_flows(self._enforcer.snapshot, now, self._timings.import_again)
        elif isinstance(message, ListFlows):
            self._channel.send(flow_list.answer(message, self._flows, now))
        elif isinstance(message, FlushFlows):
            self._to_forget = list(self._flows)
        elif isinstance(message, Stop):
            self._stop(now)

    def _enforce(self, snapshot: Snapshot) -> None:
        self._use(snapshot)
        self._channel.send(Enforced(snapshot.revision))

    def _use(self, snapshot: Snapshot) -> None:
        """Decide the next packets by this snapshot; in per-packet mode (no epoch) no verdict requests a connmark."""
        self._enforcer.snapshot = snapshot
        self._queue.epoch = snapshot.epoch or 0

    def _stop(self, now: float) -> None:
        if self._deadline is None:
            self._deadline = now + self._timings.drain

    def _send_events(self) -> None:
        while self._events:
            batch = tuple(self._events.popleft() for _ in range(min(MAX_EVENTS, len(self._events))))
            if not self._channel.send(Events(len(batch), pack(batch))):
                self._counts[EVENTS_LOST] += len(batch)
        self._channel.flush()


def _raw_socket(family: socket.AddressFamily) -> socket.socket | None:
    """Return a socket that sends complete IP packets (raw(7); IPV6_HDRINCL), None if the IP family is disabled."""
    try:
        raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError:
        return None
    raw.setblocking(False)
    return raw


def main() -> None:
    """Run a worker; the arguments are the descriptors of the channel and of the counters."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the agent receives these too, and sends Stop
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of the library about socket buffers; the kernel's counters are more precise
    end = socket.socket(fileno=int(sys.argv[1]))
    counters = Counters(int(sys.argv[2]))
    channel = WorkerChannel(end)
    # A full collection would stall the queues for as long as the tables are large. Reference counting frees all
    # objects of a verdict, because they form no cycles.
    gc.disable()
    worker = _start(channel, counters)
    worker.run()


def _start(channel: WorkerChannel, counters: Counters) -> Worker:
    """Return the worker that the agent's messages describe, with bound queues; exit if they cannot be bound."""
    maps = MapReceiver()
    setup = _receive_setup(channel, maps, counters)
    try:
        worker = Worker(setup, maps, channel, counters, time.monotonic)
        privileges.keep_only(privileges.NET_ADMIN)
        sandbox.restrict_files()
    except (NfqError, OSError) as error:
        channel.send(Failed(str(error)))
        sys.exit(1)
    channel.send(worker.bound)
    channel.send(Enforced(setup.snapshot.snapshot.revision))
    return worker


def _receive_setup(channel: WorkerChannel, maps: MapReceiver, counters: Counters) -> Setup:
    """Wait for the setup, and add the chunks of policy maps that precede it; exit if the agent ends before."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while not channel.closed:
        poll.poll(DEFAULT_TIMINGS.idle * 1000)
        counters.beat()
        for message in channel.receive():
            counters.beat()
            if isinstance(message, Setup):
                return message
            maps.add(message)
    sys.exit(1)


if __name__ == "__main__":
    main()
