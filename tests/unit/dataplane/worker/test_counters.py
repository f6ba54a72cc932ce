"""Counters: in memory that two processes share and that outlives the writer."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.worker import counters
from nfq_enforcer.dataplane.worker.counters import DIRECTIONS, Counters


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = Counters.create()
    yield descriptor
    os.close(descriptor)


def counted(row: Counters) -> dict[str, int]:
    return {name: number for name, number in row.read().items() if number}


def test_new_counters_are_zero_and_each_reason_has_one_in_each_direction(memory: int) -> None:
    row = Counters(memory)

    names = row.read()
    assert set(names.values()) == {0}
    assert {*DropReason, *(f"{way} {reason}" for way in DIRECTIONS for reason in DropReason)} < names.keys()
    row.close()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (counters.ACCEPTED, "accepted"),
        (counters.DROPPED, "dropped"),
        (counters.EVENTS_LOST, "events_lost"),
        (counters.INTERNAL_ERRORS, "internal_errors"),
        (counters.FLOWS, "flows"),
        (counters.FLOWS_EVICTED, "flows_evicted"),
        (counters.OFFLOADED, "handed_over"),
        (counters.STAMPS_MADE, "stamps_made"),
        (counters.STAMPS_READ, "stamps_read"),
    ],
)
def test_each_place_has_its_name(place: int, name: str, memory: int) -> None:
    row = Counters(memory)
    row.row[place] = 2**64 - 1

    assert counted(row) == {name: 2**64 - 1}
    row.close()


@pytest.mark.parametrize("direction", [*Direction, None])
@pytest.mark.parametrize("reason", DropReason)
def test_a_drop_is_counted_once_in_all_and_once_by_reason_and_direction(
    reason: DropReason, direction: Direction | None, memory: int
) -> None:
    row = Counters(memory)
    row.count_drop(reason, direction)

    assert counted(row) == {"dropped": 1, reason: 1, f"{direction or 'unknown'} {reason}": 1}
    row.close()


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("verdict", counters.FLOW_VERDICTS)
def test_a_new_flow_is_counted_by_verdict_and_direction(
    verdict: FlowVerdict, direction: Direction, memory: int
) -> None:
    row = Counters(memory)
    row.count_flow(verdict, direction)

    assert counted(row) == {counters.flows_name(direction, verdict): 1}
    row.close()


@pytest.mark.parametrize(
    ("seconds", "place"), [(0.0, 0), (25e-6, 0), (25.1e-6, 1), (0.0999, 10), (0.1, 10), (0.2, 11), (9.0, 11)]
)
def test_a_latency_is_in_the_bucket_of_the_next_bound(seconds: float, place: int, memory: int) -> None:
    row = Counters(memory)
    row.count_latency(seconds, 3)

    found = row.read()
    assert {name: count for name, count in found.items() if name.startswith("latency ") and count} == {
        counters.latency_name(place): 3
    }
    assert found["latency_ns"] == pytest.approx(3e9 * seconds, abs=3)
    row.close()


def test_judged_is_what_was_accepted_and_what_was_dropped(memory: int) -> None:
    row = Counters(memory)
    row.row[counters.ACCEPTED] = 3
    row.count_drop(DropReason.POLICY_DENIED, Direction.INGRESS)

    assert row.verdicts == 4
    row.close()


def test_what_a_process_counted_is_there_after_its_end(memory: int) -> None:
    program = (
        "from nfq_enforcer.core.verdict import DropReason\n"
        "from nfq_enforcer.dataplane.worker.counters import Counters\n"
        f"Counters({memory}).count_drop(DropReason.CT_NO_MATCH, None)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    row = Counters(memory)

    run = subprocess.run([sys.executable, "-c", program], pass_fds=[memory], check=False)

    assert run.returncode == -9
    assert counted(row) == {"dropped": 1, "CT_NO_MATCH": 1, "unknown CT_NO_MATCH": 1}
    row.close()


def test_the_descriptor_is_not_needed_once_the_memory_is_mapped() -> None:
    memory = Counters.create()
    row = Counters(memory)
    os.close(memory)

    row.count_drop(DropReason.NO_ENDPOINT, Direction.EGRESS)

    assert row.read()["NO_ENDPOINT"] == 1
    row.close()


def test_a_heartbeat_is_no_counter(memory: int) -> None:
    row, agent = Counters(memory), Counters(memory)

    row.beat()
    row.beat()

    assert agent.beats == 2
    assert counted(agent) == {}
    row.close()
    agent.close()
