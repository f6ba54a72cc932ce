"""Rules that another program removes: found, logged, restored, and never reported to the store as enforced.

In each case a forbidden connection is attempted without pause while the rules are removed, and an allowed connection
talks. At most two seconds after the removal the forbidden one is refused again; the allowed one is never cut.
"""

import asyncio
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules.comparison import describe
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.traffic_host import HeldConnection
from tests.integration.conftest import MakeLab
from tests.support.apart import run_apart
from tests.support.labs import (
    BRIEF,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    MODES,
    PATIENT,
    Policies,
    from_role,
    policy,
    run_in,
    stop_agents,
    until,
)
from tests.support.metrics import scrape
from tests.support.removals import FLUSHED_RULESET, REMOVALS, Removal

OPEN_LIMIT = 2.0  # s, from a removal to the last forbidden connection that succeeds
REPAIRED = "rules were changed by another program and have been repaired: "
each_removal = pytest.mark.parametrize("removal", [FLUSHED_RULESET, *REMOVALS], ids=lambda removal: removal.name)


@pytest.fixture(scope="module", params=MODES)
def guarded(request: pytest.FixtureRequest, make_served: MakeLab) -> Iterator[Lab]:
    """Run agents in each mode, with a store."""
    lab = make_served()
    lab.start_agents(datapath=request.param)
    yield lab
    stop_agents(lab)


def rules_status(lab: Lab) -> dict[str, Any]:
    """Return the status of the rules of n1, the node of the protected endpoint."""
    status: dict[str, Any] = lab.nodes["n1"].status()["rules"]
    return status


@asynccontextmanager
async def repeated(*steps: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Repeat each step without pause, all at the same time; end after the last ones.

    The tasks are not cancelled: ``asyncio.wait_for`` of Python 3.11 may lose a cancellation.
    """
    ended = False

    async def repeat(step: Callable[[], Awaitable[None]]) -> None:
        while not ended:
            await step()

    async with asyncio.TaskGroup() as group:
        for step in steps:
            group.create_task(repeat(step))
        try:
            yield
        finally:
            ended = True


class Talk:
    """Talk over an open connection."""

    def __init__(self, connection: HeldConnection) -> None:
        self._connection = connection
        self.outcomes: list[str] = []

    async def step(self) -> None:
        self.outcomes.append((await self._connection.talk(PATIENT)).status)


class Forbidden:
    """Forbidden connections from the world to back1, in one family."""

    def __init__(self, lab: Lab, family: int) -> None:
        self._host, self._target = lab.host("world"), lab.address("back1", family)
        self.opened = 0.0  # start of the last attempt that succeeded
        self.refused = 0.0  # start of the last attempt that did not

    async def step(self) -> None:
        begun = time.monotonic()
        if (await self._host.connect(self._target, HTTP, BRIEF)).ok:
            self.opened = begun
        else:
            self.refused = begun


async def test_a_repair_is_one_line_in_the_log_and_counted(guarded: Lab) -> None:
    """The first test of each lab: the program log limits equal lines."""
    node = guarded.nodes["n1"]
    logged, counted = len(node.log.read_text()), scrape(guarded, "n1")["rules_repairs_total"]

    run_in(guarded, "n1", "iptables", "-t", "security", "-F", "NFQE-QUEUE")
    await until(lambda: scrape(guarded, "n1")["rules_repairs_total"] > counted)

    lines = [line for line in node.log.read_text()[logged:].splitlines() if REPAIRED in line]
    assert len(lines) == 1
    assert "IPv4 security: chain NFQE-QUEUE lacks" in lines[0]
    metrics = scrape(guarded, "n1")
    assert (metrics["rules_intact"], metrics["rules_repairs_total"]) == (1, counted + 1)


@each_removal
async def test_removed_rules_are_restored_and_no_allowed_connection_is_cut(
    guarded: Lab, policies: Policies, removal: Removal
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    before = rules_status(guarded)["repairs"]
    held = [await guarded.host("front1").hold(guarded.address("back1", family), HTTP, PATIENT) for family in FAMILIES]
    talks, forbidden = [Talk(connection) for connection in held], [Forbidden(guarded, family) for family in FAMILIES]

    async with repeated(*(talk.step for talk in talks), *(one.step for one in forbidden)):
        await until(lambda: all(one.refused for one in forbidden))
        assert not any(one.opened for one in forbidden)
        removed = time.monotonic()
        run_in(guarded, "n1", "sh", "-c", removal.command)
        await until(lambda: rules_status(guarded)["repairs"] > before and rules_status(guarded)["intact"])
        await until(lambda: all(one.refused > removed + OPEN_LIMIT for one in forbidden))
        talked = [len(one.outcomes) for one in talks]
        await until(lambda: all(len(one.outcomes) > count for one, count in zip(talks, talked, strict=True)))

    assert all(one.opened < removed + OPEN_LIMIT for one in forbidden)
    assert {outcome for one in talks for outcome in one.outcomes} == {"ok"}
    assert removal.fault in rules_status(guarded)["last_missing"]
    remove_foreign(guarded)
    for connection in held:
        await connection.close()


def remove_foreign(lab: Lab) -> None:
    """Remove the rules that a removal has added."""
    for command in ("iptables", "ip6tables"):
        for table in ("security", "mangle"):
            for line in run_in(lab, "n1", f"{command}-save", "-t", table).splitlines():
                if re.fullmatch(r"-A (FORWARD|PREROUTING) -[jg] (ACCEPT|OTHERS)", line):
                    run_in(lab, "n1", command, "-t", table, *line.replace("-A ", "-D ").split())


async def test_a_policy_change_right_after_a_removal_is_enforced(guarded: Lab, policies: Policies) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    for _ in range(5):
        run_in(guarded, "n1", "sh", "-c", FLUSHED_RULESET.command)
        await policies.apply("front-to-back", policy("front-to-back", "backend", ingress=[from_role("db")]))

        for family in FAMILIES:
            target = guarded.address("back1", family)
            assert not (await guarded.host("front1").connect(target, HTTP, BRIEF)).ok
            assert (await guarded.host("db3").connect(target, HTTP, PATIENT)).ok
        await policies.apply("front-to-back", FRONT_TO_BACK)


# -- a repair that fails ----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file; while it exists, the agent of n1 cannot restore rules."""
    flag = tmp_path / "broken"
    for command in ("iptables-restore", "ip6tables-restore"):
        wrapper = tmp_path / command
        wrapper.write_text(
            f'#!/bin/sh\ncase $([ -e {flag} ] && ip netns identify $$) in *-n1) echo "no luck" >&2; exit 1;; esac\n'
            f'exec {shutil.which(command)} "$@"\n'
        )
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return flag


@pytest.mark.parametrize("mode", MODES)
async def test_rules_that_cannot_be_repaired_are_reported_until_they_are(
    make_lab: MakeLab, broken: Path, mode: str
) -> None:
    lab = make_lab()
    await asyncio.to_thread(lab.start_agents, datapath=mode)
    node, other = lab.nodes["n1"], lab.nodes["n2"]
    await lab.apply("front-to-back", FRONT_TO_BACK)
    enforced = {one["name"]: one["revision"] for one in client.call(other.socket, "nodes")}["n1"]

    broken.touch()
    run_in(lab, "n1", "iptables", "-t", "security", "-F")
    await until(lambda: not rules_status(lab)["intact"])
    assert "jump from FORWARD to NFQE-FORWARD is missing" in rules_status(lab)["missing"]
    assert "no luck" in rules_status(lab)["error"]
    assert scrape(lab, "n1")["rules_intact"] == 0
    await until(lambda: revision_of(other.socket, "n1") == 0)

    loaded = [("more.yaml", policy("more", "db", ingress=[from_role("backend")]))]
    answer = client.call(other.socket, "apply", timeout=2 * PATIENT, files=loaded, wait=3)
    assert {one["name"]: one["enforced"] for one in answer["nodes"]} == {"n1": False, "n2": True, "n3": True}
    with pytest.raises(NfqError, match="no luck"):
        client.call(node.socket, "apply", timeout=PATIENT, files=loaded)
    errors = [line for line in node.log.read_text().splitlines() if "ERROR" in line]
    assert 1 <= len(errors) <= 4, "\n".join(errors)

    broken.unlink()
    await until(lambda: rules_status(lab)["intact"])
    await until(lambda: revision_of(other.socket, "n1") > enforced)
    assert scrape(lab, "n1")["rules_intact"] == 1
    stop_agents(lab)


def revision_of(socket: Path, name: str) -> int:
    """Return the revision that a node enforces, by the store."""
    return int({one["name"]: one["revision"] for one in client.call(socket, "nodes")}[name] or 0)


# -- the comparison, without agents, with both backends of iptables ----------------------------------------------------


OPEN = PolicyMap({}, enforced=False)


def snapshot(epoch: int | None) -> Snapshot:
    """Return a snapshot with an endpoint in each family."""
    endpoint = LocalEndpoint("default/web", Identity(300), None, OPEN, OPEN)
    endpoints = {ip_address(address).packed: endpoint for address in ("10.0.0.1", "fd00::1")}
    return Snapshot(1, endpoints, Ipcache({}), epoch=epoch)


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make each backend of iptables the one in PATH."""
    program = shutil.which(f"xtables-{request.param}-multi")
    if program is None:
        pytest.skip(f"iptables has no backend {request.param} here")
    for family in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (tmp_path / f"{family}{suffix}").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return str(request.param)


@pytest.mark.parametrize("epoch", [None, 5])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_kernel_has_what_was_installed_and_each_removal_is_found_and_repaired(
    root: None, backend: str, epoch: int | None, workers: int
) -> None:
    async def scenario() -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        rules = Rules((IPV4, IPV6), fail_open=False, cluster_mtus={"eth0": 1500})
        rules.exempt([(ip_address("10.0.0.9"), 6379), (ip_address("fd00::9"), 6379)])
        rules.install(snapshot(epoch), allocate_queues(100, workers))
        found["nothing"] = describe(rules.check()), ""
        for removal in REMOVALS:
            process = await asyncio.create_subprocess_exec("sh", "-c", removal.command)
            assert await process.wait() == 0
            faults = rules.check()
            found[removal.name] = describe(faults), describe(rules.repair(faults))
        if epoch is not None:
            rules.set_epoch(epoch + 1)
        rules.release_addresses(snapshot(epoch))
        rules.update(replace(snapshot(epoch), endpoints={}))
        found["changes of ours"] = describe(rules.check()), ""
        rules.remove()
        found["removed"] = describe(rules.check()), ""
        return found

    found = run_apart(scenario())

    wanted = {removal.name: removal.fault for removal in REMOVALS}
    for name, (missing, remaining) in found.items():
        assert remaining == ""
        assert (wanted[name] in missing) if name in wanted else (missing == ""), f"{name}: {missing}"
