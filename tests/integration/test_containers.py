"""Containers of a real Docker daemon in a node's namespace: labels, networks, starts, ends, and a daemon that is away.

The node has no other endpoints. ``docker run --label role=frontend …`` is all that a user does.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.bridges import pass_frames
from tests.support.containers import (
    BACKEND,
    FRONTEND,
    OTHER,
    PORT,
    Docker,
    endpoints,
    known,
    ping_as_first_action,
    running,
)
from tests.support.labs import FRONT_TO_BACK, policy, run_in, until
from tests.support.workloads import source

ROOT = Path(__file__).parents[2]
WITHIN_SHOP = policy("within-shop", "backend", ingress=[{"fromEndpoints": [{}]}]).replace(
    "name: within-shop", "name: within-shop\n  namespace: shop"
)


@pytest.fixture(scope="module")
def host(make_bare: MakeLab) -> Lab:
    """Give a lab with containers on node n1."""
    return make_bare(memory=True)


@pytest.fixture(scope="module")
def daemon(host: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """Give a daemon without userland proxies, which its containers outlive."""
    folder = tmp_path_factory.mktemp("docker")
    with running(Docker(host, "n1", folder, "--live-restore", "--userland-proxy=false", subnet=201)) as docker:
        yield docker


@pytest.fixture(scope="module")
def node(host: Lab, daemon: Docker) -> LabNode:
    """Run the agent of the node, with the containers of the daemon as its only endpoints."""
    host.documents.mkdir()
    (host.documents / "policies.yaml").write_text(FRONT_TO_BACK + WITHIN_SHOP)
    node = host.nodes["n1"]
    node.start(containers={"docker": daemon.address})
    node.wait_until_ready()
    return node


@pytest.fixture
def docker(daemon: Docker, node: LabNode) -> Iterator[Docker]:
    """Give the daemon; all containers are removed after the test."""
    yield daemon
    daemon.clear()


async def test_a_label_of_a_container_is_selected_by_policy(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    docker.launch("front", labels=FRONTEND)
    docker.launch("other", labels=OTHER)
    address = docker.address_of("web")

    assert docker.fetch("front", address, expected=True)
    assert not docker.fetch("other", address, expected=False)
    known_now = await known(node, "default/web.n1", "default/front.n1", "default/other.n1")
    assert "k8s:role=backend" in known_now["default/web.n1"]["labels"]
    assert known_now["default/web.n1"]["addresses"] == [address]
    assert known_now["default/web.n1"]["interface"].startswith("veth")
    assert source(node.status(), "docker")["details"]["containers"] == 3


def test_the_commands_of_the_readme(node: LabNode, docker: Docker) -> None:
    _, _, after = (ROOT / "README.md").read_text().partition("## Docker\n")
    section, _, _ = after.partition("\n## ")
    _, _, rest = section.partition("```sh\n")
    *steps, refused = rest.partition("```")[0].replace("nginx:alpine", "box").splitlines()
    assert "# refused" in refused

    script = "\n".join(["set -e", *steps, f"if {refused.partition('#')[0]}; then exit 9; fi"])
    done = docker.shell(script, str(node.socket))
    docker.shell("nfq-enforcer policy delete frontend-to-backend", str(node.socket))

    assert done.returncode == 0, done.stdout
    assert "front.n1" in done.stdout


async def test_a_container_that_sends_as_its_first_action_is_judged_by_its_label(node: LabNode, docker: Docker) -> None:
    """On a busy host the registration may take longer than the start; until then the container is the world."""
    front, other = ping_as_first_action(docker)

    assert front == 0
    assert other == 1


async def test_a_compose_project_is_a_namespace(node: LabNode, docker: Docker) -> None:
    project = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
    docker.launch("shop-web-1", labels={**BACKEND, **project, "com.docker.compose.container-number": "1"})
    docker.launch("shop-job-1", labels={**OTHER, "com.docker.compose.project": "shop"})
    docker.launch("front", labels=FRONTEND)
    address = docker.address_of("shop-web-1")

    assert docker.fetch("shop-job-1", address, expected=True)
    assert not docker.fetch("front", address, expected=False)
    known_now = await known(node, "shop/shop-web-1.n1", "shop/shop-job-1.n1", "default/front.n1")
    labels = known_now["shop/shop-web-1.n1"]["labels"]
    assert "k8s:com.docker.compose.service=web" in labels
    assert not [label for label in labels if "container-number" in label]


async def test_a_container_has_an_endpoint_in_each_of_its_networks(node: LabNode, docker: Docker) -> None:
    docker.run("network", "create", "back")
    docker.launch("web", labels=BACKEND)
    docker.launch("front", "--network", "back", labels=FRONTEND)
    docker.launch("other", "--network", "back", labels=OTHER)

    docker.run("network", "connect", "back", "web")
    both = await known(node, "default/web.n1", "default/web.back.n1", "default/front.n1", "default/other.n1")
    address = docker.addresses("web")["back"]
    assert both["default/web.back.n1"]["addresses"] == [address]
    assert both["default/web.back.n1"]["identity"] == both["default/web.n1"]["identity"]
    assert docker.fetch("front", address, expected=True)
    assert not docker.fetch("other", address, expected=False)

    docker.run("network", "disconnect", "back", "web")
    await known(node, "default/web.n1", "default/front.n1", "default/other.n1")


async def test_a_network_with_ipv6_has_both_addresses(node: LabNode, docker: Docker) -> None:
    docker.run("network", "create", "--ipv6", "--subnet", "fd00:201:1::/64", "six")
    for name, labels in (("web", BACKEND), ("front", FRONTEND), ("other", OTHER)):
        docker.launch(name, "--network", "six", labels=labels)
    found = await known(node, "default/web.n1", "default/front.n1", "default/other.n1")
    _, six = found["default/web.n1"]["addresses"]

    assert six.startswith("fd00:201:1:")
    assert docker.succeeds("exec", "front", "ping", "-c", "1", "-W", "5", six)
    assert not docker.succeeds("exec", "other", "ping", "-c", "1", "-W", "1", six)


async def test_a_container_cannot_send_from_the_address_of_another(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    docker.launch("front", labels=FRONTEND, command=("sleep", "1000"))
    docker.launch("forger", "--cap-add=NET_ADMIN", labels=OTHER, command=("sleep", "1000"))
    target, victim = docker.address_of("web"), docker.address_of("front")
    interface = (await known(node, "default/web.n1", "default/front.n1", "default/forger.n1"))["default/forger.n1"]

    docker.run("exec", "forger", "ip", "address", "add", f"{victim}/24", "dev", "eth0")
    sent = docker.succeeds("exec", "forger", "ping", "-c", "2", "-W", "1", "-I", victim, target)

    assert not sent
    assert node.status()["source_filter"]["drops"].get(interface["interface"], 0) > 0


async def test_a_renamed_container_keeps_its_identity(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    before = (await known(node, "default/web.n1"))["default/web.n1"]

    docker.run("rename", "web", "shop_window")

    after = (await known(node, "default/shop-window.n1"))["default/shop-window.n1"]
    assert (after["addresses"], after["identity"]) == (before["addresses"], before["identity"])


async def test_a_restarted_container_has_its_new_address(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    docker.launch("front", labels=FRONTEND)
    old = docker.address_of("web")
    docker.run("stop", "--time", "0", "web")
    docker.launch("other", labels=OTHER)
    assert docker.address_of("other") == old  # the address of the stopped container

    docker.run("start", "web")

    new = docker.address_of("web")
    assert new != old
    known_now = await known(node, "default/web.n1", "default/front.n1", "default/other.n1")
    assert known_now["default/web.n1"]["addresses"] == [new]
    assert docker.fetch("front", new, expected=True)
    assert not docker.fetch("other", new, expected=False)


async def test_a_reused_address_has_the_identity_of_its_present_container(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    target, addresses = docker.address_of("web"), set()

    for number in range(4):
        labels = FRONTEND if number % 2 == 0 else OTHER
        docker.launch(f"client{number}", labels=labels)
        addresses.add(docker.address_of(f"client{number}"))
        assert docker.fetch(f"client{number}", target, expected=labels is FRONTEND) == (labels is FRONTEND)
        docker.run("rm", "--force", f"client{number}")

    assert len(addresses) == 1
    await known(node, "default/web.n1")


async def test_the_last_state_stays_while_the_daemon_is_away(host: Lab, node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    docker.launch("front", labels=FRONTEND, command=("sleep", "1000"))
    docker.launch("gone", labels=OTHER, command=("sleep", "1000"))
    names = ("default/web.n1", "default/front.n1", "default/gone.n1")
    before = await known(node, *names)
    gone = docker.inspect("gone")["State"]["Pid"]

    docker.stop(signal.SIGKILL)
    await until(lambda: source(node.status(), "docker")["away"])
    assert any("source docker of workloads is away" in problem for problem in node.status()["problems"])
    assert endpoints(node) == before

    run_in(host, "n1", "kill", "-9", str(gone))  # nobody tells of it
    docker.start()
    await until(lambda: source(node.status(), "docker")["away"] is None)
    await known(node, "default/web.n1", "default/front.n1")
    assert docker.fetch("front", docker.address_of("web"), expected=True)


async def test_an_agent_that_starts_anew_has_all_containers(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    docker.launch("front", labels=FRONTEND)
    docker.launch("short", labels=OTHER)
    await known(node, "default/web.n1", "default/front.n1", "default/short.n1")

    node.stop()
    docker.run("rm", "--force", "short")
    docker.launch("late", labels=OTHER)
    node.start(containers={"docker": docker.address})
    node.wait_until_ready()

    assert endpoints(node).keys() == {"default/web.n1", "default/front.n1", "default/late.n1"}
    address = docker.address_of("web")
    assert docker.fetch("front", address, expected=True)
    assert not docker.fetch("late", address, expected=False)


async def test_a_container_with_the_hosts_network_is_no_endpoint(node: LabNode, docker: Docker) -> None:
    docker.launch("web", labels=BACKEND)
    docker.launch("on-host", "--network", "host", labels=OTHER, command=("sleep", "1000"))
    docker.launch("sidecar", "--network", "container:web", labels=OTHER, command=("sleep", "1000"))
    docker.launch("alone", "--network", "none", labels=OTHER, command=("sleep", "1000"))

    await known(node, "default/web.n1")
    assert node.status()["problems"] == []


async def test_a_network_outside_of_enforcement_is_named(host: Lab, node: LabNode, docker: Docker) -> None:
    run_in(host, "n1", "ip", "link", "add", "parent0", "type", "veth", "peer", "name", "parent1")
    options = ("--driver", "macvlan", "--subnet", "10.209.0.0/24", "--opt", "parent=parent0")
    docker.run("network", "create", *options, "direct")
    docker.launch("web", "--network", "direct", labels=BACKEND)

    await until(lambda: node.status()["problems"])

    (problem,) = node.status()["problems"]
    assert problem.startswith("container 'web', network 'direct': its link (macvlan) does not lead to an interface")
    assert endpoints(node) == {}


async def test_published_ports_have_the_identity_of_their_client(host: Lab, node: LabNode, docker: Docker) -> None:
    """With the userland proxy switched off, the kernel translates the addresses, and the source is the container's."""
    docker.launch("web", "--publish", f"{PORT}:{PORT}", labels=BACKEND)
    docker.launch("front", labels=FRONTEND)
    docker.launch("other", labels=OTHER)
    published = str(host.address("n1"))

    assert docker.fetch("front", published, expected=True)
    assert not docker.fetch("other", published, expected=False)
    assert node.status()["problems"] == []


async def test_without_br_netfilter_the_status_names_the_bridge(host: Lab, node: LabNode, docker: Docker) -> None:
    """The limit: the kernel shows frames between ports of a bridge to nobody else."""
    docker.launch("web", labels=BACKEND)
    docker.launch("other", labels=OTHER)
    address = docker.address_of("web")
    await known(node, "default/web.n1", "default/other.n1")

    pass_frames(host, "n1", on=False)
    try:
        await until(lambda: endpoints(node)["default/web.n1"]["interface"] == "docker0")
        assert any("between containers on one bridge (docker0)" in problem for problem in node.status()["problems"])
        assert docker.fetch("other", address, expected=True)
    finally:
        pass_frames(host, "n1", on=True)

    await until(lambda: endpoints(node)["default/web.n1"]["interface"] != "docker0")
    assert node.status()["problems"] == []
    assert not docker.fetch("other", address, expected=False)


async def test_a_bridge_can_pass_its_frames_by_itself(host: Lab, node: LabNode, docker: Docker) -> None:
    """The options of a bridge stand beside those of all bridges."""
    calls = ("ip", "link", "set", "docker0", "type", "bridge")
    pass_frames(host, "n1", on=False)
    run_in(host, "n1", *calls, "nf_call_iptables", "1", "nf_call_ip6tables", "1")
    try:
        docker.launch("web", labels=BACKEND)
        docker.launch("other", labels=OTHER)
        found = await known(node, "default/web.n1", "default/other.n1")

        assert found["default/web.n1"]["interface"] != "docker0"
        assert not docker.fetch("other", docker.address_of("web"), expected=False)
        assert node.status()["problems"] == []
    finally:
        run_in(host, "n1", *calls, "nf_call_iptables", "0", "nf_call_ip6tables", "0")
        pass_frames(host, "n1", on=True)


def test_a_missing_socket_is_reported_and_the_node_enforces(host: Lab, node: LabNode, docker: Docker) -> None:
    missing = Path(host.network.state / "none.sock")

    node.stop()
    node.start(containers={"docker": f"unix://{missing}"})
    node.wait_until_ready()

    assert source(node.status(), "docker")["away"] == f"{missing}: No such file or directory"
    node.stop()
    node.start(containers={"docker": docker.address})
    node.wait_until_ready()
