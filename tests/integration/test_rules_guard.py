"""Rules that another program removes: found, logged, restored, and never reported to the store as enforced.

In each case a forbidden connection is attempted without pause while the rules are removed, and an allowed connection
talks. At most two seconds after the removal the forbidden one is refused again, and from the moment on at which the
status has the repair; the allowed one is never cut.
"""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
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
from nfq_enforcer.dataplane.rules.opening_rules import Budgets
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
    dropped,
    endpoint_document,
    from_role,
    outcomes,
    passes,
    policy,
    run_in,
    stop_agents,
    until,
)
from tests.support.metrics import scrape
from tests.support.removals import FLUSHED_RULESET, REMOVALS, Removal, remove_foreign

OPEN_LIMIT = 2.0  # s, from a removal to the last forbidden connection that succeeds
TALK_INTERVAL = 0.01  # s between two messages of an allowed connection
REPAIRED = "rules were changed by another program and have been repaired: "
WEB = (f"{HTTP}/TCP",)
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
        await asyncio.sleep(TALK_INTERVAL)


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
        repaired = time.monotonic()
        await until(lambda: all(one.refused > repaired for one in forbidden))
        talked = [len(one.outcomes) for one in talks]
        await until(lambda: all(len(one.outcomes) > count for one, count in zip(talks, talked, strict=True)))

    assert all(one.opened < min(repaired, removed + OPEN_LIMIT) for one in forbidden)
    assert {outcome for one in talks for outcome in one.outcomes} == {"ok"}
    assert removal.fault in rules_status(guarded)["last_missing"]
    remove_foreign(guarded, "n1")
    for connection in held:
        await connection.close()


@pytest.mark.parametrize("priority", [0, 60, 100, 148])
async def test_a_chain_of_others_that_clears_the_mark_before_table_security_changes_nothing(
    guarded: Lab, policies: Policies, priority: int
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    hook = f"{{ type filter hook forward priority {priority}; }}"
    run_in(guarded, "n1", "nft", f"add table inet others; add chain inet others forward {hook}")
    run_in(guarded, "n1", "nft", "add rule inet others forward meta mark set 0")
    try:
        expected = dropped(["world"], ["back1"], WEB) | passes(["front1"], ["back1"], WEB)
        assert await outcomes(guarded, expected) == expected
    finally:
        run_in(guarded, "n1", "nft", "delete table inet others")
    assert rules_status(guarded)["intact"]


async def test_a_policy_change_right_after_a_removal_is_enforced(guarded: Lab, policies: Policies) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    for _ in range(5):
        run_in(guarded, "n1", "sh", "-c", FLUSHED_RULESET.command)
        await policies.apply("front-to-back", policy("front-to-back", "backend", ingress=[from_role("db")]))

        expected = dropped(["front1"], ["back1"], WEB) | passes(["db3"], ["back1"], WEB)
        assert await outcomes(guarded, expected) == expected
        await policies.apply("front-to-back", FRONT_TO_BACK)


IPSETS = {4: "nfqe-local4", 6: "nfqe-local6"}
each_loss = pytest.mark.parametrize("loss", ["ipset flush", "ipset destroy"])


@each_loss
async def test_ipsets_that_are_gone_concern_no_verdict_and_come_back(
    guarded: Lab, policies: Policies, loss: str
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    name, before = f"late{loss.split()[1]}"[:10], rules_status(guarded)["repairs"]
    late = guarded.attach(name, "n1")

    async def answered() -> list[bool]:
        pairs = [(guarded.host(source), BRIEF) for source in ("world", "back2")] + [(guarded.host("front2"), PATIENT)]
        targets = [guarded.address("back1", family) for family in FAMILIES]
        return [(await host.connect(target, HTTP, time)).ok for host, time in pairs for target in targets]

    def listed(family: int) -> set[str]:
        saved = run_in(guarded, "n1", "ipset", "save").splitlines()
        return {words[2] for words in map(str.split, saved) if words[:2] == ["add", IPSETS[family]]}

    run_in(guarded, "n1", "sh", "-c", loss)
    assert await answered() == [False] * 4 + [True] * 2
    assert not (await late.connect(guarded.address("back1", 4), HTTP, BRIEF)).ok

    document = endpoint_document(guarded, name, "frontend")
    await asyncio.to_thread(client.call, guarded.nodes["n1"].socket, "apply", files=[("late.yaml", document)])
    for family in FAMILIES:
        assert (await late.connect(guarded.address("back1", family), HTTP, PATIENT)).ok
        members = {str(guarded.address(one, family)) for one in ("front1", "back1", name)}
        await until(lambda family=family, members=members: listed(family) == members)  # no change waits for ipset
    assert await answered() == [False] * 4 + [True] * 2
    assert (rules_status(guarded)["intact"], rules_status(guarded)["repairs"]) == (True, before)
    await asyncio.to_thread(client.call, guarded.nodes["n1"].socket, "delete_endpoints", names=[f"default/{name}"])


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
    seen = node.status()
    parts = {part["part"]: part for part in seen["health"]["parts"]}
    assert (parts["rules"]["state"], parts["rules"]["since"]) == ("degraded", seen["rules"]["since"])
    assert "no luck" in parts["rules"]["message"]
    assert scrape(lab, "n1")["degraded"] == 1
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
    await until(lambda: node.status()["health"]["state"] == "ok")
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


# The rules of an epoch do not depend on the number of workers.
@pytest.mark.parametrize(("epoch", "workers"), [(None, 1), (None, 3), (5, 3)])
def test_the_kernel_has_what_was_installed_and_each_removal_is_found_and_repaired(
    root: None, backend: str, epoch: int | None, workers: int
) -> None:
    async def scenario() -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        rules = Rules((IPV4, IPV6), fail_open=False, cluster_mtus={"eth0": 1500}, budgets=Budgets())
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


def test_rules_are_read_again_only_after_changes_of_others(
    root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = tmp_path / "reads"
    for family in ("iptables", "ip6tables"):
        script = tmp_path / f"{family}-save"
        script.write_text(f'#!/bin/sh\necho {family} >> {reads}\nexec xtables-nft-multi {family}-save "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def scenario() -> list[tuple[bool, str]]:
        seen = []
        rules = Rules((IPV4, IPV6), fail_open=False, cluster_mtus={})
        rules.install(snapshot(None), allocate_queues(100, 1))
        rules.check()

        async def change(*foreign: str) -> None:
            reads.unlink(missing_ok=True)
            if foreign:
                await output(*foreign)
            rules.update(replace(snapshot(None), endpoints={}))
            rules.update(snapshot(None))
            faults = describe(rules.check())
            seen.append((reads.exists(), faults))

        await change()
        await change("nft", "add", "table", "ip", "foreign")
        await change()
        await change("iptables", "-t", "security", "-F")
        return seen

    alone, beside, again, flushed = run_apart(scenario())

    assert (alone, beside, again) == ((False, ""), (True, ""), (False, ""))
    assert flushed[0]
    assert "INPUT" in flushed[1]


def test_the_addresses_of_endpoints_are_in_ipsets_for_the_administrator(root: None) -> None:
    async def scenario() -> list[set[str]]:
        rules = Rules((IPV4, IPV6), fail_open=False, cluster_mtus={})
        seen = []

        async def note() -> None:
            rules.update_ipsets()
            lines = (await output("ipset", "save")).splitlines()
            seen.append({line.removeprefix("add ") for line in lines if line.startswith("add ")})

        rules.install(snapshot(None), allocate_queues(100, 1))
        await note()
        await output("ipset", "destroy", "nfqe-local6")
        rules.install(snapshot(None), allocate_queues(100, 1))
        await note()
        rules.release_addresses(replace(snapshot(None), endpoints={}))
        rules.update(replace(snapshot(None), endpoints={}))
        await note()
        rules.update(snapshot(None))
        await note()
        rules.remove()
        assert await output("ipset", "list", "-n") == ""
        return seen

    both = {"nfqe-local4 10.0.0.1", "nfqe-local6 fd00::1"}
    assert run_apart(scenario()) == [both, both, set(), both]


# -- rules that were saved while an agent ran --------------------------------------------------------------------------

ADMINISTRATORS = (
    "-t filter -A INPUT -p tcp -m tcp --dport 4444 -j DROP",
    "-t mangle -A PREROUTING -p udp -m udp --dport 5555 -j DROP",
    "-t security -A FORWARD -p tcp -m tcp --dport 6666 -j DROP",
)
FAMILY_COMMANDS = ("iptables", "ip6tables")


async def output(*command: str, text: str = "") -> str:
    """Return the output of a command with this input, which must succeed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    answer, _ = await process.communicate(text.encode())
    assert process.returncode == 0, command
    return answer.decode()


async def saved_rules() -> dict[str, str]:
    return {command: await output(f"{command}-save") for command in FAMILY_COMMANDS}


@pytest.mark.parametrize("epoch", [None, 5])
def test_a_file_of_saved_rules_is_restored_where_no_set_of_ours_exists(
    root: None, backend: str, epoch: int | None
) -> None:
    """The tools of a boot restore all tables of a file or none (netfilter-persistent, iptables.service)."""
    queues = allocate_queues(100, 3)

    def make_rules() -> Rules:
        rules = Rules((IPV4, IPV6), fail_open=False, cluster_mtus={"eth0": 1500}, budgets=Budgets())
        rules.exempt([(ip_address("10.0.0.9"), 6379), (ip_address("fd00::9"), 6379)])
        rules.set_remote_networks(frozenset({ip_network("10.9.0.0/24")}))
        return rules

    async def before() -> dict[str, str]:
        for rule in ADMINISTRATORS:
            for command in FAMILY_COMMANDS:
                await output(command, *rule.split())
        make_rules().install(snapshot(epoch), queues)
        return await saved_rules()

    async def at_boot(saved: dict[str, str]) -> tuple[dict[str, str], str, list[str], dict[str, str]]:
        for command, text in saved.items():
            await output(f"{command}-restore", text=text)
        restored = await saved_rules()
        for command in FAMILY_COMMANDS:  # of an earlier version of this program
            await output(command, *["-t", "security", "-N", "NFQE-OLD"])
            await output(command, *["-t", "security", "-A", "NFQE-OLD", "-j", "NFQE-QUEUE"])
            await output(command, *["-t", "security", "-A", "OUTPUT", "-p", "tcp", "-j", "NFQE-OLD"])
        rules = make_rules()
        rules.install(snapshot(epoch), queues)
        faults = describe(rules.check())
        stale = [line for text in (await saved_rules()).values() for line in text.splitlines() if "NFQE-OLD" in line]
        rules.remove()
        return restored, faults, stale, await saved_rules()

    restored, faults, stale, after = run_apart(at_boot(run_apart(before())))

    assert (faults, stale) == ("", [])
    for command in FAMILY_COMMANDS:
        assert all(rule.split(" ", 2)[2] in restored[command] for rule in ADMINISTRATORS)
        assert "-j NFQE-FORWARD" in restored[command]
        assert all(rule.split(" ", 2)[2] in after[command] for rule in ADMINISTRATORS)
        assert "NFQE" not in after[command]


async def test_an_agent_takes_over_the_rules_that_a_boot_has_restored(guarded: Lab, policies: Policies) -> None:
    await policies.apply("closed", FRONT_TO_BACK)
    node, settings = guarded.nodes["n1"], guarded.nodes["n1"].status()["datapath"]
    saved = {command: run_in(guarded, "n1", f"{command}-save") for command in FAMILY_COMMANDS}

    async def outcomes() -> list[bool]:
        ends = [("front1", "back1"), ("world", "back1")]
        return [
            (await guarded.host(client_).connect(guarded.address(server, family), HTTP, BRIEF)).ok
            for family in FAMILIES
            for client_, server in ends
        ]

    def restore() -> None:
        for command, text in saved.items():
            run_in(guarded, "n1", f"{command}-restore", text=text)

    assert await outcomes() == [True, False] * 2
    restore()  # as a reload of the service of the saved rules does while the agent runs
    assert await outcomes() == [True, False] * 2
    await until(lambda: rules_status(guarded)["intact"])

    await asyncio.to_thread(node.stop)
    restore()
    assert await outcomes() == [True] * 4  # no agent has started yet, and the restored rules cut nobody off
    await asyncio.to_thread(node.start, datapath=settings)
    await asyncio.to_thread(node.wait_until_ready)

    assert await outcomes() == [True, False] * 2
    assert rules_status(guarded)["intact"]
