"""Counters: in memory that two processes share and that outlives the writer."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.dataplane.worker import counters
from nfq_enforcer.dataplane.worker.counters import Counters


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = Counters.create()
    yield descriptor
    os.close(descriptor)


def counted(row: Counters) -> dict[str, int]:
    return {name: number for name, number in row.read().items() if number}


def test_new_counters_are_zero_and_there_is_one_for_each_reason(memory: int) -> None:
    row = Counters(memory)

    names = [
        "accepted",
        "dropped",
        "events_lost",
        "internal_errors",
        "flows",
        "flows_evicted",
        "handed_over",
        *DropReason,
    ]
    assert row.read() == dict.fromkeys(names, 0)
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
    ],
)
def test_each_place_has_its_name(place: int, name: str, memory: int) -> None:
    row = Counters(memory)
    row.row[place] = 2**64 - 1

    assert counted(row) == {name: 2**64 - 1}
    row.close()


@pytest.mark.parametrize("reason", DropReason)
def test_a_drop_is_counted_once_in_all_and_once_by_its_reason(reason: DropReason, memory: int) -> None:
    row = Counters(memory)
    row.count_drop(reason)

    assert counted(row) == {"dropped": 1, reason: 1}
    row.close()


def test_judged_is_what_was_accepted_and_what_was_dropped(memory: int) -> None:
    row = Counters(memory)
    row.row[counters.ACCEPTED] = 3
    row.count_drop(DropReason.POLICY_DENIED)

    assert row.verdicts == 4
    row.close()


def test_what_a_process_counted_is_there_after_its_end(memory: int) -> None:
    program = (
        "from nfq_enforcer.core.verdict import DropReason\n"
        "from nfq_enforcer.dataplane.worker.counters import Counters\n"
        f"Counters({memory}).count_drop(DropReason.CT_NO_MATCH)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    row = Counters(memory)

    run = subprocess.run([sys.executable, "-c", program], pass_fds=[memory], check=False)

    assert run.returncode == -9
    assert counted(row) == {"dropped": 1, "CT_NO_MATCH": 1}
    row.close()


def test_the_descriptor_is_not_needed_once_the_memory_is_mapped() -> None:
    memory = Counters.create()
    row = Counters(memory)
    os.close(memory)

    row.count_drop(DropReason.NO_ENDPOINT)

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
