"""Name learner: gives the addresses that one worker has read in a DNS answer to all workers, and keeps them.

A worker with siblings holds an answer with new addresses until every worker has them: the connection that follows may
meet any of them. The learner tells it when that is the case. Names are saved in a file, at intervals and at the end, so
that they outlive the agent.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nfq_enforcer.cluster.learned_names import LearnedName, LearnedNames
from nfq_enforcer.core.dns import is_learnable
from nfq_enforcer.core.tables.names import NameChange, expiry
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.worker.process import WorkerProcess
from nfq_enforcer.dataplane.worker.reports import NamesLearned
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError
from nfq_enforcer.state_file import replace_text
from nfq_enforcer.tasks import Works, cancel

_log = logging.getLogger(__name__)
_INTERVAL = 30.0  # s between two runs of collection and saving
_MAX_FILE = 64 << 20  # bytes


class NameLearner:
    """Name learner of a node."""

    def __init__(self, workers: Workers, snapshot: Callable[[], Snapshot], file: Path, min_ttl: float) -> None:
        """Set the parts; ``snapshot`` returns that of the last view, without peers."""
        self.names = LearnedNames()
        self.held = 0  # answers that waited for all workers, so far
        self._workers = workers
        self._snapshot = snapshot
        self._file = file
        self._min_ttl = min_ttl
        self._works = Works()
        self._running: asyncio.Task[None] | None = None
        self._saved = ""
        self._failing = False

    async def start(self) -> None:
        """Read the saved names, for the workers that start next."""
        await self._workers.change_names(await asyncio.to_thread(self._read))

    def begin(self) -> None:
        """Collect and save at intervals from now on."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, and save the names."""
        await cancel(self._running, *self._works.running)
        await asyncio.to_thread(self._save)

    def learn(self, worker: WorkerProcess, report: NamesLearned) -> None:
        """Learn the addresses of a report, and let the worker know when all workers have them."""
        snapshot = self._snapshot().with_tables(self._workers.peers, frozenset())
        endpoint = snapshot.endpoints.get(report.client)
        now = time.monotonic()
        changes: list[NameChange] = []
        if endpoint is not None:
            learnable = [
                (address, expiry(now, ttl, self._min_ttl))
                for address, ttl in report.addresses
                if is_learnable(snapshot, address)
            ]
            changes = self.names.learn(endpoint.name, report.name, learnable)
        if report.number:
            self.held += 1
        self._works.start(self._spread(worker, report.number, changes))

    async def _spread(self, worker: WorkerProcess, number: int, changes: Iterable[NameChange]) -> None:
        with suppress(NfqError):  # the worker drops the answer when its time is over
            await self._workers.change_names(changes)
            if number:
                worker.release(number)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            endpoints = {endpoint.name for endpoint in self._snapshot().endpoints.values()}
            with suppress(NfqError):  # a worker that does not answer is replaced, and starts with all names
                await self._workers.change_names(self.names.collect(time.monotonic(), endpoints))
            await asyncio.to_thread(self._save)

    def _save(self) -> None:
        """Write the names to the file, whole or not at all."""
        epoch = time.time() - time.monotonic()
        rows = [
            (learned.endpoint, learned.name, {a.hex(): round(t + epoch) for a, t in tuple(learned.addresses.items())})
            for learned in tuple(self.names)
        ]
        text = json.dumps(rows)
        if text == self._saved or not (rows or self._saved):
            return
        try:
            replace_text(self._file, text)
        except OSError as error:
            if not self._failing:
                _log.warning("the names learned from DNS cannot be saved in %s: %s", self._file, error.strerror)
            self._failing = True
        else:
            self._saved, self._failing = text, False

    def _read(self) -> list[NameChange]:
        """Return the changes of the saved names; without a readable file, none."""
        try:
            with self._file.open("rb") as file:
                rows = json.loads(file.read(_MAX_FILE))
            saved = list(map(_saved_name, rows))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _log.warning("the names learned from DNS in %s cannot be read, and begin anew: %s", self._file, error)
            return []
        now, epoch = time.monotonic(), time.time() - time.monotonic()
        changes: list[NameChange] = []
        for learned in saved:
            addresses = [(address, expires - epoch) for address, expires in learned.addresses.items()]
            changes += self.names.learn(learned.endpoint, learned.name, addresses)
        return changes + self.names.collect(now, {learned.endpoint for learned in saved})


def _saved_name(row: Any) -> LearnedName:
    endpoint, name, addresses = row
    if not (isinstance(endpoint, str) and isinstance(name, str)):
        raise ValueError("a name is no text")
    return LearnedName(endpoint, name, {ip_address(bytes.fromhex(a)).packed: float(t) for a, t in addresses.items()})
