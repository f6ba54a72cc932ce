"""Rows of the table of faults: counts, their limits, and the table as text. Pure computation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HEADINGS = (
    "fault",
    "times",
    "forbidden tried",
    "forbidden accepted",
    "allowed flows cut",
    "new allowed failed",
    "longest gap, ms",
)


@dataclass
class Counts:
    """Counts: the traffic of one or more injections of a fault."""

    flows: int = 0
    cut: int = 0
    cut_streams: int = 0  # of those that were cut: in which only the server sends
    new: int = 0
    new_failed: int = 0
    forbidden: int = 0
    accepted: int = 0
    gap: float = 0.0  # s without a message in an allowed flow that has one every 10 ms
    open_for: float = 0.0  # s from the begin of the count to the last forbidden packet that was accepted
    since: float = 0.0  # begin of the count, or of the fault, by CLOCK_MONOTONIC
    ends: dict[str, int] = field(default_factory=dict)  # of accepted forbidden packets
    figures: list[str] = field(default_factory=list)  # of each injection: measured, and not limited

    def add(self, ended: Iterable[Mapping[str, Any]], arrived: Iterable[Mapping[str, Any]]) -> None:
        """Add what the hosts have counted."""
        for one in ended:
            self.flows += one["flows"]
            self.cut += one["cut"]
            self.cut_streams += one["cut_streams"]
            self.new += one["new"]
            self.new_failed += one["new_failed"]
            self.forbidden += one["forbidden"]
            self.gap = max(self.gap, one["gap"])
        for one in arrived:
            self.accepted += len(one["times"])
            self.open_for = max([self.open_for, *(moment - self.since for moment in one["times"])])
            self.ends.update(one["ends"])

    def merge(self, other: "Counts") -> None:
        """Add the counts of another injection."""
        for name in ("flows", "cut", "cut_streams", "new", "new_failed", "forbidden", "accepted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.gap, self.open_for = max(self.gap, other.gap), max(self.open_for, other.open_for)
        self.ends.update(other.ends)
        self.figures += other.figures


@dataclass(frozen=True)
class Limits:
    """Limits: what a fault may cost; by default nothing but a gap."""

    open_for: float | None = None  # s for which forbidden packets may pass; None: none may pass
    cuts: int = 0  # allowed flows in which only the server sends that an injection may cut
    client_cuts: int = 0  # allowed flows in which the client sends that an injection may cut
    refuses: bool = False  # whether new allowed connections may fail
    why: str = ""  # the reason of any of these

    def exceeded(self, counts: Counts, times: int) -> list[str]:
        """Return a sentence for each limit that the counts of so many injections exceed."""
        found = []
        if counts.accepted and (self.open_for is None or counts.open_for > self.open_for):
            ends = ", ".join(f"{number} from {text}" for text, number in sorted(counts.ends.items()))
            found.append(
                f"{counts.accepted} forbidden packets were accepted, the last {counts.open_for:.3f} s "
                f"after the fault's begin: {ends}"
            )
        kinds = (
            (counts.cut_streams, self.cuts * times, "only the server sends"),
            (counts.cut - counts.cut_streams, self.client_cuts * times, "the client sends"),
        )
        found += [
            f"{cut} of {counts.flows} allowed flows were cut in which {end}; allowed: {allowed}"
            for cut, allowed, end in kinds
            if cut > allowed
        ]
        if counts.new_failed and not self.refuses:
            found.append(f"{counts.new_failed} of {counts.new} new allowed connections failed")
        if not counts.forbidden or not counts.flows:
            found.append("there was no traffic")
        return found


@dataclass(frozen=True)
class Row:
    """Row: a fault with the counts of all its injections."""

    name: str
    times: int
    counts: Counts
    limits: Limits

    def cells(self) -> list[str]:
        """Return the cells below ``HEADINGS``."""
        counts = self.counts
        accepted = f"{counts.accepted}, for {counts.open_for * 1000:.0f} ms" if counts.accepted else "0"
        return [
            self.name,
            str(self.times),
            f"{counts.forbidden:,}",
            accepted,
            f"{counts.cut} of {counts.flows:,}",
            f"{counts.new_failed} of {counts.new:,}",
            f"{counts.gap * 1000:.0f}",
        ]


def markdown(rows: Sequence[Row]) -> str:
    """Render rows as a table in Markdown, with the reasons of their limits and their figures below."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row.cells() for row in rows)]
    faults: dict[str, list[str]] = {}
    for row in rows:
        if row.limits.why:
            faults.setdefault(row.limits.why, []).append(row.name)
    reasons = [f"- {', '.join(names)}: {why}" for why, names in faults.items()]
    reasons += [f"- {row.name}: {figures}" for row in rows for figures in row.counts.figures]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([table, *(["\n".join(reasons)] if reasons else [])]) + "\n"
