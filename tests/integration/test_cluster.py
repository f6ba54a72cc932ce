"""A cluster on Redis under real traffic: while the store works, while it is away, and after its return."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import STORE
from nfq_enforcer.lab.traffic_host import HeldConnection
from nfq_enforcer.store.redis.connection import PERMISSIONS
from tests.support.labs import (
    BRIEF,
    DNS,
    FAMILIES,
    FRONT_TO_BACK,
    HTTP,
    PATIENT,
    PROGRAM,
    Attempt,
    Policies,
    dropped,
    enforces_all,
    from_role,
    identities,
    outcomes,
    passes,
    policy,
    run_in,
    stop_agents,
    to_role,
)
from tests.support.redis_servers import Certificates, RedisServer, Sentinel

STEADY = 60.0  # for a connection that must not end; on a busy machine it may wait long
PACE = 0.05  # seconds between two attempts of the continuous traffic
DB_TO_BACK = policy("db-to-back", "backend", ingress=[from_role("db")])
SCRAPE = (
    "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9962/metrics', timeout=9).read().decode())"
)


def until(condition: Callable[[], object], what: str) -> None:
    """Return when the condition holds; fail if it does not for long."""
    deadline = time.monotonic() + STEADY
    while not condition():
        assert time.monotonic() < deadline, f"not within {STEADY:.0f} s: {what}"
        time.sleep(0.02)


def command(lab: Lab, node: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``nfq-enforcer`` at a node's agent."""
    argv = [*PROGRAM, *arguments, "--socket", str(lab.nodes[node].socket)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=STEADY)


def add(lab: Lab, name: str, at: str, role: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Add an attached endpoint by the command line of the node ``at``."""
    addresses = [word for family in FAMILIES for word in ("--ip", str(lab.address(name, family)))]
    said = ("--label", f"role={role}", "--interface", f"veth-{name}")
    return command(lab, at, "endpoint", "add", name, *addresses, *said, *options)


def store_of(lab: Lab, node: str) -> dict[str, Any]:
    """Return the store's part of a node's status."""
    seen: dict[str, Any] = lab.nodes[node].status()["store"]
    return seen


def scrape(lab: Lab, node: str) -> dict[str, float]:
    """Return a node's metrics of the store."""
    families = parse(run_in(lab, node, sys.executable, "-c", SCRAPE))
    return {one.name.removeprefix("nfq_enforcer_"): one.value for family in families for one in family.samples}


def in_step(lab: Lab) -> bool:
    """Return whether all nodes are connected and enforce the same revision of the same state."""
    seen = [store_of(lab, node) for node in lab.nodes]
    same = ("position", "policy_revision", "nodes", "identities", "endpoints", "documents")
    return all(one["connected"] for one in seen) and len({tuple(one[key] for key in same) for one in seen}) == 1


def are_cut_off(lab: Lab) -> bool:
    """Return whether every node has detected that the store is unreachable."""
    return not any(store_of(lab, node)["connected"] for node in lab.nodes)


@contextmanager
def cut_off(lab: Lab, node: str) -> Iterator[None]:
    """Drop all packets between a node and the store, outside of the node."""
    rules = [("INPUT", "-s"), ("OUTPUT", "-d")]
    address = str(lab.address(node))
    for chain, end in rules:
        run_in(lab, STORE, "iptables", "-A", chain, end, address, "-j", "DROP")
    try:
        yield
    finally:
        for chain, end in rules:
            run_in(lab, STORE, "iptables", "-D", chain, end, address, "-j", "DROP")


@pytest.fixture
def workloads(guarded: Lab) -> Iterator[Callable[..., str]]:
    """Attach workloads with a server each, and delete their endpoints at the end."""
    names: list[str] = []

    def attach(node: str) -> str:
        name = f"late{len(guarded.topology.attached)}"
        guarded.attach(name, node)
        names.append(name)
        return name

    yield attach
    until(lambda: all(store_of(guarded, node)["connected"] for node in guarded.nodes), "the store is there for all")
    for name in names:
        command(guarded, "n1", "endpoint", "delete", name)
    until(lambda: in_step(guarded), "the cluster is in step")


Workloads = Callable[..., str]


async def test_a_new_endpoint_is_let_in_by_a_node_that_has_heard_nothing_of_it(
    guarded: Lab, policies: Policies, workloads: Workloads
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    known, other = workloads("n1"), workloads("n1")
    with cut_off(guarded, "n2"):
        until(lambda: not store_of(guarded, "n2")["connected"], "n2 notices")
        before = guarded.nodes["n2"].status()

        said = await asyncio.to_thread(add, guarded, known, "n1", "frontend")
        unknown = await asyncio.to_thread(add, guarded, other, "n1", "guest")
        expected = passes([known], ["back2"]) | dropped([other], ["back2"]) | dropped([known], ["front2"])
        seen = await outcomes(guarded, expected)

        after = guarded.nodes["n2"].status()
    assert f"default/{known} added: identity {identities(guarded)['front1']} " in said.stdout
    assert f"default/{other} added: new identity " in unknown.stdout
    assert seen == expected
    for key in ("revision", "compilations", "documents"):
        assert after[key] == before[key], key
    for key in ("position", "connected", "since", "resyncs"):
        assert after["store"][key] == before["store"][key], key

    until(lambda: in_step(guarded), "n2 is in step again")
    assert {known, other} <= {one["name"] for one in client.call(guarded.nodes["n2"].socket, "endpoints")}
    assert await outcomes(guarded, expected) == expected


async def test_an_endpoint_is_added_and_deleted_for_any_node_from_any_node(
    guarded: Lab, policies: Policies, workloads: Workloads
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    name = workloads("n2")
    await guarded.host(name).serve("TCP", HTTP)
    await guarded.host(name).serve("UDP", DNS)

    added = await asyncio.to_thread(add, guarded, name, "n1", "backend", "--node", "n2")
    until(lambda: in_step(guarded), "all nodes have heard of it")
    expected = passes(["front1", "front2"], [name]) | dropped(["db3", "back2", "back1"], [name])
    n2 = guarded.nodes["n2"]
    until(lambda: n2.status()["endpoints"] == 3 and enforces_all(n2), "n2 enforces it")
    seen = await outcomes(guarded, expected)
    deleted = await asyncio.to_thread(command, guarded, "n3", "endpoint", "delete", name)

    assert (added.returncode, deleted.stdout) == (0, f"default/{name} deleted\n")
    assert seen == expected
    until(lambda: n2.status()["endpoints"] == 2, "n2 has let go of it")


async def test_a_load_that_waits_returns_when_every_node_enforces_it(
    guarded: Lab, policies: Policies, tmp_path: Path
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    file = tmp_path / "policy.yaml"
    pairs = [("db3", "back1"), ("db3", "back2"), ("back1", "back2"), ("back2", "back1")]

    for node, role in zip(("n1", "n2", "n3", "n1"), ("db", "backend", "db", "frontend"), strict=True):
        file.write_text(policy("turn", "backend", ingress=[from_role(role)]))
        loaded = await asyncio.to_thread(command, guarded, node, "policy", "load", "--wait", str(file))
        expected: dict[Attempt, str] = {}
        for source, target in pairs:
            allowed = (role == "db") == (source == "db3") and role != "frontend"
            expected |= (passes if allowed else dropped)([source], [target], ["80/TCP", "53/UDP"])
        seen = await outcomes(guarded, expected)
        assert seen == expected, role
        assert "is in force on 3 of 3 live nodes" in loaded.stdout

    guarded.nodes["n3"].stop()
    without = await asyncio.to_thread(command, guarded, "n1", "policy", "load", "--wait", str(file))
    guarded.nodes["n3"].start()
    guarded.nodes["n3"].wait_until_ready()
    await asyncio.to_thread(command, guarded, "n1", "policy", "delete", "default/turn")
    until(lambda: in_step(guarded), "the cluster is in step")
    assert "is in force on 2 of 2 live nodes\nnot waited for: n3 (last seen " in without.stdout


# -- outages ----------------------------------------------------------------------------------------------------------

TALKING = (("front1", "back2"), ("front2", "back2"), ("front3", "back1"), ("front1", "back1"))
FORBIDDEN = (("front1", "db3"), ("db3", "back2"), ("back1", "back2"), ("front1", "front2"), ("db3", "front3"))


class Traffic:
    """Traffic: allowed and forbidden connections, attempted continuously, and the unexpected results."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._over = asyncio.Event()
        self.wrong: list[str] = []
        self._done: list[int] = []  # number of attempts of each

    async def once_more(self) -> None:
        """Return when each of the attempts has been made once more from beginning to end."""
        before = list(self._done)
        await wait(lambda: all(now > then + 1 for now, then in zip(self._done, before, strict=True)), "traffic goes on")

    async def _until_over(self, kind: str, what: str, expected: str, attempt: Callable[[], Any]) -> None:
        place = len(self._done)
        self._done.append(0)
        while not self._over.is_set():
            status = (await attempt()).status
            self._done[place] += 1
            if status != expected:
                self.wrong.append(f"{kind}: {what}: {status}")
            try:
                await asyncio.wait_for(self._over.wait(), PACE)
            except TimeoutError:
                continue

    def _attempts(self, kind: str, source: str, target: str, timeout: float, expected: str) -> list[Any]:
        host = self._lab.host(source)
        made = []
        for family in FAMILIES:
            to, what = self._lab.address(target, family), f"{source} to {target} by IPv{family}"
            tcp, udp = partial(host.connect, to, HTTP, timeout), partial(host.send_udp, to, DNS, timeout)
            made.append(self._until_over(kind, f"TCP {what}", expected, tcp))
            made.append(self._until_over(kind, f"UDP {what}", expected, udp))
        return made

    async def _held(self, source: str, target: str) -> list[HeldConnection]:
        return [await self._lab.host(source).hold(self._lab.address(target, f), HTTP, PATIENT) for f in FAMILIES]

    @asynccontextmanager
    async def going_on(self, *, opening: bool = True) -> AsyncIterator[None]:
        """Run the traffic; ``opening``: with new allowed connections, too."""
        held = [one for pair in TALKING for one in await self._held(*pair)]
        loops = [self._until_over("talked", c.host.name, "ok", partial(c.talk, STEADY)) for c in held]
        for pair in TALKING if opening else ():
            loops += self._attempts("opened", *pair, PATIENT, "ok")
        for pair in FORBIDDEN:
            loops += self._attempts("refused", *pair, BRIEF, "timeout")
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await wait(lambda: len(self._done) == len(tasks), "traffic has begun")
            await self.once_more()
            yield
            await self.once_more()
        finally:
            self._over.set()
            await asyncio.gather(*tasks)
            for one in held:
                await one.close()


async def wait(condition: Callable[[], object], what: str) -> None:
    """Wait without blocking the traffic."""
    await asyncio.to_thread(until, condition, what)


def agreed(lab: Lab) -> list[dict[str, int]]:
    """Return the identities of all endpoints on each node."""
    return [
        {one["name"]: one["identity"] for one in client.call(node.socket, "endpoints")} for node in lab.nodes.values()
    ]


@pytest.mark.parametrize("comes_back", ["empty", "with an old dump"])
async def test_a_store_that_crashes_and_has_lost_things_changes_nothing_that_is_enforced(
    guarded: Lab, policies: Policies, comes_back: str
) -> None:
    await policies.apply("deleted-since", DB_TO_BACK)
    await asyncio.to_thread(guarded.store.save)
    await policies.apply("loaded-since", FRONT_TO_BACK)
    await policies.withdraw("deleted-since")
    before = agreed(guarded)
    traffic = Traffic(guarded)

    async with traffic.going_on():
        await asyncio.to_thread(guarded.store.kill)
        await wait(lambda: are_cut_off(guarded), "the nodes notice")
        await traffic.once_more()
        await asyncio.to_thread(guarded.store.restart, empty=comes_back == "empty")
        await wait(lambda: in_step(guarded), "the cluster is in step again")

    assert traffic.wrong == []
    assert agreed(guarded) == before
    assert [one["name"] for one in client.call(guarded.nodes["n3"].socket, "policies")] == ["front-to-back"]


async def test_agents_that_restart_without_the_store_go_on_with_the_last_known_state(
    guarded: Lab, policies: Policies
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    before = agreed(guarded)
    traffic = Traffic(guarded)

    async with traffic.going_on(opening=False):  # a node without an agent opens no connection: fail: closed
        await asyncio.to_thread(guarded.store.kill)
        await wait(lambda: are_cut_off(guarded), "the nodes notice")
        await traffic.once_more()
        for node in guarded.nodes.values():
            await asyncio.to_thread(node.stop, signal.SIGKILL)
            node.start()
            await asyncio.to_thread(node.wait_until_ready)
        expected = passes(["front1", "front2"], ["back1", "back2"])
        seen = await outcomes(guarded, expected)
        await asyncio.to_thread(guarded.store.restart, empty=True)
        await wait(lambda: in_step(guarded), "the cluster is in step again")

    assert traffic.wrong == []
    assert seen == expected
    assert agreed(guarded) == before


async def test_while_the_store_is_away_what_is_known_can_start_and_the_outage_is_seen(
    guarded: Lab, policies: Policies, workloads: Workloads
) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    known, other = workloads("n1"), workloads("n1")
    guarded.store.kill()
    until(lambda: are_cut_off(guarded), "the nodes notice")

    said = await asyncio.to_thread(add, guarded, known, "n1", "frontend")
    refused = await asyncio.to_thread(add, guarded, other, "n1", "stranger")
    expected = passes([known], ["back1", "back2"]) | dropped([known], ["front2", "db3"])
    seen = await outcomes(guarded, expected)
    status = await asyncio.to_thread(command, guarded, "n1", "status")
    measured = scrape(guarded, "n1")
    since = store_of(guarded, "n1")["since"]
    guarded.store.start()
    until(lambda: in_step(guarded), "the cluster is in step again")

    assert (said.returncode, seen) == (0, expected)
    assert refused.returncode == 1
    assert "no endpoint has had the labels " in refused.stderr
    assert "is unreachable since " in refused.stderr
    assert f"unreachable since {since}" in " ".join(status.stdout.split())
    assert measured["store_connected"] == 0
    assert measured["store_unreachable_since_timestamp_seconds"] == datetime.fromisoformat(since).timestamp()
    assert all(known in found for found in agreed(guarded))


async def test_a_node_that_policy_closes_keeps_and_renews_its_connection_to_the_store(
    guarded: Lab, policies: Policies
) -> None:
    closed = policy("closed", "monitor", ingress=[from_role("nobody")], egress=[to_role("nobody")])
    await policies.apply("closed", closed)

    guarded.store.restart()
    until(lambda: in_step(guarded), "n3 is there again")

    expected = dropped(["n3"], ["back1", "db3"]) | dropped(["front1"], ["n3"])
    assert await outcomes(guarded, expected) == expected
    assert store_of(guarded, "n3")["connected"]


async def test_values_that_are_not_understood_are_named_and_do_no_harm(guarded: Lab, policies: Policies) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    redis = ("redis-cli", "-h", str(guarded.address(STORE)))
    strange = {
        ("nfqe:endpoints", "default/corrupt"): "1-1 {",
        ("nfqe:documents", "CiliumNetworkPolicy/default/newer"): '1-1 {"v":2}',
        ("nfqe:nodes", "foreign"): "hello",
    }
    traffic = Traffic(guarded)

    async with traffic.going_on():
        for (key, field), value in strange.items():
            run_in(guarded, STORE, *redis, "HSET", key, field, value)
        run_in(guarded, STORE, *redis, "XADD", "nfqe:changes", "*", "who", "knows")
        await asyncio.to_thread(guarded.store.save)
        await asyncio.to_thread(guarded.store.restart)
        await wait(lambda: store_of(guarded, "n2")["refused"]["count"] >= len(strange), "n2 has read all anew")
        status = await asyncio.to_thread(command, guarded, "n2", "status", "-o", "json")
    for key, field in strange:
        run_in(guarded, STORE, *redis, "HDEL", key, field)
    guarded.store.save()
    guarded.store.restart()
    until(lambda: in_step(guarded), "the cluster is in step again")

    assert traffic.wrong == []
    named = {one["key"]: one["reason"] for one in json.loads(status.stdout)["store"]["refused"]["values"]}
    assert named["endpoints default/corrupt"] == "it is not JSON"
    assert named["documents CiliumNetworkPolicy/default/newer"] == "it is of version 2; this program understands 1"
    assert "nodes foreign" in named


# -- other deployments ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(make_served: Callable[..., Lab]) -> Lab:
    """Give a lab with agents that the test starts, each with the store under test."""
    return make_served()


@pytest.fixture
def unstarted(other: Lab) -> Iterator[Lab]:
    """Give that lab with neither agents nor a store, stop both at the end, and assert that no log has a traceback."""
    yield other
    stop_agents(other)
    other.store.kill()
    for node in other.nodes:
        assert "NFQE" not in run_in(other, node, "iptables-save")


def at_store(lab: Lab, tmp_path: Path, port: int, **options: Any) -> RedisServer:
    """Return a server on the store's machine, at another port than the lab's own."""
    host, prefix = str(lab.address(STORE)), lab.network.command(STORE, [])
    return RedisServer(tmp_path / str(port), port, host=host, prefix=prefix, **options)


async def test_a_failover_by_sentinels_changes_nothing_that_is_enforced(unstarted: Lab, tmp_path: Path) -> None:
    lab = unstarted
    with ExitStack() as stack:
        primary = stack.enter_context(at_store(lab, tmp_path, 7001))
        replica = stack.enter_context(at_store(lab, tmp_path, 7002, replica_of=primary))
        command_at = lab.network.command(STORE, [])
        sentinels = [
            stack.enter_context(Sentinel(tmp_path / f"s{port}", primary, port=port, prefix=command_at))
            for port in (7011, 7012)
        ]
        until(lambda: all(map(_knows_the_others, sentinels)), "the Sentinels know each other and the replica")
        servers = ",".join(f"{one.host}:{one.port}" for one in sentinels)
        lab.start_agents(store=f"redis+sentinel://{servers}/main")
        await lab.apply("front-to-back", FRONT_TO_BACK)
        before, traffic = agreed(lab), Traffic(lab)

        async with traffic.going_on():
            await asyncio.to_thread(primary.kill)
            await wait(lambda: are_cut_off(lab), "the nodes notice")
            await wait(lambda: "role:master" in replica.ask("INFO", "replication"), "the replica takes over")
            await wait(lambda: in_step(lab), "the cluster is in step again")

        assert traffic.wrong == []
        assert agreed(lab) == before
        for node in lab.nodes.values():
            node.stop()


def _knows_the_others(sentinel: Sentinel) -> bool:
    state = sentinel.ask("SENTINEL", "MASTER", "main").split()
    seen = dict(zip(state[::2], state[1::2], strict=False))
    return (seen.get("num-slaves"), seen.get("num-other-sentinels")) == ("1", "1")


async def test_a_first_start_without_the_store_waits_for_it_and_says_so(unstarted: Lab) -> None:
    node = unstarted.nodes["n3"]
    node.start(state=str(unstarted.network.state / "never"))
    until(node.socket.exists, "the agent answers")
    until(lambda: "unreachable" in node.log.read_text(), "the log says so")
    status = node.status()

    said = [line for line in node.log.read_text().splitlines() if "unreachable" in line]
    assert len(said) == 1
    assert os.strerror(errno.ECONNREFUSED) in said[0]
    assert not status["store"]["connected"]
    assert "ready" not in node.log.read_text().splitlines()

    unstarted.store.start()
    node.wait_until_ready()
    assert store_of(unstarted, "n3")["connected"]


async def test_a_first_start_that_waits_for_the_store_can_be_ended(unstarted: Lab) -> None:
    node = unstarted.nodes["n3"]
    node.start(state=str(unstarted.network.state / "nothing"))
    until(lambda: "unreachable" in node.log.read_text(), "the log says so")

    assert node.stop() == 0

    assert "NFQE" not in run_in(unstarted, "n3", "iptables-save")
    assert run_in(unstarted, "n3", "nft", "list", "tables", "inet") == ""
    assert run_in(unstarted, "n3", "ipset", "list", "-name") == ""


async def test_a_secret_is_nowhere_to_be_read(unstarted: Lab, tmp_path: Path) -> None:
    host, secret, node = str(unstarted.address(STORE)), "geheim-s3cret", unstarted.nodes["n1"]
    certificates = Certificates.make(tmp_path / "tls", host)
    (tmp_path / "password").write_text(f"{secret}\n")
    acl = [f"nfqe on >{secret} ~nfqe:* {PERMISSIONS}"]
    certificate, key = certificates.of("client")
    options = f"password_file={tmp_path / 'password'}&ca_file={certificates.ca}&cert_file={certificate}&key_file={key}"

    with at_store(unstarted, tmp_path, 7003, tls=certificates, acl=acl):
        node.start(store=f"rediss://nfqe@{host}:7003?{options}")
        node.wait_until_ready()
        added = await asyncio.to_thread(command, unstarted, "n1", "endpoint", "add", "one", "--ip", "10.31.1.10")
        status = await asyncio.to_thread(command, unstarted, "n1", "status", "-o", "json")
        processes = [node.pid, node.status()["worker"]["pid"]]
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in processes]
        node.stop()

    assert added.returncode == 0
    assert json.loads(status.stdout)["store"]["connected"]
    assert all("nfq_enforcer" in line for line in lines)
    for text in (status.stdout, node.log.read_text(), *lines):
        assert secret not in text
