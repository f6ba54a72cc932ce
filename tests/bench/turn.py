"""A contender's turn at a place: traffic of each kind, and what it cost those that judge there."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from nfq_enforcer.lab.lab import Lab
from tests.bench import figures
from tests.bench.figures import Measure
from tests.bench.generators import Programs
from tests.bench.places import Place
from tests.bench.processes import Machine, Queued, tree_cpu, tree_memory

_AT_ONCE = 16  # connections that are being opened at a time, where it is counted how many there are in a second
_MEANT = 1000  # packets; a mean over fewer says nothing

Taken = dict[Measure, float]


class Spent(NamedTuple):
    """What judging has come to, at some moment or between two."""

    cpu: float
    packets: int
    lost: int
    machine: Machine

    @classmethod
    def read(cls, pids: Sequence[int]) -> Self:
        """Return what these processes with their children have spent, each in a namespace of its own."""
        queued = [Queued.read(pid) for pid in pids]
        lost = sum(one.lost for one in queued)
        return cls(sum(map(tree_cpu, pids)), sum(one.packets for one in queued), lost, Machine.read())

    def since(self, before: "Spent") -> "Spent":
        """Return what was spent between the two moments."""
        machine = self.machine.since(before.machine)
        return Spent(self.cpu - before.cpu, self.packets - before.packets, self.lost - before.lost, machine)

    def a_packet(self) -> float | None:
        """Return microseconds for each packet that was queued."""
        return self.cpu / self.packets * 1e6 if self.packets >= _MEANT else None


def take(programs: Programs, lab: Lab, pids: Sequence[int], place: Place, seconds: float) -> Taken:
    """Return the figures of one turn; ``pids`` are those that judge there, none where the kernel does it alone."""
    begun = Spent.read(pids)
    datagrams, spent = programs.datagrams(lab, place, seconds), Spent.read(pids).since(begun)
    taken = _datagrams(datagrams) | _present({figures.CPU: spent.a_packet()})
    taken[figures.SOFTIRQ] = spent.machine.softirq / spent.machine.all

    before = Spent.read(pids)
    connections, spent = programs.connections(lab, place, seconds, _AT_ONCE), Spent.read(pids).since(before)
    taken[figures.CONNECTIONS] = connections["connections"] / connections["seconds"]
    taken |= _latency(programs.connections(lab, place, seconds, 1))
    if pids:
        taken[figures.CPU_CONNECTION] = spent.cpu / connections["connections"] * 1e6

    before = Spent.read(pids)
    bulk, spent = programs.bulk(lab, place, seconds), Spent.read(pids).since(before)
    taken |= _bulk(bulk) | _present({figures.CPU_BULK: spent.a_packet()})
    if pids:
        taken[figures.LOST] = Spent.read(pids).since(begun).lost
        taken[figures.MEMORY] = sum(map(tree_memory, pids)) / len(pids)
    return taken


def _present(taken: Mapping[Measure, float | None]) -> Taken:
    return {measure: figure for measure, figure in taken.items() if figure is not None}


def _datagrams(said: Mapping[str, float]) -> Taken:
    return {
        figures.DATAGRAMS: said["received"] / said["seconds"],
        figures.LOST_DATAGRAMS: said["sent"] - said["received"],
        figures.REORDERED: said["reordered"],
    }


def _latency(said: Mapping[str, float]) -> Taken:
    """Return how long it took to open a connection while nobody else opened one."""
    return {figures.CONNECT_P50: said["p50_us"], figures.CONNECT_P99: said["p99_us"]}


def _bulk(said: Mapping[str, float]) -> Taken:
    return {figures.BULK: said["bytes"] * 8 / said["seconds"] / 1e9, figures.RETRANSMITTED: said["retransmitted"]}
