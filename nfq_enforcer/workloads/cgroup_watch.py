"""Watch of cgroups: inotify(7) on their folders and events, through the C library, for which Python has no module.

The kernel announces in ``cgroup.events`` that a cgroup has lost its last process, and in its parent that a cgroup was
made or removed.
"""

import asyncio
import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_MODIFY, _CREATE, _DELETE, _MOVED = 0x2, 0x100, 0x200, 0xC0
_CHANGES = _MODIFY | _CREATE | _DELETE | _MOVED
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC have their values
_EVENTS = 1 << 16  # bytes read at once

_libc = ctypes.CDLL(None, use_errno=True)


class CgroupWatch:
    """Watch: waits for changes of files and folders."""

    def __init__(self) -> None:
        """Open the descriptor; without inotify, only the time limit of ``wait`` counts."""
        self._descriptor: int = _libc.inotify_init1(_FLAGS)
        self._watched: dict[Path, int] = {}

    def follow(self, paths: Iterable[Path]) -> None:
        """Watch these paths and no others; a path that does not exist is tried at the next call."""
        wanted = set(paths)
        for path in self._watched.keys() - wanted:
            _libc.inotify_rm_watch(self._descriptor, self._watched.pop(path))
        for path in wanted:
            # the same number for the same inode; another one for a folder that was made again
            number = _libc.inotify_add_watch(self._descriptor, os.fsencode(path), _CHANGES)
            if number >= 0:
                self._watched[path] = number
            else:
                self._watched.pop(path, None)

    async def wait(self, patience: float) -> None:
        """Return at the next change, or after ``patience`` seconds."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        if self._descriptor >= 0:
            loop.add_reader(self._descriptor, changed.set)
        try:
            async with asyncio.timeout(patience):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            if self._descriptor >= 0:
                loop.remove_reader(self._descriptor)
        with suppress(BlockingIOError):
            while self._descriptor >= 0 and os.read(self._descriptor, _EVENTS):
                pass

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
