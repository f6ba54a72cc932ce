"""The store of a host that works alone: files and folders of documents, and what is applied from the command line.

Files are looked at, not listened to: a look costs a ``stat`` a file, and sees every kind of change on every file
system, a folder that vanishes and comes back among them. What is applied lives in memory, as long as the agent does.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from nfq_enforcer import __version__
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import enforceable, loader
from nfq_enforcer.policy.loader import Documents, File, Key, Parsed
from nfq_enforcer.store.records import Change, Kind, NodeRecord, State, changes_between, described
from nfq_enforcer.store.replica import NodeSettings

_Print = tuple[tuple[str, int, int, int], ...]


Applied = Mapping[Key, Parsed]


class MemoryStore:
    """Documents in files and folders, read again when something about them has changed, and those applied.

    Identities are derived from the labels of all endpoints, so nodes that have the same documents agree on them.
    """

    def __init__(self, paths: Iterable[Path], settings: NodeSettings) -> None:
        """Take the files and folders, and which node this is; nothing is read yet."""
        self._paths = tuple(paths)
        self._settings = settings
        self._seen: _Print | None = None  # at the last look
        self._loaded: _Print | None = None
        self._state: State = {}  # as it was handed out
        self.applied: Applied = {}
        self.documents = Documents()  # as they were loaded last

    def changed(self) -> bool:
        """Look; say whether anything has changed since the last load, and has come to rest since the last look.

        A file that is still being written is not read half.
        """
        before, self._seen = self._seen, self._print()
        return self._seen == before and self._seen != self._loaded

    def load(self, applied: Applied | None = None) -> list[Change]:
        """Take all documents, with those applied (or these instead); return what has changed since the last time.

        Raise BadInput with every problem there is; then nothing is taken, and if it was with others than those applied,
        what has changed in files meanwhile still counts as changed.
        """
        chosen = self.applied if applied is None else applied
        if chosen is self.applied:
            self._loaded = self._print()
        documents = loader.load(self._paths, chosen.values())
        enforceable.check(documents.policies)
        node = {(Kind.NODE, self._settings.name): NodeRecord(self._settings.addresses, __version__)}
        state: State = {**node, **described(documents, self._settings.name, self._settings.relevant)}
        changes = changes_between(self._state, state)
        self._state, self.documents, self.applied = state, documents, chosen
        return changes

    def with_files(self, files: Iterable[File]) -> Applied:
        """Return what is applied once these files are too; raise BadInput for all that is wrong with them."""
        return {**self.applied, **{one.document.key: one for one in loader.parse_all(files)}}

    def without(self, namespace: str, name: str) -> Applied:
        """Return what is applied once the policies of this name are not; raise BadInput where none was applied."""
        left = {key: one for key, one in self.applied.items() if key[1:] != (namespace, name)}
        if len(left) == len(self.applied):
            raise BadInput(_not_applied(namespace, name, self.documents))
        return left

    def _print(self) -> _Print:
        return tuple(mark for path in self._paths for mark in _marks(path))


def _not_applied(namespace: str, name: str, known: Documents) -> str:
    called = f"{namespace}/{name}" if namespace else name
    for policy in known.policies:
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
