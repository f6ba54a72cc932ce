"""A contender's turn at a place: traffic of each kind, and its cost to the processes that decide verdicts there."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from nfq_enforcer.lab.lab import Lab
from tests.bench import figures
from tests.bench.figures import Measure
from tests.bench.generators import Programs
from tests.bench.places import Place
from tests.bench.processes import CpuTimes, QueueCounters, tree_cpu, tree_memory

_CONCURRENT = 16  # connections being opened, when the rate of new connections is measured
_MIN_PACKETS = 1000  # a mean over fewer packets is not meaningful

TurnFigures = dict[Measure, float]


class Cost(NamedTuple):
    """Cost: CPU time and counters of queue processes, since their start or between two moments."""

    cpu: float
    packets: int
    lost: int
    machine: CpuTimes

    @classmethod
    def read(cls, pids: Sequence[int]) -> Self:
        """Return the cost of these processes, each in a namespace of its own, with their children, since the start."""
        counters = [QueueCounters.read(pid) for pid in pids]
        packets, lost = sum(queues.packets for queues in counters), sum(queues.lost for queues in counters)
        return cls(sum(map(tree_cpu, pids)), packets, lost, CpuTimes.read())

    def since(self, before: "Cost") -> "Cost":
        """Return the cost between two moments."""
        machine = self.machine.since(before.machine)
        return Cost(self.cpu - before.cpu, self.packets - before.packets, self.lost - before.lost, machine)

    def us_per_packet(self) -> float | None:
        """Return microseconds of CPU time for each queued packet, None for too few packets."""
        return self.cpu / self.packets * 1e6 if self.packets >= _MIN_PACKETS else None


def measure(programs: Programs, lab: Lab, pids: Sequence[int], place: Place, seconds: float) -> TurnFigures:
    """Measure one turn; ``pids`` are the processes that decide verdicts there, none for the kernel alone."""
    begun = Cost.read(pids)
    datagrams, cost = programs.datagrams(lab, place, seconds), Cost.read(pids).since(begun)
    measured = _datagrams(datagrams) | _present({figures.CPU: cost.us_per_packet()})
    measured[figures.SOFTIRQ] = cost.machine.softirq / cost.machine.all

    before = Cost.read(pids)
    connections, cost = programs.connections(lab, place, seconds, _CONCURRENT), Cost.read(pids).since(before)
    measured[figures.CONNECTIONS] = connections["connections"] / connections["seconds"]
    measured |= _latency(programs.connections(lab, place, seconds, 1))
    if pids:
        measured[figures.CPU_CONNECTION] = cost.cpu / connections["connections"] * 1e6

    before = Cost.read(pids)
    bulk, cost = programs.bulk(lab, place, seconds), Cost.read(pids).since(before)
    measured |= _bulk(bulk) | _present({figures.CPU_BULK: cost.us_per_packet()})
    if pids:
        measured[figures.LOST] = Cost.read(pids).since(begun).lost
        measured[figures.MEMORY] = sum(map(tree_memory, pids)) / len(pids)
    return measured


def _present(measured: Mapping[Measure, float | None]) -> TurnFigures:
    return {quantity: figure for quantity, figure in measured.items() if figure is not None}


def _datagrams(output: Mapping[str, float]) -> TurnFigures:
    return {
        figures.DATAGRAMS: output["received"] / output["seconds"],
        figures.LOST_DATAGRAMS: output["sent"] - output["received"],
        figures.REORDERED: output["reordered"],
    }


def _latency(output: Mapping[str, float]) -> TurnFigures:
    """Return the time to open a connection while no other connection is being opened."""
    return {figures.CONNECT_P50: output["p50_us"], figures.CONNECT_P99: output["p99_us"]}


def _bulk(output: Mapping[str, float]) -> TurnFigures:
    return {figures.BULK: output["bytes"] * 8 / output["seconds"] / 1e9, figures.RETRANSMITTED: output["retransmitted"]}
