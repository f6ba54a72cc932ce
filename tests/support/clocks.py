"""Wall clocks that a test may move, each for the programs of one network namespace.

A network namespace has no wall clock of its own (time namespaces have other monotonic clocks only), so the programs run
with a library that adds an offset to the wall clock (``clock.c``).
"""

import os
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


class Clocks:
    """Clocks: the offsets of the wall clocks of namespaces, by name."""

    def __init__(self, folder: Path, namespaces: Mapping[str, Path]) -> None:
        """Build the library in a new folder, with an offset of 0 for each namespace, given by its file."""
        folder.mkdir()
        library = folder / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCKS": str(folder)}
        self._files = {name: folder / str(file.stat().st_ino) for name, file in namespaces.items()}
        for file in self._files.values():
            file.write_bytes(bytes(8))

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Have the programs that are started meanwhile run by these clocks."""
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name in self.environment:
                del os.environ[name]

    def jump(self, name: str, seconds: int) -> None:
        """Move the wall clock of a namespace."""
        with self._files[name].open("r+b") as file:
            (now,) = struct.unpack("=q", file.read(8))
            file.seek(0)
            file.write(struct.pack("=q", now + seconds))
