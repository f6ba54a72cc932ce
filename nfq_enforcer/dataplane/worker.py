"""A worker: one process, one queue, nothing but verdicts.

Under load a queue is never empty, so whatever else must happen (a new snapshot, changed peers, expiry, the log, the
end) happens between two packets as well as when none comes: ``_turn`` is called from both places. It has few
milliseconds, because packets wait meanwhile: messages for which there is no time are left to the next turn.
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

from nfq_enforcer.core import ipcache
from nfq_enforcer.core.conntrack import Conntrack
from nfq_enforcer.core.enforcer import Decision, Enforcer, FlowEvent
from nfq_enforcer.core.ipcache import PeerTable
from nfq_enforcer.core.snapshot import Snapshot
from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.dataplane.channel import (
    Bound,
    Enforced,
    Events,
    Failed,
    Peers,
    Revision,
    Setup,
    Stop,
    WorkerChannel,
)
from nfq_enforcer.dataplane.counters import (
    ACCEPTED,
    EVENTS_LOST,
    FLOWS,
    FLOWS_EVICTED,
    INTERNAL_ERRORS,
    Counters,
)
from nfq_enforcer.dataplane.interfaces import Interfaces
from nfq_enforcer.dataplane.nfqueue import Answer, LibraryQueue
from nfq_enforcer.errors import NfqError

_TURN = 0.01  # seconds between two looks at what is not a packet
_IDLE = 0.5  # the same, while no packet comes
_LISTEN = 0.002  # seconds of a turn for messages; one is taken in any case
_FORGET = 1.0  # seconds for which an interface's name and MTU are believed
_LAST_WORDS = 1.0  # seconds to answer what waits at the end, where the rules go on handing over
_MAX_EVENTS = 1000  # kept between two turns; more are counted as lost
_BATCH = 100  # events to a message

_DROP = Answer(accept=False)
_ACCEPT = Answer(accept=True)


class Worker:
    """Judges the packets of one queue by the snapshots that the agent sends."""

    def __init__(self, setup: Setup, channel: WorkerChannel, counters: Counters, clock: Callable[[], float]) -> None:
        """Make a worker that has its first snapshot and no queue yet."""
        self._channel = channel
        self._counters = counters
        self._clock = clock
        now = clock()
        self._flows = Conntrack(setup.maximum_flows, now)
        self._peers = PeerTable(setup.peers)
        self._enforcer = Enforcer(setup.snapshot.over(self._peers), self._flows)
        self._interfaces = Interfaces()
        self._events: deque[FlowEvent] = deque()
        self._next_turn = now
        self._next_forget = now
        self._raw = {4: _raw_socket(socket.AF_INET), 6: _raw_socket(socket.AF_INET6)}
        self._end: float | None = None  # once told to stop: when to leave, whatever still waits
        self._queue = LibraryQueue(setup.queue, self._judge)

    def run(self) -> None:
        """Judge packets until the agent says stop, or is gone; then answer what still waits and unbind."""
        waiter = select.poll()
        waiter.register(self._queue.fileno(), select.POLLIN)
        waiter.register(self._channel.fileno(), select.POLLIN)
        while self._end is None:
            waiter.poll(int(self._patience() * 1000))
            self._queue.drain()
            self._turn(self._clock())
        self._queue.drain()
        self._report_events()
        self._queue.close()

    def _patience(self) -> float:
        """Return for how many seconds nothing but a packet or a message needs a turn."""
        if self._channel.has_message:
            return 0
        return _TURN if self._events else _IDLE

    def _judge(self, payload: bytes, indev: int, outdev: int) -> Answer:
        now = self._clock()
        if now >= self._next_turn:
            self._turn(now)
        try:
            decision = self._enforcer.decide(payload, self._interfaces.get(indev), self._interfaces.get(outdev), now)
        except Exception:  # the last line of defence: every packet gets a verdict
            self._counters.row[INTERNAL_ERRORS] += 1
            self._counters.count_drop(DropReason.INTERNAL_ERROR)
            return _DROP
        if decision.event is not None or decision.answer is not None:
            self._follow(decision)
        if decision.verdict is Verdict.DROP:
            return _DROP
        self._counters.row[ACCEPTED] += 1
        return Answer(True, decision.payload) if decision.payload is not None else _ACCEPT

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
        if self._end is not None and now >= self._end:
            self._queue.interrupt()
        self._flows.expire(now)
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
                return

    def _obey(self, message: object, now: float) -> None:
        if isinstance(message, Peers):
            ipcache.change(self._peers, message.changes)
            gc.freeze()  # a collection would stall the queue by a look at all peers; they make no cycles either
        elif isinstance(message, Snapshot):
            self._interfaces.forget()
            self._enforce(message.over(self._peers))
        elif isinstance(message, Revision):
            self._enforce(self._enforcer.snapshot.renewed(message.number))
        elif isinstance(message, Stop):
            self._stop(now)

    def _enforce(self, snapshot: Snapshot) -> None:
        self._enforcer.snapshot = snapshot
        self._channel.send(Enforced(snapshot.revision))

    def _stop(self, now: float) -> None:
        if self._end is None:
            self._end = now + _LAST_WORDS

    def _report_events(self) -> None:
        while self._events:
            batch = tuple(self._events.popleft() for _ in range(min(_BATCH, len(self._events))))
            if not self._channel.send(Events(batch)):
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
    worker = _bound(channel, counters)
    gc.collect()
    gc.freeze()  # a full collection would stall the queue; flows make no cycles
    worker.run()


def _bound(channel: WorkerChannel, counters: Counters) -> Worker:
    """Return the worker that the agent asks for, with its queue; leave if it cannot be had."""
    setup = _first_message(channel)
    try:
        worker = Worker(setup, channel, counters, time.monotonic)
    except NfqError as error:
        channel.send(Failed(str(error)))
        sys.exit(1)
    channel.send(Bound())
    channel.send(Enforced(setup.snapshot.revision))
    return worker


def _first_message(channel: WorkerChannel) -> Setup:
    waiter = select.poll()
    waiter.register(channel.fileno(), select.POLLIN)
    while not channel.closed:
        waiter.poll()
        for message in channel.receive():
            if isinstance(message, Setup):
                return message
    sys.exit(1)


if __name__ == "__main__":
    main()
