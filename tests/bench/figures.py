"""Figures of a run: medians with their ranges, and ratios. Pure computation."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Measure(NamedTuple):
    """Measure: one measured quantity."""

    key: str  # in JSON
    title: str
    digits: int
    more_is_better: bool


CPU = Measure("cpu_us_per_packet", "CPU a packet, µs", 2, False)
DATAGRAMS = Measure("udp_packets_per_second", "UDP packets/s", 0, True)
CONNECTIONS = Measure("connections_per_second", "new connections/s", 0, True)
CONNECT_P50 = Measure("connect_p50_us", "connect p50, µs", 1, False)
CONNECT_P99 = Measure("connect_p99_us", "connect p99, µs", 1, False)
BULK = Measure("bulk_gbit_per_second", "bulk TCP, Gb/s", 2, True)
MEMORY = Measure("memory_mib", "memory a node, MiB", 1, False)
# in JSON only
CPU_CONNECTION = Measure("cpu_us_per_connection", "CPU a connection, µs", 1, False)
CPU_BULK = Measure("cpu_us_per_packet_of_bulk", "CPU a packet of bulk TCP, µs", 2, False)
SOFTIRQ = Measure("softirq_share", "softirq, of all cores", 3, False)
LOST = Measure("packets_lost_in_queues", "packets lost in queues", 0, False)
LOST_DATAGRAMS = Measure("udp_packets_lost", "UDP packets lost", 0, False)
REORDERED = Measure("udp_packets_reordered", "UDP packets reordered", 0, False)
RETRANSMITTED = Measure("bulk_segments_retransmitted", "TCP segments retransmitted", 0, False)

IN_TABLES = (CPU, DATAGRAMS, CONNECTIONS, CONNECT_P50, CONNECT_P99, BULK, MEMORY)


class Spread(NamedTuple):
    """Spread: the median of some repetitions, with the minimum and the maximum."""

    median: float
    least: float
    most: float
    each: tuple[float, ...]

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Return the spread of these figures."""
        return cls(median(figures), min(figures), max(figures), tuple(figures))

    def text(self, digits: int) -> str:
        """Render the spread for a table."""
        middle, least, most = (f"{number:,.{digits}f}" for number in self[:3])
        return f"{middle} ({least} to {most})"


class Figures:
    """Figures: all figures of a run, by contender, place and measure."""

    def __init__(self) -> None:
        """Start without figures."""
        self._each: dict[tuple[str, str, str], list[float]] = {}

    def add(self, contender: str, place: str, measure: Measure, figure: float) -> None:
        """Add the figure of one repetition."""
        self._each.setdefault((contender, place, measure.key), []).append(figure)

    def get(self, contender: str, place: str, measure: Measure) -> Spread | None:
        """Return the spread of a measure, None without any figure."""
        each = self._each.get((contender, place, measure.key))
        return Spread.of(each) if each else None

    def ratio(self, place: str, measure: Measure, contender: str, reference: str) -> float | None:
        """Return the ratio of two contenders' medians, None if one is missing or the reference is 0."""
        numerator, denominator = self.get(contender, place, measure), self.get(reference, place, measure)
        if numerator is None or denominator is None or not denominator.median:
            return None
        return numerator.median / denominator.median

    def contenders(self) -> list[str]:
        """Return the names of all contenders, in the order of their first figures."""
        return list(dict.fromkeys(contender for contender, _, _ in self._each))

    def places(self) -> list[str]:
        """Return the names of all places, in the order of their first figures."""
        return list(dict.fromkeys(place for _, place, _ in self._each))

    def rows(self) -> list[dict[str, object]]:
        """Return all figures as JSON objects."""
        return [
            {"contender": contender, "place": place, "measure": key, **_plain(Spread.of(each))}
            for (contender, place, key), each in self._each.items()
        ]


def _plain(spread: Spread) -> dict[str, object]:
    middle, least, most, *each = (float(f"{number:.6g}") for number in (*spread[:3], *spread.each))
    return {"median": middle, "min": least, "max": most, "each": each}
