"""The store of a host that works alone: files and folders of documents, and what is applied from the command line.

Files are looked at, not listened to: a look costs a ``stat`` a file, and sees every kind of change on every file
system, a folder that vanishes and comes back among them. What is applied lives in memory, as long as the agent does.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path

from nfq_enforcer import __version__
from nfq_enforcer.cluster.records import (
    Change,
    ClusterState,
    EndpointRecord,
    Kind,
    NodeRecord,
    changes_between,
    described,
)
from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.cluster.source import Applied, ChangeBatch, NodeStatus, Started
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import enforceable, loader
from nfq_enforcer.policy.documents import Endpoint, PolicyDocument
from nfq_enforcer.policy.loader import DocumentKey, Documents, File, ParsedDocument

_log = logging.getLogger(__name__)
_LOOK = 0.15  # seconds between two looks at the documents

_Print = tuple[tuple[str, int, int, int], ...]
_Applied = Mapping[DocumentKey, ParsedDocument]


class FileStore:
    """Documents in files and folders, read again when something about them has changed, and those applied.

    Identities are derived from the labels of all endpoints, so nodes that have the same documents agree on them.
    """

    def __init__(self, paths: Iterable[Path], settings: NodeSettings) -> None:
        """Take the files and folders, and which node this is; nothing is read yet."""
        self._paths = tuple(paths)
        self._settings = settings
        self._seen: _Print | None = None  # at the last look
        self._loaded: _Print | None = None
        self._state: ClusterState = {}  # as it was handed over, or waits to be
        self._applied: _Applied = {}
        self._policies: tuple[PolicyDocument, ...] = ()
        self._changes: list[Change] = []
        self._loading = asyncio.Lock()
        self._refused: tuple[float, str] | None = None

    async def start(self) -> None:
        """Read all documents; raise BadInput with every problem there is."""
        await self._load(self._applied)

    async def stop(self) -> None:
        """Leave the files as they are."""

    @property
    def refused(self) -> tuple[float, str] | None:
        """Return since when, and why, changed documents are not taken."""
        return self._refused

    @property
    def revision(self) -> int | None:
        """Return None: nodes that read the same files agree on no number."""
        return None

    async def wait(self) -> None:
        """Return when documents have changed and are right."""
        while not self._changes:
            await asyncio.sleep(_LOOK)
            async with self._loading:
                if self.changed():
                    await self._reload()

    async def _reload(self) -> None:
        try:
            await self._load(self._applied)
        except BadInput as error:
            self._refused = (time.time(), str(error))
            _log.error("documents refused, those before stay in force: %s", error)

    def poll(self) -> ChangeBatch:
        """Return the changes since the last time."""
        taken, self._changes = self._changes, []
        return ChangeBatch(taken, 0)

    def acknowledge(self, handed: ChangeBatch) -> None:
        """Note nothing: nobody else asks."""

    async def apply(self, files: Sequence[File]) -> Applied:
        """Take files of documents beside those in the folders; they last as long as this store."""
        parsed = await asyncio.to_thread(loader.parse_all, files)
        known = set(self._state)
        await self._change(lambda: {**self._applied, **{one.document.key: one for one in parsed}})
        started = [self._started(one.document, known) for one in parsed if isinstance(one.document, Endpoint)]
        return Applied(tuple("/".join(filter(None, one.document.key)) for one in parsed), tuple(started))

    def _started(self, document: Endpoint, known: Set[tuple[Kind, str]]) -> Started:
        called = f"{document.namespace}/{document.name}"
        record = self._state[Kind.ENDPOINT, called]
        assert isinstance(record, EndpointRecord)
        key = Kind.IDENTITY, str(record.identity)
        labels = self._state[key]
        assert isinstance(labels, Labels)
        return Started(called, record.identity, labels, key not in known)

    async def delete_policy(self, namespace: str, name: str) -> None:
        """Take back policies of this name that were applied; raise BadInput where none was."""

        def without() -> _Applied:
            left = {key: one for key, one in self._applied.items() if key[1:] != (namespace, name) or _is_other(key)}
            if len(left) == len(self._applied):
                raise BadInput(_not_applied(namespace, name, self._policies))
            return left

        await self._change(without)

    async def delete_endpoints(self, names: Sequence[str]) -> list[str]:
        """Take back endpoints that were applied; raise BadInput for one that comes from a file."""
        keys = {("Endpoint", *name.split("/", 1)): name for name in names}
        there = [name for name in names if (Kind.ENDPOINT, name) in self._state]
        applied = [name for key, name in keys.items() if key in self._applied]
        for name in there:
            if name not in applied:
                raise BadInput(f"endpoint {name} comes from a file: remove it there")
        await self._change(lambda: {key: one for key, one in self._applied.items() if key not in keys})
        return there

    async def enforced_by(self, revision: int, patience: float) -> list[NodeStatus]:
        """Return this node, the only one there is."""
        return [NodeStatus(self._settings.name, live=True)]

    async def status(self) -> None:
        """Return None: there is no connection."""

    async def _change(self, change: Callable[[], _Applied]) -> None:
        """Have other documents applied, one change at a time; raise BadInput, and change nothing, if they are wrong."""
        async with self._loading:
            await self._load(change())

    def changed(self) -> bool:
        """Look; say whether anything has changed since the last load, and has come to rest since the last look.

        A file that is still being written is not read half.
        """
        before, self._seen = self._seen, self._print()
        return self._seen == before and self._seen != self._loaded

    async def _load(self, applied: _Applied) -> None:
        """Take all documents, with these applied; raise BadInput with every problem there is.

        If it is others than those applied now, what has changed in files and is refused still counts as changed.
        """
        if applied is self._applied:
            self._loaded = self._print()
        documents, state = await asyncio.to_thread(self._read, applied)
        self._changes += changes_between(self._state, state)
        self._state, self._policies, self._applied, self._refused = state, documents.policies, applied, None

    def _read(self, applied: _Applied) -> tuple[Documents, ClusterState]:
        documents = loader.load(self._paths, applied.values())
        enforceable.check(documents.policies)
        node = {(Kind.NODE, self._settings.name): self._record()}
        return documents, {**node, **described(documents, self._settings.name, self._settings.relevant)}

    def _record(self) -> NodeRecord:
        return NodeRecord(self._settings.addresses, __version__, self._settings.datapath)

    def _print(self) -> _Print:
        return tuple(mark for path in self._paths for mark in _marks(path))


def _is_other(key: DocumentKey) -> bool:
    return key[0] in {"Endpoint", "Namespace"}


def _not_applied(namespace: str, name: str, known: Iterable[PolicyDocument]) -> str:
    called = f"{namespace}/{name}" if namespace else name
    for policy in known:
        if policy.key[1:] == (namespace, name):
            return f"policy {called} comes from {policy.origin}: remove it there"
    return f"there is no policy {called}; 'nfq-enforcer policy list' shows those there are"


def _marks(path: Path) -> Iterable[tuple[str, int, int, int]]:
    try:
        if not path.is_dir():
            yield _mark(path)
            return
        for folder, _, files in os.walk(path):  # as the loader does, which follows no link to a folder
            yield _mark(Path(folder))
            for name in sorted(files):
                yield _mark(Path(folder, name))
    except OSError:
        yield (str(path), 0, 0, 0)


def _mark(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (str(path), 0, 0, 0)
    return (str(path), status.st_mtime_ns, status.st_size, status.st_ino)
