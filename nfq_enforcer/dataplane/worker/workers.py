"""All workers of this node, as one: each is told the same, and what is in force is so in all of them.

The kernel spreads packets over the workers by their addresses (see ``nfqueue.Numbers``). So each has flows of its own,
and a worker that dies takes only these along: it is replaced alone, and the others go on. What all are told is kept
here once, for the one that starts next.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice

from nfq_enforcer.core.tables import ipcache
from nfq_enforcer.core.tables.ipcache import Peer, PeerChange
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.queue import drivers, library_queue
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, in_rows, most_workers
from nfq_enforcer.dataplane.worker.channel import Events, Peers, Revision, Setup, encode
from nfq_enforcer.dataplane.worker.map_transfer import MapSender
from nfq_enforcer.dataplane.worker.process import WorkerProcess
from nfq_enforcer.errors import NfqError

_MOST = 8  # workers that nobody has asked for
_PEERS = 500  # changes to a message: the worker takes one in well under a millisecond


def fitting(first_queue: int) -> int:
    """Return how many workers suit this machine: half of its cores, because who sends and receives needs some too."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores // 2, _MOST, most_workers(first_queue)))


class Workers:
    """The workers, started and stopped together."""

    def __init__(
        self,
        number: int | None,
        first_queue: int,
        maximum_flows: int,
        on_events: Callable[[Events], None],
        *,
        driver: str = drivers.AUTO,
        fail_open: bool = False,
    ) -> None:
        """Say what the workers shall be; nothing is started yet.

        ``number`` is None for as many as suit driver and machine. ``maximum_flows`` they share evenly.
        """
        self._asked = number
        if number is None:
            number = 1 if driver == library_queue.DRIVER else fitting(first_queue)
        self.driver = driver  # from the start on, that which was chosen
        self.first_queue = first_queue
        self._maximum_flows = maximum_flows
        self._fail_open = fail_open
        self._snapshot: Snapshot | None = None
        self._maps = MapSender()
        self._peers: dict[bytes, Peer] = {}
        self._on_events = on_events
        self.each = self._processes(number)

    @property
    def queues(self) -> tuple[QueueNumbers, ...]:
        """Return the queues of each."""
        return tuple(worker.queues for worker in self.each)

    @property
    def peers(self) -> Mapping[bytes, Peer]:
        """Return the peers that the workers have, or are about to have."""
        return self._peers

    @property
    def restarts(self) -> int:
        """Return how often any of them has been replaced."""
        return sum(worker.restarts for worker in self.each)

    @property
    def failure(self) -> str | None:
        """Return why a worker cannot be replaced at the moment."""
        return next((worker.failure for worker in self.each if worker.failure), None)

    @property
    def judged(self) -> int:
        """Return how many packets have had their verdict."""
        return sum(worker.counters.judged for worker in self.each)

    def read(self) -> Mapping[str, int]:
        """Return what they count, in sum."""
        counted = [worker.counters.read() for worker in self.each]
        return {name: sum(one[name] for one in counted) for name in counted[0]}

    async def start(self, snapshot: Snapshot, peers: Mapping[bytes, Peer]) -> None:
        """Start all and return when all queues are bound; raise NfqError if one cannot be.

        The first finds out which driver works here, and that is everybody's.
        """
        self._snapshot, self._peers = snapshot, dict(peers)
        for _ in self._maps.add(snapshot):  # each is sent them when it starts
            pass
        await self.each[0].start()
        self.driver = self.each[0].driver
        if self.driver == library_queue.DRIVER and len(self.each) > 1:
            await self._start_one()
        started = await asyncio.gather(*(worker.start() for worker in self.each[1:]), return_exceptions=True)
        for failed in filter(None, started):
            raise failed

    def change_peers(self, changes: Iterable[PeerChange]) -> None:
        """Send changes of peers; they are in force, at the latest, with the next snapshot or renewal."""
        rest = iter(changes)
        while some := tuple(islice(rest, _PEERS)):
            ipcache.change(self._peers, some)
            self._send(Peers(some))

    async def enforce(self, snapshot: Snapshot) -> None:
        """Send a snapshot and return when every packet is judged by it; raise NfqError if that takes too long."""
        self._snapshot = snapshot
        for piece in self._maps.add(snapshot):
            self._send(piece)
        self._send(self._maps.name(snapshot))
        self._send(self._maps.keep(snapshot))
        await self._taken(snapshot.revision)

    async def renew(self, revision: int, epoch: int | None = None) -> None:
        """Have known flows judged again, by the same snapshot under this revision number, in this epoch.

        Return when they are; raise NfqError if that takes too long.
        """
        assert self._snapshot is not None
        self._snapshot = self._snapshot.renewed(revision, epoch)
        self._send(Revision(revision, epoch))
        await self._taken(revision)

    async def stop(self) -> None:
        """Have all answer what waits and end."""
        await asyncio.gather(*(worker.stop() for worker in self.each))

    def _send(self, message: object) -> None:
        encoded = encode(message)
        for worker in self.each:
            worker.send(encoded)

    async def _taken(self, revision: int) -> None:
        await asyncio.gather(*(worker.taken(revision) for worker in self.each))

    async def _start_one(self) -> None:
        """Start one worker instead of several, to which all flows belong: the library has but one queue."""
        if self._asked is not None:
            raise NfqError(
                "this kernel's NFQUEUE cannot do what the driver 'netlink' needs, and 'netfilterqueue' has no more "
                f"than one worker, not {self._asked}: choose queues 'auto' or 1"
            )
        await self.stop()
        self.each = self._processes(1)
        await self.each[0].start()

    def _processes(self, number: int) -> tuple[WorkerProcess, ...]:
        return tuple(
            WorkerProcess(queues, partial(self._setup, place), self._on_events)
            for place, queues in enumerate(in_rows(self.first_queue, number))
        )

    def _setup(self, place: int) -> Iterator[bytes]:
        """Yield what a worker that starts is sent."""
        assert self._snapshot is not None
        yield from map(encode, self._maps.pieces())
        following = self.each[place + 1].queues.judged if place + 1 < len(self.each) else None
        flows = -(-self._maximum_flows // len(self.each))
        snapshot = self._maps.name(self._snapshot)
        yield encode(
            Setup(self.driver, self.each[place].queues, following, self._fail_open, flows, snapshot, self._peers)
        )
