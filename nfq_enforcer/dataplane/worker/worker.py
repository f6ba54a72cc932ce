"""A worker: one process, its queues, nothing but verdicts.

It answers packets, a batch at a time. Between two batches it takes a turn, if it is time for one, at whatever else
must happen: a new snapshot, changed peers, expiry, the log, the end. A turn has few milliseconds, because packets wait
meanwhile: messages for which there is no time are left to the next one.
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
from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.core.tables.ipcache import PeerTable
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.core.wire.packet import read_key
from nfq_enforcer.dataplane.interfaces import Interfaces
from nfq_enforcer.dataplane.queue import ctnetlink, drivers, library_queue
from nfq_enforcer.dataplane.worker.channel import (
    Bound,
    Enforced,
    Events,
    Failed,
    Peers,
    Revision,
    Setup,
    Stop,
    WorkerChannel,
    pack,
)
from nfq_enforcer.dataplane.worker.counters import (
    ACCEPTED,
    EVENTS_LOST,
    FLOWS,
    FLOWS_EVICTED,
    INTERNAL_ERRORS,
    OFFLOADED,
    Counters,
)
from nfq_enforcer.dataplane.worker.map_transfer import MapChunk, MapReceiver, MapRemoval, SnapshotReference
from nfq_enforcer.errors import NfqError

_TURN = 0.01  # seconds between two turns
_IDLE = 0.5  # the same, while no packet comes and nothing is to be told
_LISTEN = 0.001  # seconds of a turn for messages; one is taken in any case, and a dict may grow by it
_FORGET = 1.0  # seconds for which an interface's name and MTU are believed
_LAST_WORDS = 1.0  # seconds to answer what waits at the end, where the rules go on handing over
_LEARNING = 5.0  # seconds at most to take over flows (some 100,000 a second)
_MAX_EVENTS = 1000  # kept between two turns; more are counted as lost
_BATCH = 100  # events to a message
_OFFLOAD_OPENER, _OFFLOAD_FLOW = Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW


class Worker:
    """Judges the packets of its queues by the snapshots that the agent sends."""

    def __init__(
        self,
        setup: Setup,
        maps: MapReceiver,
        channel: WorkerChannel,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        """Make a worker that has its first snapshot and no queue yet; ``maps`` has what this snapshot names."""
        self._maps = maps
        self._channel = channel
        self._counters = counters
        self._clock = clock
        now = clock()
        self._flows = Conntrack(setup.maximum_flows, now)
        self._peers = PeerTable(setup.peers)
        self._interfaces = Interfaces()
        self._events: deque[FlowEvent] = deque()
        self._next_turn = now
        self._next_forget = now
        self._raw = {4: _raw_socket(socket.AF_INET), 6: _raw_socket(socket.AF_INET6)}
        self._end: float | None = None  # once told to stop: when to leave, whatever still waits
        self._unheard = False  # messages have been received that the last turn had no time for
        self._waiting = select.poll()
        snapshot = maps.fill(setup.snapshot).over(self._peers)
        self._learn(snapshot, now)
        self._queue = drivers.bind(
            *(setup.driver, setup.queues, self._judge), fail_open=setup.fail_open, next_worker=setup.next_worker
        )
        can_requeue = self._queue.driver != library_queue.DRIVER
        self._enforcer = Enforcer(
            snapshot,
            self._flows,
            can_requeue=can_requeue,
            has_next=can_requeue and setup.next_worker is not None,
        )
        self._queue.epoch = snapshot.epoch or 0
        self._only_packets = [(self._queue.fileno(), select.POLLIN)]
        self._waiting.register(self._queue.fileno(), select.POLLIN)
        self._waiting.register(channel.fileno(), select.POLLIN)

    @property
    def bound(self) -> Bound:
        """Return what there is to say of the queues."""
        return Bound(self._queue.driver, self._queue.numbers)

    def _learn(self, snapshot: Snapshot, now: float) -> None:
        """Take over the flows that the kernel remembers, so that none is cut because this worker is new.

        Where the kernel does not tell, or there are too many of them, a flow is found again when its opener speaks.
        """
        with suppress(OSError):
            for known in ctnetlink.open_flows():
                if self._clock() - now > _LEARNING:
                    return
                src, dst, *_ = read_key(known.key)
                if src in snapshot.endpoints or dst in snapshot.endpoints:
                    self._flows.import_flow(known, now)

    def run(self) -> None:
        """Judge packets until the agent says stop, or is gone; then answer what still waits and unbind."""
        more = False
        while self._end is None:
            told = not more and self._wait()
            more = self._queue.answer()
            now = self._clock()
            if told or now >= self._next_turn:
                self._turn(now)
        while self._clock() < self._end and self._packets_wait():
            self._queue.answer()
        self._report_events()
        self._close()

    def _close(self) -> None:
        self._queue.close()
        for raw in filter(None, self._raw.values()):
            raw.close()

    def _wait(self) -> bool:
        """Wait until packets come, or a turn is due; say whether it is, for another reason than the time."""
        patience = 0 if self._unheard else _TURN if self._events else _IDLE
        return self._waiting.poll(patience * 1000) != self._only_packets

    def _packets_wait(self) -> bool:
        return self._only_packets[0] in self._waiting.poll(0)

    def _judge(self, payload: bytes, indev: int, outdev: int, skb: int) -> Verdict | bytes:
        """Return the answer to a packet; never raise, for every packet gets one."""
        interfaces = self._interfaces
        try:
            decision = self._enforcer.decide(payload, interfaces[indev], interfaces[outdev], self._clock(), skb)
        except Exception:  # the last line of defence
            self._counters.row[INTERNAL_ERRORS] += 1
            self._counters.count_drop(DropReason.INTERNAL_ERROR)
            return Verdict.DROP
        if decision.event is not None or decision.answer is not None:
            self._follow(decision)
        if decision.verdict is Verdict.ACCEPT:
            self._counters.row[ACCEPTED] += 1
            return decision.payload or Verdict.ACCEPT
        if decision.verdict is _OFFLOAD_FLOW or decision.verdict is _OFFLOAD_OPENER:
            self._counters.row[ACCEPTED] += 1
            self._counters.row[OFFLOADED] += 1
        return decision.verdict

    def _follow(self, decision: Decision) -> None:
        event = decision.event
        if decision.verdict is Verdict.DROP and event is not None and event.reason is not None:
            self._counters.count_drop(event.reason)
        if event is not None:
            if len(self._events) < _MAX_EVENTS:
                self._events.append(event)
            else:
                self._counters.row[EVENTS_LOST] += 1
        if decision.answer is not None:
            self._send_back(decision.answer)

    def _send_back(self, packet: bytes) -> None:
        version = packet[0] >> 4
        raw = self._raw[version]
        if raw is None:
            return
        address = socket.inet_ntop(
            *((socket.AF_INET, packet[16:20]) if version == 4 else (socket.AF_INET6, packet[24:40]))
        )
        with suppress(OSError):  # an error message that cannot be sent is lost, as any may be
            raw.sendto(packet, (address, 0))

    def _turn(self, now: float) -> None:
        """Do what is not a packet: messages, expiry, the log."""
        self._next_turn = now + _TURN
        self._listen(now)
        if self._channel.closed:
            self._stop(now)
        self._flows.expire(now)
        self._maps.let_go()
        self._counters.row[FLOWS] = len(self._flows)
        self._counters.row[FLOWS_EVICTED] = self._flows.evicted
        self._report_events()
        if now >= self._next_forget:
            self._next_forget = now + _FORGET
            self._interfaces.forget()

    def _listen(self, now: float) -> None:
        for message in self._channel.receive():
            self._obey(message, now)
            if self._clock() - now >= _LISTEN:
                break
        self._unheard = self._channel.has_message

    def _obey(self, message: object, now: float) -> None:
        if isinstance(message, Peers):
            ipcache.change(self._peers, message.changes)
        elif isinstance(message, MapChunk):
            self._maps.add(message)
        elif isinstance(message, SnapshotReference):
            self._interfaces.forget()
            self._enforce(self._maps.fill(message).over(self._peers))
        elif isinstance(message, MapRemoval):
            self._maps.forget(message)
        elif isinstance(message, Revision):
            self._enforce(self._enforcer.snapshot.renewed(message.number, message.epoch))
        elif isinstance(message, Stop):
            self._stop(now)

    def _enforce(self, snapshot: Snapshot) -> None:
        self._enforcer.snapshot = snapshot
        self._queue.epoch = snapshot.epoch or 0
        self._channel.send(Enforced(snapshot.revision))

    def _stop(self, now: float) -> None:
        if self._end is None:
            self._end = now + _LAST_WORDS

    def _report_events(self) -> None:
        while self._events:
            batch = tuple(self._events.popleft() for _ in range(min(_BATCH, len(self._events))))
            if not self._channel.send(Events(len(batch), pack(batch))):
                self._counters.row[EVENTS_LOST] += len(batch)
        self._channel.flush()


def _raw_socket(family: socket.AddressFamily) -> socket.socket | None:
    """Return a socket that sends whole packets as they are (raw(7); IPV6_HDRINCL), None where the family is off."""
    try:
        raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError:
        return None
    raw.setblocking(False)
    return raw


def main() -> None:
    """Run a worker: descriptors of the channel and the counters are the two arguments."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the agent, which will say stop
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # the library warns of socket buffers; the kernel's counts say more
    end = socket.socket(fileno=int(sys.argv[1]))
    counters = Counters(int(sys.argv[2]))
    channel = WorkerChannel(end)
    gc.disable()  # a full collection would stall the queues; nothing that verdicts make has cycles
    worker = _bound(channel, counters)
    worker.run()


def _bound(channel: WorkerChannel, counters: Counters) -> Worker:
    """Return the worker that the agent asks for, with its queues; leave if they cannot be had."""
    maps = MapReceiver()
    setup = _setup(channel, maps)
    try:
        worker = Worker(setup, maps, channel, counters, time.monotonic)
    except NfqError as error:
        channel.send(Failed(str(error)))
        sys.exit(1)
    channel.send(worker.bound)
    channel.send(Enforced(setup.snapshot.snapshot.revision))
    return worker


def _setup(channel: WorkerChannel, maps: MapReceiver) -> Setup:
    """Await what to be, and what comes before it."""
    waiter = select.poll()
    waiter.register(channel.fileno(), select.POLLIN)
    while not channel.closed:
        waiter.poll()
        for message in channel.receive():
            if isinstance(message, Setup):
                return message
            maps.add(message)
    sys.exit(1)


if __name__ == "__main__":
    main()
