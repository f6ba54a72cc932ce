"""All workers of this node: each receives the same messages, and a revision is in force when it is so in all of them.

The kernel spreads packets over the workers by their addresses (see ``QueueNumbers``). So each worker has flows of its
own, and a worker that dies loses only these: it alone is replaced, and the others continue. The current state, which a
new worker needs, is kept here once.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables import identities as identity_table
from nfq_enforcer.core.tables import ipcache
from nfq_enforcer.core.tables.identities import IdentityChange
from nfq_enforcer.core.tables.ipcache import Peer, PeerChange
from nfq_enforcer.core.tables.names import NameChange, NameTable
from nfq_enforcer.core.tables.slots import SlotChange, SlotKey
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, allocate_queues, max_workers
from nfq_enforcer.dataplane.worker.channel import (
    IdentityChanges,
    ImportFlows,
    NameChanges,
    PeerChanges,
    Revision,
    Setup,
    SlotChanges,
    StartCapture,
    StopCapture,
    encode,
)
from nfq_enforcer.dataplane.worker.flow_list import FlowList, FlushFlows
from nfq_enforcer.dataplane.worker.map_transfer import MapSender, portions
from nfq_enforcer.dataplane.worker.packet_reports import PacketFilter, Packets
from nfq_enforcer.dataplane.worker.process import DetachedWorker, WorkerProcess
from nfq_enforcer.dataplane.worker.reports import Events, NamesLearned, SlotWanted
from nfq_enforcer.dataplane.worker.state import WorkerState
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS, WorkerTimings
from nfq_enforcer.errors import NfqError

_MAX_DEFAULT = 8  # workers, unless the configuration has a number
_CHANGES_A_MESSAGE = 500  # changes of peers or identities: the worker applies them in well under a millisecond


def default_number(first_queue: int) -> int:
    """Return the number of workers for this machine: half of its cores, because senders and receivers need some too."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores // 2, _MAX_DEFAULT, max_workers(first_queue)))


class Workers:
    """Workers: all worker processes of this node, started, changed and stopped together."""

    def __init__(
        self,
        number: int | None,
        first_queue: int,
        max_flows: int,
        on_events: Callable[[Events], None],
        *,
        driver: Driver = Driver.AUTO,
        fail_open: bool = False,
        min_ttl: float = 0.0,
        timings: WorkerTimings = DEFAULT_TIMINGS,
    ) -> None:
        """Keep the configuration; start nothing yet.

        ``number`` is None for as many as suit driver and machine. The workers share ``max_flows`` evenly. ``min_ttl``:
        s for which an address that DNS has named counts at least.
        """
        self._configured_number = number
        if number is None:
            number = 1 if driver is Driver.NETFILTERQUEUE else default_number(first_queue)
        self.driver = driver  # once started: the one in use
        self.first_queue = first_queue
        self._max_flows = max_flows
        self._fail_open = fail_open
        self._timings = timings
        self._snapshot: Snapshot | None = None
        self._maps = MapSender()
        self._peers: dict[bytes, Peer] = {}
        self._identities: set[Identity] = set()
        self._names = NameTable()
        self._slots: dict[SlotKey, SlotChange] = {}
        self._changes_number = 0  # of names and slots
        self._min_ttl = min_ttl
        self._on_events = on_events
        self.on_learned: Callable[[WorkerProcess, NamesLearned], None] = lambda worker, report: None
        self.on_slot_wanted: Callable[[SlotKey], None] = lambda key: None
        self.on_packets: Callable[[WorkerProcess, Packets], None] = lambda worker, report: None
        self.processes = self._make_processes(number)

    @property
    def queues(self) -> tuple[QueueNumbers, ...]:
        """Return the queue numbers of each worker."""
        return tuple(worker.queues for worker in self.processes)

    @property
    def revision(self) -> int:
        """Return the newest revision that has been sent to the workers, 0 before the first."""
        return self._snapshot.revision if self._snapshot is not None else 0

    @property
    def peers(self) -> Mapping[bytes, Peer]:
        """Return the peers that have been sent to the workers."""
        return self._peers

    @property
    def restarts(self) -> int:
        """Return how often a worker has been replaced, in sum."""
        return sum(worker.restarts for worker in self.processes)

    @property
    def verdicts(self) -> int:
        """Return the number of verdicts, one a packet."""
        return sum(worker.counters.verdicts for worker in self.processes)

    @property
    def state(self) -> WorkerState:
        """Return the state of all workers together: counters in sum, the process id of the first."""
        each = [worker.state for worker in self.processes]
        return WorkerState(
            tuple(sorted(number for one in each for number in one.queues)),
            each[0].pid,
            self.restarts,
            next((one.failure for one in each if one.failure), None),
            {name: sum(one.counters[name] for one in each) for name in each[0].counters},
            next((one.stuck for one in each if one.stuck), None),
        )

    async def start(self, snapshot: Snapshot, peers: Mapping[bytes, Peer], identities: Set[Identity]) -> None:
        """Start all workers and return when all queues are bound; raise NfqError if one cannot be bound.

        The first worker tries which driver works on this kernel; the others use the same.
        """
        self._snapshot, self._peers, self._identities = snapshot, dict(peers), set(identities)
        for _ in self._maps.add(snapshot):  # no worker runs yet: each receives all chunks when it starts
            pass
        await self.processes[0].start()
        self.driver = self.processes[0].driver
        if self.driver is Driver.NETFILTERQUEUE and len(self.processes) > 1:
            await self._restart_single()
        started = await asyncio.gather(*(worker.start() for worker in self.processes[1:]), return_exceptions=True)
        for error in filter(None, started):
            raise error

    def change_peers(self, changes: Iterable[PeerChange]) -> None:
        """Send changes of peers; they are in force with the next snapshot or renewal, if not earlier."""
        for portion in portions(changes, _CHANGES_A_MESSAGE):
            ipcache.apply_changes(self._peers, portion)
            self._send(PeerChanges(portion))

    def change_identities(self, changes: Iterable[IdentityChange]) -> None:
        """Send changes of the cluster's identities; each worker applies them as soon as it receives them."""
        for portion in portions(changes, _CHANGES_A_MESSAGE):
            identity_table.apply_changes(self._identities, portion)
            self._send(IdentityChanges(portion))

    async def change_names(self, changes: Iterable[NameChange]) -> None:
        """Send changes of the names of addresses, and return when all workers have them; raise NfqError if one has not.

        Without workers, those that start have them.
        """
        portioned = list(portions(changes, _CHANGES_A_MESSAGE))
        for portion in portioned:
            self._names.apply(portion)
            self._changes_number += 1
            self._send(NameChanges(self._changes_number, portion))
        if portioned:
            await self._wait_applied()

    async def change_slots(self, changes: Sequence[SlotChange]) -> None:
        """Send changes of the proxy's slots, and return when all workers have them; raise NfqError if one has not.

        Without workers, those that start have them.
        """
        for change in changes:
            self._slots.pop(change.key, None)
            if change.slot:
                self._slots[change.key] = change
        self._changes_number += 1
        self._send(SlotChanges(self._changes_number, tuple(changes)))
        await self._wait_applied()

    async def _wait_applied(self) -> None:
        running = (worker for worker in self.processes if worker.pid is not None)
        await asyncio.gather(*(worker.wait_applied(self._changes_number) for worker in running))

    async def enforce(self, snapshot: Snapshot) -> None:
        """Send a snapshot and return when it decides every packet; raise NfqError if that takes too long."""
        self._snapshot = snapshot
        for chunk in self._maps.add(snapshot):
            self._send(chunk)
        self._send(self._maps.refer(snapshot))
        self._send(self._maps.retain(snapshot))  # after the reference: until then the old snapshot uses its entries
        await self._wait_enforced(snapshot.revision)

    async def renew(self, revision: int, epoch: int | None = None) -> None:
        """Make the workers evaluate known flows again, by the same snapshot under this revision, in this epoch.

        Return when the revision is in force; raise NfqError if that takes too long.
        """
        assert self._snapshot is not None
        self._snapshot = self._snapshot.with_revision(revision, epoch)
        self._send(Revision(revision, epoch))
        await self._wait_enforced(revision)

    def import_flows(self) -> None:
        """Make the workers import the kernel's flows once more, after a hand-over."""
        self._send(ImportFlows())

    async def detach(self) -> tuple[DetachedWorker, ...]:
        """Stop watching the workers, which go on returning verdicts; return those that run."""
        return tuple(filter(None, await asyncio.gather(*(worker.detach() for worker in self.processes))))

    async def list_flows(
        self, sources: frozenset[bytes] | None = None, targets: frozenset[bytes] | None = None
    ) -> list[FlowList | None]:
        """Return the flows of each worker, as ``WorkerProcess.list_flows`` does."""
        return await asyncio.gather(*(worker.list_flows(sources, targets) for worker in self.processes))

    def flush_flows(self) -> None:
        """Make the workers forget their flows; an established one is evaluated at its next packet."""
        self._send(FlushFlows())

    def start_capture(self, number: int, packet_filter: PacketFilter, snaplen: int, rate: int, lease: float) -> None:
        """Start or renew a capture for ``lease`` s; ``rate``: packets a second, which the workers share evenly."""
        share = -(-rate // len(self.processes))
        self._send(StartCapture(number, packet_filter, snaplen, share, lease))

    def stop_capture(self, number: int) -> None:
        """End a capture."""
        self._send(StopCapture(number))

    async def stop(self) -> None:
        """Stop all workers, after verdicts for waiting packets."""
        await asyncio.gather(*(worker.stop() for worker in self.processes))

    def _send(self, message: object) -> None:
        encoded = encode(message)
        for worker in self.processes:
            worker.send(encoded)

    async def _wait_enforced(self, revision: int) -> None:
        await asyncio.gather(*(worker.wait_enforced(revision) for worker in self.processes))

    async def _restart_single(self) -> None:
        """Start one worker in place of several: the driver ``netfilterqueue`` has a single queue."""
        if self._configured_number is not None:
            raise NfqError(
                "this kernel's NFQUEUE cannot do what the driver 'netlink' needs, and 'netfilterqueue' has no more "
                f"than one worker, not {self._configured_number}: choose queues 'auto' or 1"
            )
        await self.stop()
        self.processes = self._make_processes(1)
        await self.processes[0].start()

    def _make_processes(self, number: int) -> tuple[WorkerProcess, ...]:
        return tuple(
            WorkerProcess(
                *(queues, partial(self._setup_messages, index), self._on_events, self._on_request),
                self._timings,
            )
            for index, queues in enumerate(allocate_queues(self.first_queue, number))
        )

    def _on_request(self, worker: WorkerProcess, report: NamesLearned | SlotWanted | Packets) -> None:
        if isinstance(report, Packets):
            self.on_packets(worker, report)
        elif isinstance(report, SlotWanted):
            self.on_slot_wanted(report.key)
        else:
            self.on_learned(worker, report)

    def _setup_messages(self, index: int) -> Iterator[bytes]:
        """Yield the first messages for a worker that starts: the chunks of all policy maps, then its setup."""
        assert self._snapshot is not None
        yield from map(encode, self._maps.chunks())
        next_worker = self.processes[index + 1].queues.openings if index + 1 < len(self.processes) else None
        yield encode(
            Setup(
                self.driver,
                self.processes[index].queues,
                next_worker,
                self._fail_open,
                -(-self._max_flows // len(self.processes)),  # rounded up
                self._maps.refer(self._snapshot),
                self._peers,
                self._identities,
                tuple(self._names),
                len(self.processes) == 1,
                self._min_ttl,
                tuple(self._slots.values()),
                self._changes_number,
                self._timings,
            )
        )
