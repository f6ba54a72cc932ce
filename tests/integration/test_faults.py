"""Short form of ``make test-faults``: each fault under real traffic, once or twice.

Nothing forbidden passes, and nothing allowed is cut. Where a fault costs more than a gap, its limits name the cost and
the reason (``tests/faults``).
"""

import asyncio
from collections.abc import Iterator

import pytest

from nfq_enforcer.core.modes import Datapath, FailMode
from tests.faults import changes
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault, measure
from tests.faults.stage import Stage
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, FAMILIES, HTTP, PATIENT

pytestmark = pytest.mark.alone
FLOWS = 200  # additional ones at most; the full form has 2,000
CASES = [
    *(((Datapath.PER_PACKET, fault.fail), fault, fault.short) for fault in FAULTS if fault.short),
    *(((Datapath.PER_FLOW, fault.fail), fault, fault.short_per_flow) for fault in FAULTS if fault.short_per_flow),
]


@pytest.fixture(scope="module")
def stage(make_lab: MakeLab, runner: asyncio.Runner, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Run agents with policy, in a datapath and a fail mode, and traffic programs, in a lab of their own."""
    datapath, fail = request.param
    stage = Stage(make_lab(), {"datapath": datapath.value, "queues": 1, "fail": fail.value})
    try:
        runner.run(stage.start())
        yield stage
    finally:
        runner.run(stage.stop())


@pytest.mark.parametrize(
    ("stage", "fault", "times"),
    CASES,
    indirect=["stage"],
    ids=[f"{datapath}, fail {fail}: {fault.name}" for (datapath, fail), fault, _ in CASES],
)
async def test_nothing_forbidden_passes_and_nothing_allowed_is_cut(stage: Stage, fault: Fault, times: int) -> None:
    row = await measure(stage, fault, times, flows=FLOWS)

    print(" | ".join(row.cells()), *row.counts.figures, sep="\n  ")
    assert row.limits.exceeded(row.counts, row.times) == []


@pytest.mark.parametrize("stage", [(Datapath.PER_FLOW, FailMode.CLOSED)], indirect=True)
async def test_connections_to_an_endpoint_that_moves_go_on_when_the_client_sends(stage: Stage) -> None:
    """An endpoint moves between two other nodes than the client's, and back; idle connections are used afterwards."""
    lab, ends = stage.lab, [stage.lab.address("back2", family) for family in FAMILIES]
    await lab.host("back2").serve("TCP", HTTP)
    held = [await lab.host("front3").hold(address, HTTP, PATIENT) for address in ends]
    for number in range(2):
        assert [(await one.talk(PATIENT)).answered_by for one in held] == ["back2", "back2"]
        await changes.move(stage, number)
        assert [(await one.talk(PATIENT)).answered_by for one in held] == ["back2", "back2"]
        assert not [one for one in ends if (await lab.host("db3").connect(one, HTTP, BRIEF)).ok]
