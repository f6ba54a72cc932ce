"""Progress of long work, on standard error: for a person at a terminal, and not a character for a pipe or a file.

What is shown is gone when the work ends. Texts are those of the program; nothing of them comes from the network.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

DELAY = 0.5  # s of work before a bar is shown
_REFRESH = 0.1  # s between two states of a bar

Advance = Callable[[int], None]
"""Function that is called with a number of things that were done."""


@contextmanager
def bar(text: str, total: int, *, prints: bool = False) -> Iterator[Advance]:
    """Show a bar, once the work has taken a while; yield the function that advances it to ``total`` things.

    Work that ``prints`` its output meanwhile has no bar if the output comes to a terminal, too.
    """
    if not _is_terminal() or (prints and sys.stdout.isatty()):
        yield lambda _: None
        return
    shown = _Bar(text, total)
    try:
        yield shown.advance
    finally:
        shown.stop()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a text and the time that has passed, during work of which no part is known."""
    if not _is_terminal():
        yield
        return
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with _progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()) as progress:
        progress.add_task(text, total=None)
        yield


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _progress(*columns: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    # redirect_stdout=False: the output of a command goes to its own place, unchanged
    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )


class _Bar:
    """Bar: the number of things that are done, shown from time to time."""

    def __init__(self, text: str, total: int) -> None:
        self._text, self._total = text, total
        self._done = 0
        self._next = monotonic() + DELAY
        self._progress: Any = None

    def advance(self, number: int) -> None:
        """Count things that are done."""
        self._done += number
        if monotonic() >= self._next:
            self._show()

    def _show(self) -> None:
        if self._progress is None:
            self._progress = _progress()
            self._progress.start()
            self._task = self._progress.add_task(self._text, total=self._total)
        self._progress.update(self._task, completed=self._done)
        self._next = monotonic() + _REFRESH

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
