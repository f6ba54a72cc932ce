"""Captures of the agent: they begin in all workers, are renewed, and lose packets instead of waiting for a reader."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from nfq_enforcer.agent import captures
from nfq_enforcer.agent.captures import MAX_CAPTURES, Capture, Captures
from nfq_enforcer.agent.handlers.capture import CaptureHandlers
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.dataplane.worker.packet_reports import PacketFilter, PacketRow, Packets, pack_rows
from nfq_enforcer.dataplane.worker.reports import pack, unpack
from nfq_enforcer.errors import BadInput, NfqError
from tests.support.packets import packed, syn

PACKET = syn("10.2.0.10", "10.1.0.10")
OPENING = Opening(packed("10.2.0.10"), packed("10.1.0.10"), 6, 40_000, 80, -1, -1, False, Identity(500), Identity(300))
EVENT = FlowEvent(1.0, FlowVerdict.DROPPED, DropReason.INVALID_SOURCE_IP, Direction.INGRESS, OPENING, 2, False)
ROW = PacketRow(pack((EVENT,)), 3, 0, len(PACKET), PACKET)


class Worker:
    """Worker: it confirms captures, unless it is stuck."""

    def __init__(self, *, pid: int | None = 1, stuck: bool = False) -> None:
        self.pid = pid
        self.stuck = stuck


class Workers:
    """Workers: they note the captures that they are to start and to stop."""

    def __init__(self, *processes: Worker) -> None:
        self.processes = processes
        self.started: list[int] = []
        self.stopped: list[int] = []
        self.on_packets: Any = None

    def start_capture(self, number: int, *_: object) -> None:
        self.started.append(number)
        for worker in self.processes:
            if not worker.stuck:
                self.on_packets(worker, Packets(number, 0, b""))

    def stop_capture(self, number: int) -> None:
        self.stopped.append(number)

    def send(self, number: int, *rows: PacketRow, lost: int = 0) -> None:
        self.on_packets(self.processes[0], Packets(number, lost, pack_rows(rows)))


def make(*workers: Worker) -> tuple[Captures, Workers]:
    all_workers = Workers(*(workers or (Worker(),)))
    return Captures(cast(Any, all_workers)), all_workers


@asynccontextmanager
async def begun(made: Captures, snaplen: int = 30, **of_filter: Any) -> AsyncIterator[Capture]:
    async with asyncio.timeout(10), made.begin(PacketFilter(**of_filter), snaplen) as capture:
        yield capture


async def _test_packets_of_workers_reach_the_reader() -> None:
    made, workers = make(Worker(), Worker())
    async with begun(made) as capture:
        (number,) = workers.started
        workers.send(number, ROW, ROW._replace(length=9000), lost=5)
        workers.send(number + 1, ROW)  # of a capture that has ended

        read = [await capture.next(10), await capture.next(10), await capture.next(0)]

        assert read == [ROW._replace(data=PACKET[:30]), ROW._replace(length=9000, data=PACKET[:30]), None]
        assert capture.lost == 5
    assert workers.stopped == [number]


async def _test_a_sample_of_the_kernel_joins_if_the_filter_admits_it() -> None:
    made, _ = make()
    async with begun(made) as every, begun(made, reasons=frozenset({DropReason.POLICY_DENIED})) as other:
        made.add_sample(EVENT, PACKET, 3)

        row = await every.next(10)
        assert row is not None
        assert list(unpack(row.event)) == [EVENT]
        assert row == ROW._replace(data=PACKET[:30])
        assert await other.next(0) is None


async def _test_a_reader_that_does_not_read_loses_packets() -> None:
    made, workers = make()
    async with begun(made, 65535) as capture:
        room = captures._BEHIND_BYTES // (captures._EMPTY + len(ROW.event) + 1000)
        for _ in range(room + 7):
            workers.send(workers.started[0], ROW._replace(length=1000, data=bytes(1000)))

        assert capture.lost == 7
        read = 0
        while await capture.next(0) is not None:
            read += 1
        assert read == room
        workers.send(workers.started[0], ROW)
        assert await capture.next(10) is not None


async def _test_a_capture_is_renewed() -> None:
    made, workers = make()
    async with begun(made):
        while len(workers.started) < 2:
            await asyncio.sleep(0.01)

    assert len(set(workers.started)) == 1


async def _test_a_worker_that_does_not_confirm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_CONFIRMATION", 0.05)
    made, workers = make(Worker(), Worker(stuck=True))

    with pytest.raises(NfqError, match="the capture does not begin, because a worker does not answer"):
        async with begun(made):
            pass

    assert workers.stopped == workers.started
    async with begun(make(Worker(), Worker(pid=None, stuck=True))[0]):  # it starts with the next renewal
        pass


async def _test_the_number_of_captures_has_a_limit() -> None:
    made, _ = make()
    made._captures = {number: cast(Any, None) for number in range(MAX_CAPTURES)}

    with pytest.raises(NfqError, match=f"{MAX_CAPTURES} captures run already"):
        async with begun(made):
            pass


@pytest.mark.parametrize(
    "case",
    [
        _test_packets_of_workers_reach_the_reader,
        _test_a_sample_of_the_kernel_joins_if_the_filter_admits_it,
        _test_a_reader_that_does_not_read_loses_packets,
        _test_a_capture_is_renewed,
        _test_the_number_of_captures_has_a_limit,
    ],
    ids=lambda case: case.__name__.removeprefix("_test_"),
)
def test_captures(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_RENEWAL", 0.02)
    asyncio.run(case())


def test_a_worker_that_does_not_confirm_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_test_a_worker_that_does_not_confirm_is_an_error(monkeypatch))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "snaplen must be a number of bytes from 1 to 65535"),
        ({"snaplen": 0}, "snaplen must be a number of bytes from 1 to 65535"),
        ({"snaplen": 65536}, "snaplen must be a number of bytes from 1 to 65535"),
        (
            {"snaplen": 9, "reasons": ["X\x1b"]},
            r"a capture has no packets of the drop reason 'X\\x1b'; allowed: POLICY_",
        ),
        ({"snaplen": 9, "verdicts": ["FORWARDED"]}, "of the verdict 'FORWARDED'; allowed: DROPPED, AUDIT$"),
        ({"snaplen": 9, "verdicts": "DROPPED"}, "verdicts must be a list of strings"),
        ({"snaplen": 9, "count": -1}, "count must be a whole number"),
        ({"snaplen": 9, "duration": "1"}, "duration must be a number of seconds"),
    ],
)
def test_a_request_that_is_not_valid_begins_nothing(params: dict[str, Any], sentence: str) -> None:
    async def request() -> None:
        async for _ in CaptureHandlers(cast(Any, None)).capture(params):
            pass

    with pytest.raises(BadInput, match=sentence):
        asyncio.run(request())
