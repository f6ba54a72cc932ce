"""Containers on two hosts, each with a Docker daemon and an agent; the nodes share a store on Redis."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.containers import BACKEND, FRONTEND, OTHER, PORT, Docker, endpoints, running
from tests.support.labs import FRONT_TO_BACK, PATIENT, run_in, until

HOSTS = "n1", "n2"
NAMES = {"default/web.n2", "default/front.n1", "default/other.n1"}


@pytest.fixture(scope="module")
def hosts(make_bare: MakeLab) -> Lab:
    """Give a lab with a store."""
    lab = make_bare()
    lab.store.start()
    return lab


@pytest.fixture(scope="module")
def daemons(hosts: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Docker]]:
    """Give a daemon on each host, with networks of its own, and with the userland proxy that is Docker's default."""
    with ExitStack() as stack:
        folders = {node: tmp_path_factory.mktemp(node) for node in HOSTS}
        yield {
            node: stack.enter_context(running(Docker(hosts, node, folders[node], subnet=number)))
            for number, node in enumerate(HOSTS, 201)
        }


@pytest.fixture(scope="module")
def containers(hosts: Lab, daemons: dict[str, Docker]) -> dict[str, Docker]:
    """Run agents on both hosts, a server with a published port on n2, and clients of two roles on n1."""
    for node, docker in daemons.items():
        hosts.nodes[node].start(containers={"docker": docker.address})
    for node in daemons:
        hosts.nodes[node].wait_until_ready()
    files = [("policies.yaml", FRONT_TO_BACK)]
    client.call(hosts.nodes["n1"].socket, "apply", files=files, wait=PATIENT, timeout=2 * PATIENT)
    daemons["n2"].launch("web", "--publish", f"{PORT}:{PORT}", labels=BACKEND)
    daemons["n1"].launch("front", labels=FRONTEND)
    daemons["n1"].launch("other", labels=OTHER)
    return daemons


async def test_all_nodes_know_the_containers_of_each_host(hosts: Lab, containers: dict[str, Docker]) -> None:
    for node in HOSTS:
        await until(lambda node=node: endpoints(hosts.nodes[node]).keys() == NAMES)


async def test_masquerade_and_a_published_port_keep_the_identity(hosts: Lab, containers: dict[str, Docker]) -> None:
    """The sender's node translates the source, the receiver's the destination; the stamp has the origin's identity."""
    published = str(hosts.address("n2"))

    assert containers["n1"].fetch("front", published, expected=True)
    assert not containers["n1"].fetch("other", published, expected=False)
    assert (await hosts.host("world").connect(hosts.address("n2"), PORT, 1.0)).status == "timeout"


async def test_routes_between_the_networks_of_two_hosts_keep_the_identity(
    hosts: Lab, containers: dict[str, Docker]
) -> None:
    for node, other in (HOSTS, HOSTS[::-1]):
        subnet = containers[other].subnet
        run_in(hosts, node, "ip", "route", "add", subnet, "via", str(hosts.address(other)))
    address = containers["n2"].address_of("web")

    assert containers["n1"].fetch("front", address, expected=True)
    assert not containers["n1"].fetch("other", address, expected=False)


async def test_a_userland_proxy_hides_the_identity_and_the_status_says_so(
    hosts: Lab, containers: dict[str, Docker]
) -> None:
    """The limit: the proxy is a process of the host, to which ``allow_localhost: always`` allows everything."""
    containers["n2"].launch("neighbour", labels=OTHER)

    assert containers["n2"].fetch("neighbour", str(hosts.address("n2")), expected=True)
    await until(lambda: hosts.nodes["n2"].status()["problems"])
    (problem,) = hosts.nodes["n2"].status()["problems"]
    assert problem.startswith("containers of this host reach published ports of others (web) as the host")
    containers["n2"].run("rm", "--force", "neighbour")


async def test_hosts_can_have_networks_with_the_same_addresses(hosts: Lab, containers: dict[str, Docker]) -> None:
    """As Docker's default network is on every host: each host judges its own containers, and keeps their identities."""
    for node in HOSTS:
        containers[node].run("network", "create", "--subnet", "10.209.0.0/24", "same")
        containers[node].launch("twin", "--network", "same", "--publish", "9090:8080", labels=BACKEND)
    for node, labels in zip(HOSTS, (OTHER, FRONTEND), strict=True):
        containers[node].launch("client", "--network", "same", labels=labels)
    assert containers["n1"].address_of("client") == containers["n2"].address_of("client")
    pairs = {f"default/{name}.{node}" for name in ("twin", "client") for node in HOSTS}
    for node in HOSTS:
        await until(lambda node=node: pairs <= endpoints(hosts.nodes[node]).keys())
    address = containers["n1"].address_of("twin")

    assert not containers["n1"].fetch("client", address, expected=False)
    assert containers["n2"].fetch("client", address, expected=True)
    assert not containers["n1"].fetch("client", str(hosts.address("n2")), port=9090, expected=False)
    assert containers["n2"].fetch("client", str(hosts.address("n1")), port=9090, expected=True)
    for node in HOSTS:
        assert not [one for one in hosts.nodes[node].status()["problems"] if "not in force" in one]
        containers[node].run("rm", "--force", "twin", "client")
