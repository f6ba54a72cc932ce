"""Store of a host that works alone: documents in files and folders, and documents applied from the command line.

Files are polled, not watched by inotify: a poll costs a ``stat`` a file, and detects every kind of change on every file
system, also a folder that vanishes and comes back. Applied documents are in memory, and end with the agent.

Tasks of the store's own read the files and apply documents, and run to their end: no caller that stops waiting cancels
them. So a changed file is either delivered or refused with a reason, however long its reading takes.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer import __version__
from nfq_enforcer.cluster.records import (
    Address,
    Change,
    ClusterState,
    EndpointRecord,
    Kind,
    NodeRecord,
    changes_between,
    check_source,
    records_of,
)
from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.cluster.source import Applied, ChangeBatch, NodeStatus, Started
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Endpoint, Namespace, PolicyDocument
from nfq_enforcer.policy.file_cache import FileCache
from nfq_enforcer.policy.inspection import ParsedDocument
from nfq_enforcer.policy.loader import DocumentKey, Documents, File
from nfq_enforcer.policy.progress import Progress
from nfq_enforcer.tasks import Works, cancel

_log = logging.getLogger(__name__)

_Fingerprint = tuple[tuple[str, int, int, int], ...]
_MAX_POLLING = 0.2  # part of the time that polls may take: the poll of many files is repeated less often


class _AppliedDocument(NamedTuple):
    """_AppliedDocument: a document, and the source of workloads that it comes from (empty: a person)."""

    parsed: ParsedDocument
    source: str


_AppliedDocuments = Mapping[DocumentKey, _AppliedDocument]


class FileStore:
    """FileStore: documents in files and folders, read again after a change, and applied documents beside them.

    Identities are derived from the labels of all endpoints, so nodes with the same documents agree on them.
    """

    def __init__(self, paths: Iterable[Path], settings: NodeSettings, interval: float = 0.15) -> None:
        """Take files and folders, this node's settings, and the seconds between two polls; nothing is read yet."""
        self._paths = tuple(paths)
        self._settings = settings
        self._record = NodeRecord(settings.registered_addresses, __version__, settings.datapath)
        self._interval = interval
        self._seen: _Fingerprint | None = None  # of the last poll
        self._loaded: _Fingerprint | None = None  # of the last load
        self._state: ClusterState = {}  # the records of the last load
        self._applied: _AppliedDocuments = {}
        self._policies: tuple[PolicyDocument, ...] = ()
        self._changes: list[Change] = []
        self._available = asyncio.Event()  # set when changes are added
        self.progress = Progress()
        self._cache = FileCache(time.time)
        self._loading = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._changing = Works()
        self._refused: tuple[float, str] | None = None

    async def start(self) -> None:
        """Read all documents; raise BadInput with every error in them."""
        await self._load(self._applied)

    async def stop(self) -> None:
        """Stop following the files, which stay as they are."""
        await cancel(*self._changing.running, self._following)

    @property
    def refused(self) -> tuple[float, str] | None:
        """Return the time since which, and the reason for which, changed documents are refused; None if none are."""
        return self._refused

    @property
    def changing(self) -> bool:
        """Return whether a change of the applied documents is under way."""
        return bool(self._changing.running)

    @property
    def revision(self) -> int | None:
        """Return None: nodes that read the same files do not agree on a revision."""
        return None

    @property
    def mail(self) -> None:
        """Return None: this node is alone."""
        return None

    async def wait(self) -> None:
        """Return when documents have changed and are valid."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        while not self._changes:
            self._available.clear()
            await self._available.wait()

    async def _follow(self) -> None:
        """Read the files after each change of them; never return."""
        pause = self._interval
        while True:
            await asyncio.sleep(pause)
            async with self._loading:
                begun = time.monotonic()
                changed = await asyncio.to_thread(self.poll_files)
                pause = max(self._interval, (time.monotonic() - begun) / _MAX_POLLING)
                if changed:
                    await self._reload()

    async def _reload(self) -> None:
        try:
            await self._load(self._applied)
        except BadInput as error:
            self._refuse(str(error))
            _log.error("documents refused, those before stay in force: %s", error)
        except Exception:  # the entry point of a task: an internal error must not end it
            self._refuse("the agent failed at reading the documents; its log has the reason")
            _log.exception("reading the documents failed, those before stay in force")

    def _refuse(self, reason: str) -> None:
        self._refused = (time.time(), reason)

    def poll(self) -> ChangeBatch:
        """Return the changes since the last poll."""
        taken, self._changes = self._changes, []
        return ChangeBatch(taken, 0)

    def acknowledge(self, batch: ChangeBatch) -> None:
        """Do nothing: no other node depends on it."""

    def set_enforcing(self, *, enforcing: bool) -> None:
        """Do nothing: no other node depends on it."""

    async def register(self, addresses: tuple[Address, ...]) -> None:
        """Deliver the record of this node with other addresses."""
        async with self._loading:
            self._record = self._record._replace(addresses=addresses)
            key = Kind.NODE, self._settings.name
            self._state = {**self._state, key: self._record}
            self._deliver([Change(*key, self._record)])

    async def apply(self, files: Sequence[File], *, ignore_other_kinds: bool = False, source: str = "") -> Applied:
        """Apply the documents of files beside those in the folders, until this store ends."""
        async with self._loading:
            with self.progress.working("reading documents", time.time()):
                parsed = await asyncio.to_thread(
                    loader.parse_all, files, ignore_other_kinds=ignore_other_kinds, progress=self.progress
                )
        before = set(self._state)

        def with_documents() -> _AppliedDocuments:
            for item in parsed:
                self._check_source(item.document.key, source)
                item.document.set_origin(item.document.origin, item.document.data, source)
            return {**self._applied, **{item.document.key: _AppliedDocument(item, source) for item in parsed}}

        await self._change(with_documents)
        started = [self._started(item.document, before) for item in parsed if isinstance(item.document, Endpoint)]
        names = tuple("/".join(filter(None, item.document.key)) for item in parsed)
        return Applied(names, tuple(started), loader.group_documents(item.document for item in parsed).policies)

    def _started(self, document: Endpoint, before: Set[tuple[Kind, str]]) -> Started:
        full_name = f"{document.namespace}/{document.name}"
        record = self._state[Kind.ENDPOINT, full_name]
        assert isinstance(record, EndpointRecord)
        key = Kind.IDENTITY, str(record.identity)
        labels = self._state[key]
        assert isinstance(labels, Labels)
        return Started(full_name, record.identity, labels, key not in before)

    async def delete_policy(self, namespace: str, name: str, *, force: bool = False) -> None:
        """Delete the applied policies of this name; raise BadInput if no applied policy has it."""

        def without_policy() -> _AppliedDocuments:
            left = {
                key: item for key, item in self._applied.items() if key[1:] != (namespace, name) or _is_no_policy(key)
            }
            if len(left) == len(self._applied):
                raise BadInput(_not_applied(namespace, name, self._policies))
            for key in self._applied.keys() - left.keys() if not force else ():
                self._check_source(key, "")
            return left

        await self._change(without_policy)

    async def delete_endpoints(self, names: Sequence[str], *, source: str = "") -> list[str]:
        """Delete applied endpoints; return those that existed.

        Raise BadInput for one that comes from a file or from another source.
        """
        keys = {_endpoint_key(name): name for name in names}
        existing = [name for name in names if (Kind.ENDPOINT, name) in self._state]

        def without_endpoints() -> _AppliedDocuments:
            for key, name in keys.items():
                if key not in self._applied and name in existing:
                    raise BadInput(f"endpoint {name} comes from a file: remove it there")
                self._check_source(key, source)
            return {key: item for key, item in self._applied.items() if key not in keys}

        await self._change(without_endpoints)
        return existing

    async def delete_documents(self, names: Sequence[str], *, source: str) -> None:
        """Delete applied documents; raise BadInput for one that comes from a file or from another source."""
        keys = {_document_key(name) for name in names}

        def without_documents() -> _AppliedDocuments:
            for key in keys:
                self._check_source(key, source)
            return {key: item for key, item in self._applied.items() if key not in keys}

        await self._change(without_documents)

    def _check_source(self, key: DocumentKey, source: str) -> None:
        """Raise BadInput if the document comes from another source."""
        kind, namespace, name = key
        endpoint = Kind.ENDPOINT, f"{namespace}/{name}"
        record = self._state.get(endpoint if kind == "Endpoint" else (Kind.DOCUMENT, "/".join(key)))
        check_source(record if isinstance(record, EndpointRecord | PolicyDocument | Namespace) else None, source)

    async def enforced_by(self, revision: int, patience: float) -> list[NodeStatus]:
        """Return this node, the only one."""
        return [NodeStatus(self._settings.name, live=True)]

    async def status(self) -> None:
        """Return None: a host that works alone has no connection."""

    def connection(self) -> None:
        """Return None: a host that works alone has no connection."""

    async def _change(self, change: Callable[[], _AppliedDocuments]) -> None:
        """Replace the applied documents, one change at a time; raise BadInput without a change if they are invalid.

        The change goes on to its end, even if its caller is cancelled.
        """
        await self._changing.run(self._load_changed(change))

    async def _load_changed(self, change: Callable[[], _AppliedDocuments]) -> None:
        async with self._loading:
            await self._load(change())

    def poll_files(self) -> bool:
        """Return whether the files differ from the last load, and are unchanged since the last poll.

        So a file that is still being written is not read.
        """
        before, self._seen = self._seen, self._fingerprint()
        return self._seen == before and self._seen != self._loaded

    async def _load(self, applied: _AppliedDocuments) -> None:
        """Load all files and the applied documents; raise BadInput with every error in them.

        With other applied documents than before, refused changes of files still count as changes.
        """
        with self.progress.working("reading documents", time.time()):
            documents, state, changes = await asyncio.to_thread(self._read, applied)
        if changes:
            self._deliver(changes)
        self._state, self._policies, self._applied, self._refused = state, documents.policies, applied, None

    def _deliver(self, changes: Iterable[Change]) -> None:
        self._changes += changes
        self._available.set()

    def _read(self, applied: _AppliedDocuments) -> tuple[Documents, ClusterState, list[Change]]:
        if applied is self._applied:
            self._loaded = self._fingerprint()
        parsed = [one.parsed for one in applied.values()]
        documents = loader.load(self._paths, parsed, cache=self._cache, progress=self.progress)
        self.progress.stage("comparing documents")
        node = {(Kind.NODE, self._settings.name): self._record}
        settings, sources = self._settings, {key: one.source for key, one in applied.items()}
        state = {**node, **records_of(documents, settings.name, settings.relevant, settings.cluster, sources)}
        return documents, state, changes_between(self._state, state)

    def _fingerprint(self) -> _Fingerprint:
        return tuple(mark for path in self._paths for mark in _marks(path))


def _document_key(name: str) -> DocumentKey:
    kind, namespace, own_name = name.split("/")
    return kind, namespace, own_name


def _endpoint_key(name: str) -> DocumentKey:
    namespace, _, own_name = name.partition("/")
    return "Endpoint", namespace, own_name


def _is_no_policy(key: DocumentKey) -> bool:
    return key[0] in {"Endpoint", "Namespace"}


def _not_applied(namespace: str, name: str, policies: Iterable[PolicyDocument]) -> str:
    full_name = f"{namespace}/{name}" if namespace else name
    for policy in policies:
        if policy.key[1:] == (namespace, name):
            return f"policy {full_name} comes from {policy.origin}: remove it there"
    return f"there is no policy {full_name}; 'nfq-enforcer policy list' shows those there are"


def _marks(path: Path) -> Iterable[tuple[str, int, int, int]]:
    try:
        if not path.is_dir():
            yield _mark(path)
            return
        for folder, _, files in os.walk(path):  # like the loader, it follows no link to a folder
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
