"""The store of a host that works alone: files and folders of documents, and memory.

Files are looked at, not listened to: a look costs a ``stat`` a file, and sees every kind of change on every file
system, a folder that vanishes and comes back among them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from nfq_enforcer.policy import loader
from nfq_enforcer.policy.loader import Documents

_Print = tuple[tuple[str, int, int, int], ...]


class FolderStore:
    """Documents in files and folders, read again when something about them has changed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Take the files and folders; nothing is read yet."""
        self._paths = tuple(paths)
        self._seen: _Print | None = None  # at the last look
        self._loaded: _Print | None = None

    def changed(self) -> bool:
        """Look; say whether anything has changed since the last load, and has come to rest since the last look.

        A file that is still being written is not read half.
        """
        before, self._seen = self._seen, self._print()
        return self._seen == before and self._seen != self._loaded

    def load(self) -> Documents:
        """Return all documents; raise BadInput with every problem, if there is one."""
        self._loaded = self._print()
        return loader.load(self._paths)

    def _print(self) -> _Print:
        return tuple(mark for path in self._paths for mark in _marks(path))


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
