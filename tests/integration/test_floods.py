"""Floods cost the attacker, not the others: open flows keep their packets, and new connections succeed within 3 s.

Each flood lasts a few seconds here; ``make bench ARGS='--only floods'`` measures a minute of each.
"""

import asyncio
from collections.abc import Iterator

import pytest

from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support import floods
from tests.support.floods import Outcome
from tests.support.labs import FRONT_TO_BACK, identities

pytestmark = pytest.mark.alone

SECONDS = 4.0
KEPT = 0.99
GROWTH = 64 << 10  # KiB: flows of an allowed flood, half a KiB for each of 20,000 a second, and buffers
LINES = 6  # of the log: at most one for each kind of loss in 30 s, and one more

KINDS = [flood.name for flood in floods.floods(frontend=0)]
INSIDE = ("UDP in another's open flow, forged source", "UDP of an allowed peer in its own open flow")
SETTINGS: dict[str, dict[str, object]] = {
    "netlink": {"driver": "netlink"},
    "netlink-2": {"driver": "netlink", "queues": 2},
    "netfilterqueue": {"driver": "netfilterqueue"},
    "per-flow": {"driver": "netlink", "datapath": "per-flow"},
}
RANDOM = "SYNs of the world, random sources"
BRIEFLY = ("SYNs of an endpoint, refused", RANDOM)
CASES = [
    *(("netlink", kind) for kind in KINDS),
    *((setting, kind) for setting in SETTINGS for kind in (*BRIEFLY, *INSIDE) if setting != "netlink"),
]


@pytest.fixture(scope="module")
def flooded(request: pytest.FixtureRequest, make_lab: MakeLab, runner: asyncio.Runner) -> Iterator[Lab]:
    lab = make_lab()
    runner.run(_serve(lab))
    lab.start_agents(**SETTINGS[request.param])
    runner.run(lab.apply("first", FRONT_TO_BACK))
    yield lab
    for node in lab.nodes.values():
        node.stop()


async def _serve(lab: Lab) -> None:
    await lab.host("back2").serve("TCP", floods.SERVER_PORT)


def measure(lab: Lab, kind: str) -> Outcome:
    flood = next(flood for flood in floods.floods(identities(lab)["front1"]) if flood.name == kind)
    return floods.measure(lab, flood, SECONDS)


@pytest.mark.parametrize(("flooded", "kind"), CASES, indirect=["flooded"])
def test_others_lose_nothing_by_a_flood(flooded: Lab, kind: str) -> None:
    outcome = measure(flooded, kind)

    before, after = outcome.memory
    assert outcome.share_kept >= KEPT, outcome
    assert outcome.opened, outcome
    assert outcome.failed == 0, outcome
    assert after - before < GROWTH, outcome
    assert outcome.log_lines <= LINES, outcome


@pytest.mark.parametrize("flooded", ["netlink"], indirect=True)
def test_the_logs_stay_useful(flooded: Lab) -> None:
    node = flooded.nodes["n2"]

    measure(flooded, RANDOM)

    lines = node.log.read_text().splitlines()
    assert any("left out of the flow log; packets dropped meanwhile: POLICY_DENIED" in line for line in lines)
    front1 = str(flooded.address("front1"))
    flows = [flow["verdict"] for flow in node.observe() if flow["IP"]["source"] == front1]
    assert "FORWARDED" in flows
