"""A new endpoint, and policy for it, are enforced while another program holds the lock of iptables.

Only the backend legacy uses the lock. With per-flow, a command then has an unknown outcome: connections that were
offloaded before keep their verdicts until the lock is free.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.errors import OutcomeUnknown
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    DNS,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    MODES,
    PATIENT,
    Policies,
    dropped,
    endpoint_document,
    from_role,
    outcomes,
    passes,
    policy,
    start_all,
    until,
)
from tests.support.mounts import xtables_locked

BACKENDS = ("nft", "legacy")


@pytest.fixture(scope="module", params=[(backend, mode) for backend in BACKENDS for mode in MODES], ids="-".join)
def lab(
    make_served: MakeLab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    """Run agents that find one backend of iptables in PATH."""
    backend, mode = request.param
    folder = tmp_path_factory.mktemp(backend)
    _link_backend(folder, backend)
    lab = make_served()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        start_all(lab, datapath=mode)
        yield lab


def _link_backend(folder: Path, backend: str) -> None:
    program = shutil.which(f"xtables-{backend}-multi")
    if program is None:
        pytest.skip(f"iptables has no backend {backend} here")
    for family in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (folder / f"{family}{suffix}").symlink_to(program)


async def load(lab: Lab, name: str, document: str) -> None:
    """Load a document on node n1, which may not be able to enforce it on all open flows."""
    with suppress(OutcomeUnknown):
        await asyncio.to_thread(client.call, lab.nodes["n1"].socket, "apply", 6 * PATIENT, files=[(name, document)])


async def test_a_new_endpoint_is_enforced_while_another_program_holds_the_lock(lab: Lab) -> None:
    node, policies = lab.nodes["n1"], Policies(lab)
    await policies.apply("front-to-back", FRONT_TO_BACK)

    with xtables_locked(lab, node):
        late = lab.attach("late1", "n1")
        await late.serve("TCP", HTTP)
        await late.serve("UDP", DNS)
        await load(lab, "late.yaml", endpoint_document(lab, "late1", "backend"))
        expected = {
            **passes(["front1", "front2"], ["late1"]),
            **dropped(["back1", "back2", "db3", "world"], ["late1"]),
            **dropped(["late1"], ["front1", "front2"]),
        }
        assert await outcomes(lab, expected) == expected

        held = [await lab.host("front1").hold(lab.address("late1", family), HTTP, PATIENT) for family in FAMILIES]
        assert [(await one.talk(PATIENT)).ok for one in held] == [True, True]
        await load(lab, "front-to-back.yaml", policy("front-to-back", "backend", ingress=[from_role("nobody")]))
        assert [(await one.talk(BRIEF)).ok for one in held] == [False, False]

    await until(lambda: node.status()["rules"]["intact"])
    await policies.withdraw_all()
