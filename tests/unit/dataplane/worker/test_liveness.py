"""Liveness: stuck and starved workers are told apart by heartbeats, process states and processor time."""

from collections.abc import Iterable

import pytest

from nfq_enforcer.dataplane.worker.liveness import Liveness, ProcessSample, parse_stat

LIMIT, INTERVAL = 1.0, 0.2


def liveness(states: Iterable[tuple[str, float]], *, beats: Iterable[int] = (), starting: bool = False) -> Liveness:
    """Check once an interval: each with the process's state and the processor time used since the last check."""
    checked, now, cpu, numbers = Liveness(0.0, LIMIT, INTERVAL), 0.0, 0.0, iter(beats)
    checked.check(now, 0, ProcessSample("S", cpu))
    for state, used in states:
        now, cpu = now + INTERVAL, cpu + used
        checked.check(now, next(numbers, 0), ProcessSample(state, cpu), starting=starting)
    return checked


@pytest.mark.parametrize("state", ["S", "D", "T", "t", "Z"])
def test_a_process_that_waits_without_a_heartbeat_is_stuck_after_the_limit(state: str) -> None:
    assert liveness([(state, 0.0)] * 2).working
    assert not liveness([(state, 0.0)] * 3).working
    assert not liveness([(state, 0.0)] * 4).stuck
    assert liveness([(state, 0.0)] * 6).stuck


def test_any_heartbeat_begins_the_count_anew() -> None:
    checked = liveness([("S", 0.0)] * 20, beats=[number // 4 for number in range(20)])

    assert not checked.stuck


@pytest.mark.parametrize("share", [1.0, 0.5, 0.34])
def test_an_endless_loop_is_stuck_after_the_limit_with_a_third_of_a_processor_too(share: float) -> None:
    assert not liveness([("R", share * INTERVAL)] * 4).stuck
    assert liveness([("R", share * INTERVAL)] * 6).stuck


def test_an_endless_loop_with_less_of_a_processor_is_stuck_later() -> None:
    assert not liveness([("R", 0.1 * INTERVAL)] * 10).stuck
    assert liveness([("R", 0.1 * INTERVAL)] * 18).stuck


def test_a_process_that_waits_for_a_processor_is_never_stuck() -> None:
    checked = liveness([("R", 0.0)] * 1000)

    assert not checked.stuck


@pytest.mark.parametrize("seconds", [3.0, 3600.0])
def test_a_machine_that_was_suspended_accuses_no_worker(seconds: float) -> None:
    checked = Liveness(0.0, LIMIT, INTERVAL)
    checked.check(0.2, 1, ProcessSample("S", 0.0))
    checked.check(0.2 + seconds, 1, ProcessSample("S", 0.0))

    assert checked.working


def test_processor_time_is_a_heartbeat_of_a_worker_that_starts() -> None:
    assert liveness([("R", 0.1)] * 100, starting=True).working
    assert liveness([("D", 0.01)] * 100, starting=True).working
    assert liveness([("S", 0.0)] * 6, starting=True).stuck


def test_the_reason_has_the_time_and_the_state() -> None:
    assert liveness([("T", 0.0)] * 6).reason == "no heartbeat for 1.2 s, process stopped"
    assert liveness([("I", 0.0)]).reason == "no heartbeat for 0.2 s, process I"


@pytest.mark.parametrize("name", ["python3", "a b", "a) R 1 (b", ")"])
def test_the_line_of_a_process_is_read_whatever_its_name_is(name: str) -> None:
    line = f"4711 ({name}) T 1 4711 4711 0 -1 4194560 1 0 0 0 250 50 7 7 20 0 1 0 5 6 7"

    assert parse_stat(line, 100) == ProcessSample("T", 3.0)
