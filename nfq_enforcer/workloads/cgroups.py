"""Cgroups of this host (cgroup2): found, made, read and removed as folders (cgroups(7)).

A socket belongs to the cgroup of the process that has made it, for good, whatever becomes of the process. The number of
a cgroup is the inode of its folder: a folder that is made again under the same path is another cgroup. Only root can
make a cgroup below the root of the hierarchy, and move a process into one.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nfq_enforcer.cluster.replica import Cgroup
from nfq_enforcer.errors import NfqError

MOUNTS = Path("/proc/self/mountinfo")
_MAX_BELOW = 256  # cgroups below that of one endpoint


def find_root(mounts: Path = MOUNTS) -> Path | None:
    """Return the root of cgroup2: the first such file system that is mounted; None without one."""
    for line in mounts.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == "cgroup2":
            return Path(_unescaped(fields.split()[4]))
    return None


def _unescaped(text: str) -> str:
    """Return a path of mountinfo, which writes blanks by their octal numbers."""
    return text.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")


class Cgroups:
    """Cgroups: the folders of cgroup2, by their paths below its root."""

    def __init__(self, root: Path) -> None:
        """Set the root."""
        self._root = root

    def folder(self, path: str) -> Path:
        """Return the folder of a cgroup."""
        return self._root / path.lstrip("/")

    def find(self, path: str) -> Cgroup | None:
        """Return the cgroup of a path, None if it does not exist."""
        with suppress(OSError):
            return Cgroup(_level(path), self.folder(path).stat().st_ino)
        return None

    def tree(self, path: str) -> tuple[Cgroup, ...]:
        """Return the cgroup of a path, and those below it; empty if it does not exist."""
        found = self.find(path)
        if found is None:
            return ()
        below: list[Cgroup] = []
        for folder, folders, _ in os.walk(self.folder(path)):
            level = _level(str(Path("/") / Path(folder).relative_to(self._root)))
            for name in folders:
                with suppress(OSError):
                    below.append(Cgroup(level + 1, (Path(folder) / name).stat().st_ino))
            if len(below) >= _MAX_BELOW:
                break
        return (found, *below[:_MAX_BELOW])

    def children(self, path: str) -> list[str]:
        """Return the names of the cgroups right below one; empty if it does not exist."""
        with suppress(OSError):
            return [entry.name for entry in os.scandir(self.folder(path)) if entry.is_dir(follow_symlinks=False)]
        return []

    def make(self, path: str) -> Cgroup:
        """Make a cgroup, and those above it; raise NfqError if the kernel refuses, or if it has processes."""
        if self.is_populated(path):
            raise NfqError(f"the cgroup {path} has processes already")
        try:
            if self.find(path) is not None:
                self.folder(path).rmdir()  # the next one has another number, so no socket of before belongs to it
            self.folder(path).mkdir(parents=True, mode=0o755)
        except PermissionError:
            hint = "an agent without CAP_DAC_OVERRIDE needs the cgroup above it, which its service makes at the start"
            raise NfqError(f"the cgroup {path} cannot be made: permission denied; {hint}") from None
        except OSError as error:
            raise NfqError(f"the cgroup {path} cannot be made: {error.strerror}") from None
        found = self.find(path)
        if found is None:
            raise NfqError(f"the cgroup {path} was removed while it was made")
        return found

    def move(self, pid: int, path: str) -> None:
        """Move a process with all its threads into a cgroup; raise NfqError if the kernel refuses."""
        try:
            (self.folder(path) / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise NfqError(f"process {pid} cannot be moved into the cgroup {path}: {error.strerror}") from None

    def is_populated(self, path: str) -> bool:
        """Return whether a cgroup, or one below it, has a process."""
        with suppress(OSError):
            return "populated 1" in (self.folder(path) / "cgroup.events").read_text().splitlines()
        return False

    def pids(self, path: str) -> list[int]:
        """Return the processes of a cgroup, and of those below it."""
        return sorted(self._pids(self.folder(path)))

    def _pids(self, top: Path) -> Iterator[int]:
        for folder, _, _ in os.walk(top):
            with suppress(OSError):  # it has ended, or is of threads
                yield from map(int, (Path(folder) / "cgroup.procs").read_text().split())

    def remove(self, path: str) -> None:
        """Remove a cgroup without processes; one that has any remains."""
        with suppress(OSError):
            self.folder(path).rmdir()


def _level(path: str) -> int:
    return sum(1 for part in path.split("/") if part)
