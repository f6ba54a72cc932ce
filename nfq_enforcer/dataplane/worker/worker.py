"""Worker: one process with its queues, which returns a verdict for every packet.

The loop reads packets and returns verdicts, a batch at a time. Between batches, every 10 ms, it runs
housekeeping: messages from the agent (new snapshot, changed peers or identities, stop), expiry of flows, event log.
Packets wait meanwhile, so housekeeping has a limit of few milliseconds: messages beyond it wait for the next run.
Because all of this happens in one thread and between packets, a packet always sees one complete snapshot and one state
of the tables.
"""

import gc
import select
import signal
import socket
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.events import Decision, FlowEvent
from nfq_enforcer.core.tables import identities, ipcache
from nfq_enforcer.core.tables.conntrack import Conntrack, Flow
from nfq_enforcer.core.tables.identities import IdentityTable
from nfq_enforcer.core.tables.ipcache import PeerTable
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import read_key
from nfq_enforcer.dataplane.interfaces import Interfaces
from nfq_enforcer.dataplane.queue import ctnetlink, drivers
from nfq_enforcer.dataplane.queue.protocol import HeldPacket, Redirect
from nfq_enforcer.dataplane.worker import flow_list, priority, privileges, sandbox
from nfq_enforcer.dataplane.worker.channel import (
    IdentityChanges,
    ImportFlows,
    NameChanges,
    PeerChanges,
    Release,
    Revision,
    Setup,
    SlotChanges,
    StartCapture,
    Stop,
    StopCapture,
    WorkerChannel,
)
from nfq_enforcer.dataplane.worker.counters import (
    ACCEPTED,
    EVENTS_LOST,
    FLOWS,
    FLOWS_EVICTED,
    INTERNAL_ERRORS,
    OFFLOADED,
    STAMPS_MADE,
    STAMPS_READ,
    Counters,
)
from nfq_enforcer.dataplane.worker.flow_list import FlushFlows, ListFlows
from nfq_enforcer.dataplane.worker.latency import LatencySample
from nfq_enforcer.dataplane.worker.map_transfer import Chunk, MapReceiver, MapRemoval, SnapshotReference
from nfq_enforcer.dataplane.worker.name_learning import NameLearning
from nfq_enforcer.dataplane.worker.packet_capture import PacketCaptures
from nfq_enforcer.dataplane.worker.process_sockets import ProcessSockets
from nfq_enforcer.dataplane.worker.reports import MAX_EVENTS, Applied, Bound, Enforced, Events, Failed, pack
from nfq_enforcer.dataplane.worker.sampling import DropSample
from nfq_enforcer.dataplane.worker.slot_requests import SlotRequests
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS
from nfq_enforcer.errors import NfqError

_MAX_EVENTS = 1000  # kept between two runs of housekeeping; more are counted as lost
# looking a member of an enum up takes longer than the packet path has
_ACCEPT, _DROP, _DROPPED = Verdict.ACCEPT, Verdict.DROP, FlowVerdict.DROPPED
_OFFLOAD_OPENER, _OFFLOAD_FLOW = Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW
_REDIRECT, _UNDECIDED = Verdict.REDIRECT, Verdict.UNDECIDED


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
        self._identities = IdentityTable(setup.identities)
        self._names = NameLearning(setup, channel)
        self._slots = SlotRequests(setup, channel)
        self._interfaces = Interfaces()
        self._sockets = ProcessSockets()
        self._events: deque[FlowEvent] = deque()
        self._sample = DropSample()
        self._captures = PacketCaptures(channel)
        self._latency = LatencySample(counters, clock)
        # of the worker's predecessors: evicted flows, stamps made and read
        self._before = self._counts[FLOWS_EVICTED], self._counts[STAMPS_MADE], self._counts[STAMPS_READ]
        self._to_forget: list[Flow] = []  # flows that a flush has not forgotten yet
        self._next_housekeeping = now
        self._next_interface_refresh = now
        self._raw_sockets = {4: _raw_socket(socket.AF_INET), 6: _raw_socket(socket.AF_INET6)}
        self._deadline: float | None = None  # after Stop: the time to end, even if packets still wait
        self._messages_wait = False  # the last run of housekeeping had no time for some received messages
        snapshot = maps.resolve(setup.snapshot).with_tables(self._peers, self._identities)
        # Flows are imported before the queues are bound. Otherwise a reply that arrives first would belong to no
        # known flow, and would be dropped (CT_NO_MATCH).
        self._import_flows(snapshot, now, self._timings.import_flows)
        self._queues = drivers.bind(
            *(setup.driver, setup.queues, self._verdict), fail_open=setup.fail_open, next_worker=setup.next_worker
        )
        self._enforcer = Enforcer(
            snapshot,
            self._flows,
            can_requeue=self._queues.requeues,
            has_next=self._queues.requeues and setup.next_worker is not None,
            names=self._names.table,
            slots=self._slots.table,
            find_socket=self._sockets.find,
        )
        self._use(snapshot)
        # epoll, not poll: its cost does not grow with the number of queues
        self._epoll = select.epoll()
        descriptors = (*self._queues.filenos, channel.fileno())
        for descriptor in descriptors:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._max_ready = len(descriptors)

    @property
    def bound(self) -> Bound:
        """Return the message to the agent about the bound queues."""
        return Bound(self._queues.driver, self._queues.numbers)

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
                if flow.of_process or src in snapshot.endpoints or dst in snapshot.endpoints:
                    self._flows.import_flow(flow, now)

    def run(self) -> None:
        """Return verdicts until the agent sends Stop or ends; then process the waiting packets and unbind."""
        more = False  # a batch was full, so that packets may wait; under load this stays true
        while self._deadline is None:
            ready = self._wait(0 if more else self._longest_wait())
            housekeeping_due = not more and (not ready or self._channel.fileno() in ready)  # else by the clock alone
            more = self._queues.process_ready(ready, self._latency.next_turn())
            self._counters.beat()
            now = self._clock()
            if housekeeping_due or now >= self._next_housekeeping:
                self._housekeeping(now)
        # The rules may still queue packets; closing the socket drops those that wait (nfqnl_flush). So the worker
        # returns verdicts until the queue is empty, but for a limited time.
        while self._clock() < self._deadline and (waiting := self._waiting_queues()):
            self._queues.process_ready(waiting)
            self._counters.beat()
        self._write_counts()
        self._send_events()
        self._close()

    def _close(self) -> None:
        self._queues.close()
        self._sockets.close()
        for raw in filter(None, self._raw_sockets.values()):
            raw.close()
        self._epoll.close()

    def _longest_wait(self) -> float:
        """Return the seconds until the next housekeeping, at most."""
        if self._messages_wait:
            return 0
        waits = self._events or self._names.holds or self._slots.holds or self._captures.wait
        return self._timings.housekeeping if waits else self._timings.idle

    def _wait(self, timeout: float) -> dict[int, int]:
        """Wait for packets or messages, at most ``timeout`` seconds; return the descriptors that are readable."""
        return dict(self._epoll.poll(timeout, self._max_ready))

    def _waiting_queues(self) -> list[int]:
        return [descriptor for descriptor in self._wait(0) if descriptor in self._queues.filenos]

    def _verdict(self, payload: bytes, indev: int, outdev: int, skb: int) -> Verdict | bytes | Redirect | HeldPacket:
        """Return the verdict on a packet; never raise, because the kernel parks a packet until it gets a verdict.

        A parked packet occupies one of the places of its queue (QUEUE_MAXLEN). A packet whose decision fails by a bug
        is therefore dropped, and counted as INTERNAL_ERROR.
        """
        interfaces = self._interfaces
        try:
            decision = self._enforcer.decide(payload, interfaces[indev], interfaces[outdev], self._clock(), skb)
        except Exception:  # the last line of defence
            self._counts[INTERNAL_ERRORS] += 1
            self._counters.count_drop(DropReason.INTERNAL_ERROR, None)
            if self._captures.running:
                self._captures.add_failed(self._clock(), payload, indev, outdev)
            return _DROP
        if decision.event is not None or decision.answer is not None:
            if decision.learned:
                result = self._learn(decision)
                if isinstance(result, HeldPacket):
                    result.arrival = payload, indev, outdev
                    return result
                decision = result
            if self._captures.running:
                self._captures.add(decision.event, payload, indev, outdev)
            self._record(decision)
        verdict = decision.verdict
        if verdict is _ACCEPT:
            self._counts[ACCEPTED] += 1
            return decision.payload or verdict  # the rewritten packet, if the decision has one
        if verdict is _OFFLOAD_FLOW or verdict is _OFFLOAD_OPENER:
            # NF_REPEAT: the packet traverses the rules again, which set the connmark and accept it without a queue.
            self._counts[ACCEPTED] += 1
            self._counts[OFFLOADED] += 1
        elif verdict is _REDIRECT or verdict is _UNDECIDED:
            return self._redirect(decision)
        # A requeued packet (REQUEUE_*) counts when the next queue accepts or drops it, so each packet counts once.
        return verdict

    def _redirect(self, decision: Decision) -> Verdict | Redirect | HeldPacket:
        """Redirect a packet to its slot, or hold it until it has one; without any it goes on, and counts later."""
        if decision.slot:
            return Redirect(decision.slot)
        held = self._slots.request(decision.wants, self._clock()) if decision.wants is not None else None
        return held or _UNDECIDED

    def _record(self, decision: Decision) -> None:
        """Count a drop, keep the event for the log and send the ICMP error of a decision."""
        event = decision.event
        if decision.verdict is _DROP and event is not None and event.reason is not None:
            self._counters.count_drop(event.reason, event.direction)
        elif event is not None and event.l7 is None and event.verdict is not _DROPPED:
            self._counters.count_flow(event.verdict, event.direction)
        if event is not None:
            self._log(event)
        for event in decision.further:
            self._log(event)
        if decision.answer is not None:
            self._send_packet(decision.answer)

    def _log_ends(self, now: float) -> None:
        """Keep the events of flows that are over for the log; count those that are too many."""
        for event in self._enforcer.ended(now):
            self._log(event)
        ends = self._flows.ends
        self._counts[EVENTS_LOST] += ends.lost
        ends.lost = 0

    def _log(self, event: FlowEvent) -> None:
        logged = event.verdict is not _DROPPED or self._sample.admits(event)
        if logged and len(self._events) < _MAX_EVENTS:
            self._events.append(event)
        else:
            self._counts[EVENTS_LOST] += 1

    def _learn(self, decision: Decision) -> Decision | HeldPacket:
        """Learn the addresses of a DNS answer; return the packet to hold, or the decision on it."""
        enforcer = self._enforcer
        return self._names.learn(decision, enforcer.snapshot, enforcer.name_patterns, self._clock())

    def _settle(self, settled: Iterable[tuple[HeldPacket, Decision]]) -> None:
        """Give held packets their verdicts, and record them."""
        for packet, decision in settled:
            self._record(decision)
            if decision.verdict is _DROP:
                if self._captures.running and packet.arrival is not None:
                    self._captures.add(decision.event, *packet.arrival)
                packet.settle(_DROP)
            else:
                self._counts[ACCEPTED] += 1
                packet.settle(packet.result)

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
        self._queues.divide_room(now)
        self._flows.expire(now)
        self._log_ends(now)
        self._settle(self._names.overdue(now))
        for packet in self._slots.overdue(now):
            packet.settle(_UNDECIDED)
        if self._to_forget:
            flow_list.forget_some(self._flows, self._to_forget, now)
        self._maps.free_some()
        self._write_counts()
        self._send_events()
        if self._captures.running:
            self._captures.send(now)
        if now >= self._next_interface_refresh:
            self._next_interface_refresh = now + self._timings.interface_cache
            self._interfaces.invalidate()

    def _write_counts(self) -> None:
        """Write the counts that tables and enforcer keep themselves."""
        counts, (evicted, made, read) = self._counts, self._before
        counts[FLOWS] = len(self._flows)
        counts[FLOWS_EVICTED] = evicted + self._flows.evicted
        counts[STAMPS_MADE] = made + self._enforcer.stamps_made
        counts[STAMPS_READ] = read + self._enforcer.stamps_read

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
        elif isinstance(message, IdentityChanges):
            identities.apply_changes(self._identities, message.changes)
        elif isinstance(message, Chunk):
            self._maps.add(message)
        elif isinstance(message, SnapshotReference):
            self._enforce(self._maps.resolve(message).with_tables(self._peers, self._identities))
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
        elif isinstance(message, NameChanges):
            self._names.apply(message)
        elif isinstance(message, Release):
            self._settle(self._names.released(message.number))
        elif isinstance(message, SlotChanges):
            self._slots.apply(message)
        elif isinstance(message, StartCapture):
            self._captures.start(message, now)
        elif isinstance(message, StopCapture):
            self._captures.stop(message.number)
        elif isinstance(message, Stop):
            self._stop(now)

    def _enforce(self, snapshot: Snapshot) -> None:
        self._use(snapshot)
        self._channel.send(Enforced(snapshot.revision))

    def _use(self, snapshot: Snapshot) -> None:
        """Decide the next packets by this snapshot; in per-packet mode (no epoch) no verdict requests a connmark."""
        self._enforcer.snapshot = snapshot
        self._interfaces.use(snapshot.cluster_interfaces, snapshot.endpoint_interfaces)
        self._queues.set_epoch(snapshot.epoch or 0)

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
        priority.raise_priority()
        worker = Worker(setup, maps, channel, counters, time.monotonic)
        privileges.keep_only(privileges.NET_ADMIN)
        sandbox.restrict_files()
    except (NfqError, OSError) as error:
        channel.send(Failed(str(error)))
        sys.exit(1)
    channel.send(worker.bound)
    channel.send(Enforced(setup.snapshot.snapshot.revision))
    channel.send(Applied(setup.changes_number))
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
