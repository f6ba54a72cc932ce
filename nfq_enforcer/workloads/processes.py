"""Processes of this host as endpoints: those of ``nfq-enforcer run``, and systemd units of the configuration.

A process endpoint has a cgroup in place of addresses. That of ``run`` is made for it and removed after its last
process; its endpoint ends a little later, so that the kernel still sends the data of closed sockets. That of a unit is
made by systemd, anew at each start of the unit. Docs: processes.md.

Endpoints of ``run`` are in a file as well, because their processes outlive the agent.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nfq_enforcer.cluster.replica import Cgroup
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.state_file import replace_text
from nfq_enforcer.text import printable
from nfq_enforcer.workloads.cgroup_watch import CgroupWatch
from nfq_enforcer.workloads.cgroups import Cgroups
from nfq_enforcer.workloads.endpoints import make_endpoint
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import PROCESS

_log = logging.getLogger(__name__)
_CHECK = 5.0  # s after which the cgroups are read again, also without an announcement
_LINGER = 5.0  # s from the last process to the end of its endpoint
_MAX_NAME = 150  # characters, so that the name of a folder has room for the namespace

Trees = Mapping[str, tuple[Cgroup, ...]]


@dataclass(frozen=True)
class Unit:
    """Unit: a cgroup that the configuration makes an endpoint."""

    cgroup: str
    name: str
    namespace: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Permission:
    """Permission: a user or group that may start processes with these labels, exactly, in this namespace."""

    uid: int | None
    gid: int | None
    namespace: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Caller:
    """Caller: the process that asks for an endpoint, as the kernel names it."""

    pid: int
    uid: int
    gids: frozenset[int]


@dataclass
class Run:
    """Run: an endpoint of ``nfq-enforcer run``."""

    namespace: str
    name: str
    labels: dict[str, str]
    cgroup: str
    number: int  # of the cgroup
    ended: float | None = field(default=None, compare=False)  # time on the steady clock since which it has no process

    @property
    def full_name(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"


class Processes:
    """Processes: the source of workloads for process endpoints."""

    name = PROCESS

    def __init__(
        self,
        registrar: Registrar,
        cgroups: Cgroups | None,
        parent: str,
        units: Iterable[Unit],
        permissions: Iterable[Permission],
        file: Path,
        linger: float = _LINGER,
    ) -> None:
        """Take the path of the cgroup above those of ``run``, and the file of their endpoints.

        ``cgroups`` None: this host has no cgroup2.
        """
        self._registrar = registrar
        self._cgroups = cgroups
        self._parent = parent
        self._units = tuple(units)
        self._permissions = tuple(permissions)
        self._file = file
        self._linger = linger
        self._runs: dict[str, Run] = {}  # by full name
        self._lock = asyncio.Lock()  # one change at a time
        self._enforcing = asyncio.Event()
        self.trees: Trees = {}
        self.note_trees: Callable[[Trees], None] = lambda trees: None  # for the next reconciliation
        self.reconcile: Callable[[], Awaitable[None]] = _reconcile_nothing
        self.is_enforced: Callable[[int], bool] = lambda number: True  # whether a cgroup has its endpoint in force

    def begin(self) -> None:
        """Follow the cgroups, and accept new processes: the agent enforces policy from now on."""
        self._enforcing.set()

    async def run(self) -> None:
        """Name all endpoints, then follow their cgroups; never return."""
        if self._cgroups is None:
            if self._units:
                self._registrar.note_problem(PROCESS, "this host has no cgroup2, which tells processes apart")
            self._registrar.replace(PROCESS, ())
            return
        self._load()
        self.trees = self._read_trees()
        self._registrar.replace(PROCESS, self._endpoints())
        await self._enforcing.wait()
        watch = CgroupWatch()
        try:
            while True:
                watch.follow(self._watched())
                await self._update()
                await watch.wait(min(_CHECK, self._linger) if self._lingering else _CHECK)
        finally:
            watch.close()

    def status(self) -> dict[str, Any]:
        """Return the cgroup above those of ``run``; None without cgroup2."""
        return {"cgroup": self._parent if self._cgroups else None}

    def problems(self) -> Iterable[str]:
        """Return no sentences: the caller of ``run`` has its problem as an answer."""
        return ()

    def changing(self) -> Iterable[str]:
        """Return no endpoints: a process has no interface of its own."""
        return ()

    def pids(self, cgroup: str) -> list[int]:
        """Return the processes of an endpoint's cgroup."""
        return self._cgroups.pids(cgroup) if self._cgroups is not None else []

    async def start(self, caller: Caller, namespace: str, name: str, labels: Mapping[str, str]) -> str:
        """Make the calling process an endpoint; return the endpoint's cgroup, once policy is enforced on it.

        Raise NfqError if it must not be one, or cannot.
        """
        if self._cgroups is None:
            raise NfqError("this host has no cgroup2, which tells processes apart: mount it (Linux 5.13 or later)")
        if not self._enforcing.is_set():
            raise NfqError("the agent is starting, and does not enforce policy yet: try again")
        self._authorize(caller, namespace, labels)
        if len(name) > _MAX_NAME:
            raise BadInput(f"--name: '{printable(name[:20])}…' is too long; allowed: at most {_MAX_NAME} characters")
        run = Run(namespace, name, dict(labels), f"{self._parent}/{namespace}.{name}", 0)
        endpoint = _document(run.namespace, run.name, run.labels, run.cgroup)
        async with self._lock:
            await self._start(self._cgroups, run, endpoint, caller.pid)
        _log.info("process %d of user %d is endpoint %s", caller.pid, caller.uid, run.full_name)
        return run.cgroup

    async def _start(self, cgroups: Cgroups, run: Run, endpoint: Endpoint, pid: int) -> None:
        known = self._runs.get(run.full_name)
        if known is not None and cgroups.is_populated(known.cgroup):
            pids = ", ".join(map(str, cgroups.pids(known.cgroup)))
            raise NfqError(f"endpoint {run.full_name} runs already (process {pids}): choose another --name")
        if known is None and any(unit.name == run.name and unit.namespace == run.namespace for unit in self._units):
            raise NfqError(f"endpoint {run.full_name} is a unit of the configuration: choose another --name")
        run.number = cgroups.make(run.cgroup).number
        try:
            self._runs[run.full_name] = run
            self._save()
            self._note_trees()
            self._registrar.put(PROCESS, endpoint)
            await self._registrar.settle()
            if problem := self._registrar.problems.get(run.full_name):
                raise NfqError(f"endpoint {run.full_name} is refused: {problem}")
            if not self.is_enforced(run.number):  # the endpoint is that of before, with another cgroup
                await self.reconcile()
            if not self.is_enforced(run.number):
                raise NfqError(f"endpoint {run.full_name} is not in force on this node: see 'nfq-enforcer status'")
            cgroups.move(pid, run.cgroup)
        except BaseException:
            self._forget(cgroups, run)
            raise

    def _authorize(self, caller: Caller, namespace: str, labels: Mapping[str, str]) -> None:
        if caller.uid == 0:
            return
        mine = [one for one in self._permissions if one.uid == caller.uid or one.gid in caller.gids]
        if not any(one.namespace == namespace and one.labels == labels for one in mine):
            allowed = "; ".join(_written(one.namespace, one.labels) for one in mine) or "none"
            raise NfqError(
                f"user {caller.uid} may not start {_written(namespace, labels)}; allowed by processes.allow in the "
                f"agent's configuration: {allowed}"
            )

    async def _update(self) -> None:
        """Read the cgroups, and end the endpoints of runs without processes."""
        async with self._lock:
            assert self._cgroups is not None  # ``run`` has returned without it
            now = time.monotonic()
            for run in list(self._runs.values()):
                if self._is_running(self._cgroups, run):
                    run.ended = None
                elif run.ended is None:
                    run.ended = now
                elif now - run.ended >= self._linger:
                    self._forget(self._cgroups, run)
            if self._note_trees():
                await self._registrar.settle()
                await self.reconcile()

    @property
    def _lingering(self) -> bool:
        return any(run.ended is not None for run in self._runs.values())

    def _is_running(self, cgroups: Cgroups, run: Run) -> bool:
        found = cgroups.find(run.cgroup)
        return found is not None and found.number == run.number and cgroups.is_populated(run.cgroup)

    def _forget(self, cgroups: Cgroups, run: Run) -> None:
        if self._runs.get(run.full_name) is run:
            del self._runs[run.full_name]
            self._save()
        cgroups.remove(run.cgroup)
        self._registrar.remove(PROCESS, run.full_name)

    def _note_trees(self) -> bool:
        """Note the present cgroups for the next reconciliation; return whether they have changed."""
        trees = self._read_trees()
        if trees == self.trees:
            return False
        self.trees = trees
        self.note_trees(trees)
        return True

    def _read_trees(self) -> Trees:
        """Return the cgroups of all endpoints; that above those of ``run`` only while it has any."""
        assert self._cgroups is not None  # see ``run`` and ``start``
        trees: dict[str, tuple[Cgroup, ...]] = {}
        if self._cgroups.children(self._parent):
            trees[self._parent] = tuple(filter(None, (self._cgroups.find(self._parent),)))
        for run in self._runs.values():  # a cgroup that another program has made below it has no identity
            trees[run.cgroup] = tuple(filter(None, (self._cgroups.find(run.cgroup),)))
        for unit in self._units:
            trees[unit.cgroup] = self._cgroups.tree(unit.cgroup)
        return trees

    def _watched(self) -> set[Path]:
        assert self._cgroups is not None  # see ``run``
        folders = {self._cgroups.folder(unit.cgroup) for unit in self._units}
        parents = {folder.parent for folder in folders}
        return folders | parents | {self._cgroups.folder(run.cgroup) / "cgroup.events" for run in self._runs.values()}

    def _endpoints(self) -> list[Endpoint]:
        named: list[Unit | Run] = [*self._units, *self._runs.values()]
        return [_document(one.namespace, one.name, one.labels, one.cgroup) for one in named]

    def _load(self) -> None:
        """Read the endpoints of an earlier agent, as far as their cgroups exist."""
        assert self._cgroups is not None  # see ``run``
        try:
            saved = [Run(**one) for one in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            _log.error("%s cannot be read, so processes of before have no endpoint: %s", self._file, error)
            return
        for run in saved:
            found = self._cgroups.find(run.cgroup)
            if found is not None and found.number == run.number:
                run.ended = None
                self._runs[run.full_name] = run

    def _save(self) -> None:
        runs = [{name: value for name, value in asdict(run).items() if name != "ended"} for run in self._runs.values()]
        try:
            replace_text(self._file, json.dumps(runs))
        except OSError as error:
            raise NfqError(f"{self._file} cannot be written: {error.strerror}") from None


async def _reconcile_nothing() -> None:
    """Enforce nothing."""


def _document(namespace: str, name: str, labels: Mapping[str, str], cgroup: str) -> Endpoint:
    return make_endpoint(namespace, name, labels, (), cgroup=cgroup)


def _written(namespace: str, labels: Mapping[str, str]) -> str:
    text = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"
    return printable(f"{text} in namespace {namespace}")
