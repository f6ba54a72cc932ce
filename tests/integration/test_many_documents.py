"""Many documents on one host: a file that is read for seconds comes into force, and a file saved meanwhile, too.

Meanwhile no packet is lost and no connection fails.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.dataplane.rules.filter_table import TABLE
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, FRONT_TO_BACK, HTTP, PATIENT, policy, run_in, save, start, to_role, until
from tests.support.prefixes import document, documents
from tests.support.stream import Stream

MANY = 5000
LONG = 60.0  # s, for a machine with other work to do
ENDPOINT = """---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: e{number}, labels: {{role: r{role}}}}}
spec: {{ips: [10.99.{third}.{fourth}], interface: v{number}}}
"""


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    lab = make_served(memory=True)
    start(lab, "n1")
    return lab


@pytest.fixture
def saved(lab: Lab) -> Iterator[Path]:
    """Give the path of a file that is removed after the test."""
    file = lab.documents / "many.yaml"
    yield file
    file.unlink(missing_ok=True)


def in_force(lab: Lab) -> int:
    """Return how many of the many endpoints the kernel queues packets of."""
    return run_in(lab, "n1", "nft", "list", "set", *TABLE.split(), "ends4").count(" 10.99.")


def policies(node: LabNode) -> int:
    documents: dict[str, int] = node.status()["documents"]
    return documents["policies"]


async def test_a_large_file_and_a_policy_saved_while_it_is_read_are_both_in_force(lab: Lab, saved: Path) -> None:
    node, back = lab.nodes["n1"], lab.address("back1")
    many = "".join(
        ENDPOINT.format(number=number, role=number % 20, third=number // 250, fourth=number % 250 + 1)
        for number in range(MANY)
    )
    save(saved, many)
    save(lab.documents / "policies.yaml", FRONT_TO_BACK)

    shown: list[dict[str, Any]] = []

    def watched() -> bool:
        shown.extend(node.status()["working"])
        return in_force(lab) == MANY

    await until(watched, LONG)
    assert {work["total"] for work in shown if work["activity"].startswith(f"reading {saved}")} == {len(many)}
    await until(lambda: policies(node) == 1, LONG)
    assert (await lab.host("front1").connect(back, HTTP, PATIENT)).ok
    assert not (await lab.host("world").connect(back, HTTP, BRIEF)).ok
    assert node.status()["refused"] is None
    await until(lambda: "do not exist on this node" in node.log.read_text(), LONG)
    (problem,) = node.status()["problems"]
    assert problem.startswith(f"{MANY} endpoints are on interfaces that do not exist on this node: ")
    (line,) = (line for line in node.log.read_text().splitlines() if "not exist on this node" in line)
    assert problem in line


async def test_no_connection_fails_while_a_hundred_thousand_prefixes_come_into_force_change_and_go(lab: Lab) -> None:
    node, world, back = lab.nodes["n1"], lab.host("world"), lab.address("back1")
    file, single, rest = (lab.documents / f"{name}.yaml" for name in ("prefixes", "single", "policies"))
    last = f"    - {lab.address('world')}/32\n"

    async def enforced(texts: dict[Path, str], number: int) -> None:
        before = node.status()["revision"]
        for path, text in texts.items():
            save(path, text)
        await until(lambda: policies(node) == number and node.status()["revision"] > before, LONG, 0.1)

    await enforced({rest: FRONT_TO_BACK + policy("front-out", "frontend", egress=[to_role("backend")])}, 2)
    with Stream(lab, "front1", "back1") as stream:
        await enforced({file: documents(10, 10_000)}, 12)
        assert not (await world.connect(back, HTTP, BRIEF)).ok
        await enforced({single: document(10, 10_000) + last}, 13)
        assert (await world.connect(back, HTTP, PATIENT)).ok
        await enforced({single: document(10, 10_000)}, 13)
        assert not (await world.connect(back, HTTP, BRIEF)).ok
        await enforced({file: "", single: ""}, 2)
        summary = stream.summary()

    assert (summary.lost, summary.failed) == (0, 0)
    assert summary.datagrams and summary.connections
