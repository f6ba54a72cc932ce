"""Terminals: a program at a pseudo-terminal, to which a test types and of which it reads the screen's bytes."""

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

_DEADLINE = 30.0  # s for a text that has to come


class Terminal:
    """Terminal with a program that runs at it in a session of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        """Start the program."""
        self._own, other = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=other, stdout=other, stderr=other, env=environment, cwd=folder
        )
        os.close(other)
        self._read = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._own)

    def type(self, text: str) -> None:
        """Type a text; a tab and a line break are keys."""
        os.write(self._own, text.encode())

    def expect(self, pattern: str) -> "re.Match[str]":
        """Wait for a text; return the match, and forget all text up to its end."""
        deadline = time.monotonic() + _DEADLINE
        while not (found := re.search(pattern, self._read)):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._own], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} has not come; the terminal has {self._read!r}")
            self._read += os.read(self._own, 65536).decode(errors="replace")
        self._read = self._read[found.end() :]
        return found
