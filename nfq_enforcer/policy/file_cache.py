"""Cache of inspected files: a load parses only the files that have changed since the load before."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from nfq_enforcer.policy.inspection import Inspection

_AT_REST = 0.1  # s since the last write; the kernel's clock for files makes steps of up to 10 ms


class FileMark(NamedTuple):
    """FileMark: the attributes of a file that differ after every change of it."""

    device: int
    inode: int
    size: int
    modified: int  # ns since the epoch
    changed: int  # ns since the epoch: of content, owner, links or mode; no program can set it


class FileCache:
    """FileCache: the inspections of files by path, each valid for one mark of its file."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start empty; ``clock`` returns the time in seconds since the epoch, as the marks of files have it."""
        self._clock = clock
        self._held: dict[str, tuple[FileMark, Inspection]] = {}
        self.parsed = 0  # files that were not in the cache, so far

    def get(self, path: str, mark: FileMark) -> Inspection | None:
        """Return the inspection of a file with this mark, None if the cache has none."""
        held = self._held.get(path)
        return held[1] if held is not None and held[0] == mark else None

    def put(self, path: str, mark: FileMark, inspection: Inspection) -> Inspection:
        """Hold and return the inspection of a file that had this mark before it was read.

        The inspection of a file that may still be being written is not held: its next write could leave the same mark.
        """
        self.parsed += 1
        if self._clock() - mark.changed / 1e9 > _AT_REST:
            self._held[path] = mark, inspection
        return inspection

    def retain(self, paths: Collection[str]) -> None:
        """Forget the files with other paths than these."""
        self._held = {path: held for path, held in self._held.items() if path in paths}
