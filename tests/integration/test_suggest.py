"""``policy suggest`` and ``policy impact`` on real traffic: learn in audit mode, suggest, enforce."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
import yaml

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support.dns import A, address, answer, query
from tests.support.dns_server import DnsClient, DnsServer
from tests.support.labs import (
    BACKENDS,
    BRIEF,
    FAMILIES,
    FRONTENDS,
    HTTP,
    OTHER_TCP,
    PATIENT,
    Policies,
    dropped,
    from_role,
    now,
    outcomes,
    passes,
    policy,
    start,
    start_all,
    stop_agents,
    until,
)

CLOSED_TO_ALL = policy("closed", "backend", ingress=[from_role("none")])
LEARNED = {
    **passes(FRONTENDS, BACKENDS, ("80/TCP", "ping")),
    **passes(BACKENDS, ("db3",), ("443/TCP", "53/UDP")),
}
OTHERS = {
    **dropped(FRONTENDS, BACKENDS, ("443/TCP", "53/UDP")),
    **dropped(FRONTENDS, ("db3",), ("443/TCP", "ping")),
    **dropped(BACKENDS, FRONTENDS, ("80/TCP", "ping")),
    **dropped(("db3",), BACKENDS, ("80/TCP", "ping")),
}


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    words = [sys.executable, "-m", "nfq_enforcer.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def agents(lab: Lab, documents: str, **settings: Any) -> Iterator[None]:
    """Run the agents of all nodes with these documents."""
    start_all(lab, documents, **settings)
    try:
        yield
    finally:
        stop_agents(lab)


def saved(nodes: dict[str, LabNode], folder: Path) -> list[object]:
    """Save the flows of every node, and return the options that name the files."""
    options: list[object] = []
    for name, node in nodes.items():
        done = command("observe", "--all", "-o", "json", "--socket", node.socket)
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.json").write_text(done.stdout)
        options += ["--input-file", folder / f"{name}.json"]
    return options


@pytest.fixture(scope="module")
def unguarded(make_served: Callable[..., Lab]) -> Lab:
    """Return a lab with servers and without agents."""
    return make_served(memory=True)


async def test_traffic_learned_in_audit_mode_passes_and_other_traffic_is_refused(
    unguarded: Lab, tmp_path: Path
) -> None:
    lab = unguarded
    with agents(lab, CLOSED_TO_ALL, audit=True):
        assert await outcomes(lab, LEARNED) == LEARNED
        files = saved(lab.nodes, tmp_path)
    done = command("policy", "suggest", *files)
    assert (done.returncode, done.stderr) == (0, "")
    names = [document["metadata"]["name"] for document in yaml.safe_load_all(done.stdout)]
    assert names == ["suggested-role-backend", "suggested-role-db", "suggested-role-frontend"]
    assert "not allowed at that time" in done.stdout

    with agents(lab, done.stdout):
        assert await outcomes(lab, LEARNED | OTHERS) == LEARNED | OTHERS


async def test_flows_are_recorded_as_they_come(guarded: Lab) -> None:
    node, back = guarded.nodes["n2"], guarded.address("back2")
    options = ("--for", "3s", "--direction", "ingress", "--to-port", HTTP, "--socket", node.socket)
    recording = asyncio.create_task(asyncio.to_thread(command, "policy", "suggest", *options))
    while not recording.done():  # at any time of the recording
        assert (await guarded.host("front1").connect(back, HTTP, PATIENT)).ok
        assert (await guarded.host("front1").connect(back, OTHER_TCP, PATIENT)).ok

    done = await recording

    (document,) = yaml.safe_load_all(done.stdout)
    assert done.returncode == 0
    assert document["spec"] == {
        "endpointSelector": {"matchLabels": {"role": "backend"}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"role": "frontend"}}],
                "toPorts": [{"ports": [{"port": str(HTTP), "protocol": "TCP"}]}],
            }
        ],
    }


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_impact_of_a_document_is_what_happens_when_it_is_applied(
    guarded: Lab, policies: Policies, tmp_path: Path, family: int
) -> None:
    node, back, front = guarded.nodes["n2"], guarded.address("back2", family), guarded.host("front2")
    held = await front.hold(back, HTTP, PATIENT)
    other = await front.hold(back, OTHER_TCP, PATIENT)
    new = tmp_path / "new.yaml"
    new.write_text(policy("to-back", "backend", ingress=[from_role("frontend", (OTHER_TCP, "TCP"))]))
    replay = ("policy", "impact", new, "--socket", node.socket, "--from-ip", guarded.address("front2", family))

    before = command(*replay, "-o", "json")
    await policies.apply("test", new.read_text())
    after = command(*replay)

    rows = {(row["from"], row["to"], row["traffic"]): row for row in json.loads(before.stdout)}
    row = rows["default/front2", "default/back2", f"{HTTP}/TCP"]
    assert (before.returncode, row["now"], row["then"]) == (1, "allow", "deny")
    assert row["seen"] >= 1
    assert row["open"] >= 1
    assert ("default/front2", "default/back2", f"{OTHER_TCP}/TCP") not in rows
    assert (after.returncode, after.stdout) == (0, "no connection changes its verdict\n")
    assert not (await held.talk(0.5)).ok
    assert (await other.talk(PATIENT)).ok
    await held.close()
    await other.close()


async def test_requests_that_were_seen_pass_and_others_are_refused(guarded: Lab, policies: Policies) -> None:
    node, back, front = guarded.nodes["n2"], guarded.address("back2"), guarded.host("front1")
    (entry,) = from_role("frontend", (HTTP, "TCP"))["toPorts"]
    every_path = {**from_role("frontend"), "toPorts": [{**entry, "rules": {"http": [{"path": "/.*"}]}}]}
    await policies.apply("learning", policy("learning", "backend", ingress=[every_path]))
    since = datetime.fromtimestamp(now(), UTC).isoformat()
    for path in ("/userdata/42", "/search?q=1"):
        assert (await front.request(back, HTTP, "GET", path, PATIENT)).code == 200
    options = ("--http", "--direction", "ingress", "--since", since, "--to-pod", "back2", "--socket", node.socket)
    found: list[str] = []

    def has_both() -> bool:  # the proxy logs a request after its answer
        found[:] = [command("policy", "suggest", *options).stdout]
        return "/userdata/42" in found[0] and r"/search(\?.*)?" in found[0]

    await until(has_both, 6 * PATIENT)  # each asks by a process of its own
    await policies.withdraw("learning")
    await policies.apply("learned", found[0])

    async def code(method: str, path: str) -> int:
        return (await front.request(back, HTTP, method, path, PATIENT)).code

    assert [await code("GET", path) for path in ("/userdata/42", "/search?q=2", "/userdata/43")] == [200, 200, 403]
    assert await code("POST", "/userdata/42") == 403


DNS_PORT = 5353  # beside the lab's own servers
LEARNING_NAMES = policy(
    "learning",
    "frontend",
    egress=[
        {
            "toEntities": ["world"],
            "toPorts": [
                {"ports": [{"port": str(DNS_PORT), "protocol": "UDP"}], "rules": {"dns": [{"matchPattern": "*"}]}}
            ],
        },
        {"toFQDNs": [{"matchPattern": "*.example.com"}]},
    ],
)


@contextmanager
def resolving(lab: Lab, documents: str) -> Iterator[DnsClient]:
    """Run the agent of n1, and a DNS server in the world that gives every name the world's address."""
    server = DnsServer(lab, "world", lambda asked: [named(lab, asked)], DNS_PORT)
    start(lab, "n1", documents=documents)
    client = DnsClient(lab, "front1", "world", 4, DNS_PORT)
    try:
        yield client
    finally:
        client.close()
        server.close()
        stop_agents(lab)


def named(lab: Lab, asked: bytes) -> bytes:
    name = str(dns.message.from_wire(asked).question[0].name).rstrip(".")
    return answer(name, address(name, str(lab.address("world")), 60))


async def test_names_that_were_asked_for_pass_and_others_are_refused(unguarded: Lab) -> None:
    lab, world, front = unguarded, unguarded.address("world"), unguarded.host("front1")
    with resolving(lab, LEARNING_NAMES) as client:
        assert client.rcode(query("api.example.com", A), PATIENT) == dns.rcode.NOERROR
        assert (await front.connect(world, HTTP, PATIENT)).ok
        options = ("--direction", "egress", "--from-label", "role=frontend", "--socket", lab.nodes["n1"].socket)
        done = command("policy", "suggest", *options)
    (document,) = yaml.safe_load_all(done.stdout)
    assert {"toFQDNs": [{"matchName": "api.example.com"}]}.items() <= document["spec"]["egress"][-1].items()
    (lab.nodes["n1"].state / "names.json").unlink(missing_ok=True)

    with resolving(lab, done.stdout) as client:
        assert not (await front.connect(world, HTTP, BRIEF)).ok
        assert client.rcode(query("www.example.com", A), PATIENT) == dns.rcode.REFUSED
        assert client.rcode(query("api.example.com", A), PATIENT) == dns.rcode.NOERROR
        assert (await front.connect(world, HTTP, PATIENT)).ok
        assert not (await front.connect(world, OTHER_TCP, BRIEF)).ok
