"""``observe --all-nodes`` between agents with certificates: nobody else reads a flow, or sends one."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.integration.test_all_nodes import NODES, follow, following, moment, nodes, observe, states, talk
from tests.support.labs import run_in
from tests.support.peer_certificates import Authority

PORT = 9964
READ = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.check_hostname = False
if len(sys.argv) > 4:
    context.load_cert_chain(sys.argv[4], sys.argv[5])
try:
    with socket.create_connection((sys.argv[2], int(sys.argv[3])), 10) as plain, context.wrap_socket(plain) as secure:
        secure.sendall(b'{"method": "METHOD"}\\n')
        print(secure.makefile().read())
except OSError as error:
    print("REFUSED", error)
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("peers") / "ca")


@pytest.fixture(scope="module")
def secured(make_served: MakeLab, authority: Authority) -> Lab:
    """Run agents with a certificate each; two listen at their own address, one at all addresses."""
    lab = make_served()
    lab.store.start()
    for node in lab.nodes:
        start(lab, node, authority.settings("0.0.0.0:9964" if node == "n3" else at(lab, node), node))
    lab.declare_endpoints()
    return lab


def at(lab: Lab, node: str) -> str:
    return f"{lab.address(node)}:{PORT}"


def start(lab: Lab, name: str, settings: dict[str, str] | None) -> None:
    """Start an agent, and wait until it enforces policy."""
    lab.nodes[name].start(**({"peers": settings} if settings else {}))
    lab.nodes[name].wait_until_ready()


@contextmanager
def restarted(lab: Lab, name: str, settings: dict[str, str] | None, own: dict[str, str]) -> Iterator[None]:
    """Have an agent run with other settings, and then with its own again."""
    lab.nodes[name].stop()
    start(lab, name, settings)
    try:
        yield
    finally:
        lab.nodes[name].stop()
        start(lab, name, own)


def log(lab: Lab, name: str) -> str:
    return lab.nodes[name].log.read_text()


def read(lab: Lab, ca: Path, certificate: tuple[Path, Path] | None = None, method: str = "observe") -> str:
    """Return the answer of the agent of n1 to a client on n2."""
    argv = [str(ca), str(lab.address("n1")), str(PORT), *map(str, certificate or ())]
    return run_in(lab, "n2", sys.executable, "-c", READ.replace("METHOD", method), *argv)


async def test_agents_with_certificates_read_each_others_flows(secured: Lab) -> None:
    since = moment()
    assert await talk(secured)

    for name in ("n1", "n2", "n3"):
        items, errors = await observe(secured.nodes[name], "--since", since)
        times = [item["time"] for item in items]

        assert (nodes(items), states(items), errors) == (NODES, {}, "")
        assert times == sorted(times)


async def test_new_flows_and_a_node_that_leaves_and_returns(secured: Lab, authority: Authority) -> None:
    with following(secured.nodes["n1"]) as process:
        await follow(secured, process, lambda items: nodes(items) == NODES)
        await asyncio.to_thread(secured.nodes["n2"].stop)
        missed = await follow(secured, process, lambda items: "n2" in states(items))
        await asyncio.to_thread(start, secured, "n2", authority.settings(at(secured, "n2"), "n2"))
        await follow(secured, process, lambda items: states(items).get("n2", [""])[0] == "NODE_CONNECTED")
        await follow(secured, process, lambda items: "n2" in nodes(items))

    assert states(missed)["n2"][0] == "NODE_UNAVAILABLE"


async def test_a_node_with_a_certificate_of_another_authority_is_refused_by_both_sides(
    secured: Lab, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    own = authority.settings(at(secured, "n2"), "n2")
    with restarted(secured, "n2", other.settings(at(secured, "n2"), "n2"), own):
        (seen, _), (seen_by_other, _) = await observe(secured.nodes["n1"]), await observe(secured.nodes["n2"])
        logged = log(secured, "n2")

    assert states(seen)["n2"][0] == "NODE_UNAVAILABLE"
    assert "the certificate is refused: " in states(seen)["n2"][1]
    assert set(states(seen_by_other)) == {"n1", "n3"}
    assert nodes(seen) <= {"n1", "n3"}
    assert f"a connection from {secured.address('n1')} was refused: " in logged


async def test_a_node_with_another_nodes_certificate_is_refused(secured: Lab, authority: Authority) -> None:
    settings = authority.settings(at(secured, "n2"), "other", "DNS:n3")
    with restarted(secured, "n2", settings, authority.settings(at(secured, "n2"), "n2")):
        items, _ = await observe(secured.nodes["n1"])

    assert states(items) == {"n2": ("NODE_UNAVAILABLE", 'its certificate is for ["n3"], not for this node')}


async def test_clients_without_the_certificate_of_a_node_read_nothing(secured: Lab, authority: Authority) -> None:
    stranger = authority.issue("grafana")
    n2 = authority.issue("n2", "URI:nfq-enforcer:n2")

    without = read(secured, authority.ca)
    as_stranger = read(secured, authority.ca, stranger)
    as_node = read(secured, authority.ca, n2).splitlines()
    apply = read(secured, authority.ca, n2, "apply")

    assert "{" not in without
    assert json.loads(as_stranger)["error"] == 'the certificate is for ["grafana"], which is no node here'
    assert {"kept": "end"} in json.loads(as_node[-2] if not as_node[-1] else as_node[-1])["result"]
    assert json.loads(apply)["error"] == "unknown method 'apply'; allowed: observe"
    assert f"a connection from {secured.address('n2')} was refused: peer did not return a certificate" in log(
        secured, "n1"
    )
    assert 'was refused: its certificate is for ["grafana"], no node' in log(secured, "n1")


async def test_with_certificates_nothing_goes_through_the_store(secured: Lab, authority: Authority) -> None:
    own = authority.settings(at(secured, "n2"), "n2")
    with restarted(secured, "n2", None, own):
        (seen, _), (seen_by_other, _) = await observe(secured.nodes["n1"]), await observe(secured.nodes["n2"])

    assert states(seen)["n2"][1].startswith("it accepts no connections of agents: its configuration (version ")
    assert nodes(seen) == {"n1", "n3"}
    reason: Any = ("NODE_ERROR", "it gives its flows to agents with a certificate only: configure 'peers' at this node")
    assert states(seen_by_other) == {"n1": reason, "n3": reason}
    assert nodes(seen_by_other) <= {"n2"}


async def test_an_agent_that_starts_anew_accepts_others_again(secured: Lab) -> None:
    await asyncio.to_thread(secured.nodes["n2"].start_anew)

    items, _ = await observe(secured.nodes["n1"], "--last", "1")

    assert states(items) == {}
    assert "cannot" not in log(secured, "n2")
