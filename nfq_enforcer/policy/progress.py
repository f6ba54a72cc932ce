"""Progress of long work: written by the thread that works, read by all others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Work(NamedTuple):
    """Work: an activity, its start and its extent."""

    activity: str
    since: float  # s since the epoch
    done: int = 0
    total: int | None = None  # None: not known

    def __str__(self) -> str:
        """Render as ``reading documents: 12,000 of 20,000``."""
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.activity}: {self.done:,}{of}" if self.done or of else self.activity


class Progress:
    """Progress: the work that is under way, if any; each change replaces one value, so that a reader needs no lock."""

    def __init__(self) -> None:
        """Start without work."""
        self.work: Work | None = None

    @contextmanager
    def working(self, activity: str, now: float) -> Iterator[None]:
        """Show work for the duration of the context, ``now`` in seconds since the epoch."""
        self.begin(activity, now)
        try:
            yield
        finally:
            self.end()

    def begin(self, activity: str, now: float) -> None:
        """Begin work, ``now`` in seconds since the epoch."""
        self.work = Work(activity, now)

    def stage(self, activity: str, total: int | None = None) -> None:
        """Go on to the next stage of the work, of so many steps; without work do nothing."""
        if self.work is not None:
            self.work = Work(activity, self.work.since, 0, total)

    def advance(self, steps: int = 1) -> None:
        """Count steps; without work do nothing."""
        if self.work is not None:
            self.work = self.work._replace(done=self.work.done + steps)

    def end(self) -> None:
        """End the work."""
        self.work = None
