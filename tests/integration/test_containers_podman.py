"""Containers of a real Podman service in a node's namespace, which speaks Docker's API."""

import signal
from collections.abc import Iterator

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.containers import (
    BACKEND,
    FRONTEND,
    OTHER,
    Podman,
    endpoints,
    known,
    ping_as_first_action,
    running,
)
from tests.support.labs import FRONT_TO_BACK, until
from tests.support.workloads import source


@pytest.fixture(scope="module")
def host(make_bare: MakeLab) -> Lab:
    """Give a lab with containers on node n1."""
    return make_bare(memory=True)


@pytest.fixture(scope="module")
def service(host: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with running(Podman(host, "n1", tmp_path_factory.mktemp("podman"))) as podman:
        yield podman


@pytest.fixture(scope="module")
def node(host: Lab, service: Podman) -> LabNode:
    """Run the agent of the node, with the containers of the service as its only endpoints."""
    host.documents.mkdir()
    (host.documents / "policies.yaml").write_text(FRONT_TO_BACK)
    node = host.nodes["n1"]
    node.start(containers={"podman": service.address})
    node.wait_until_ready()
    return node


@pytest.fixture
def podman(service: Podman, node: LabNode) -> Iterator[Podman]:
    """Give the service; all containers are removed after the test."""
    yield service
    service.clear()


async def test_a_label_of_a_container_is_selected_by_policy(node: LabNode, podman: Podman) -> None:
    podman.launch("web", labels=BACKEND)
    podman.launch("front", labels=FRONTEND)
    podman.launch("other", labels=OTHER)
    address = podman.address_of("web")

    assert podman.fetch("front", address, expected=True)
    assert not podman.fetch("other", address, expected=False)
    found = await known(node, "default/web.n1", "default/front.n1", "default/other.n1")
    assert found["default/web.n1"]["addresses"] == [address]
    assert found["default/web.n1"]["interface"].startswith("veth")


async def test_a_container_that_sends_as_its_first_action_is_judged_by_its_label(node: LabNode, podman: Podman) -> None:
    front, other = ping_as_first_action(podman)

    assert front == 0
    assert other == 1


async def test_an_ended_container_is_no_endpoint(node: LabNode, podman: Podman) -> None:
    podman.launch("web", labels=BACKEND)
    podman.launch("other", labels=OTHER)
    await known(node, "default/web.n1", "default/other.n1")

    podman.run("kill", "web")
    await known(node, "default/other.n1")
    podman.run("start", "web")
    await known(node, "default/web.n1", "default/other.n1")
    assert not podman.fetch("other", podman.address_of("web"), expected=False)


async def test_a_container_has_an_endpoint_in_each_of_its_networks(node: LabNode, podman: Podman) -> None:
    podman.run("network", "create", "back")
    podman.launch("web", labels=BACKEND)
    await known(node, "default/web.n1")

    podman.run("network", "connect", "back", "web")

    both = await known(node, "default/web.n1", "default/web.back.n1")
    assert both["default/web.back.n1"]["addresses"] == [podman.addresses("web")["back"]]


async def test_a_pod_is_one_endpoint_with_its_labels(node: LabNode, podman: Podman) -> None:
    podman.pod("duo", labels=BACKEND)
    podman.launch("member", "--pod", "duo", labels=OTHER)
    podman.launch("front", labels=FRONTEND)
    podman.launch("other", labels=OTHER)
    await until(lambda: len(endpoints(node)) == 3)
    (infra,) = (one for name, one in endpoints(node).items() if name.endswith("-infra.n1"))

    assert "k8s:role=backend" in infra["labels"]
    assert podman.fetch("front", infra["addresses"][0], expected=True)
    assert not podman.fetch("other", infra["addresses"][0], expected=False)


async def test_the_last_state_stays_while_the_service_is_away(node: LabNode, podman: Podman) -> None:
    podman.launch("web", labels=BACKEND)
    before = await known(node, "default/web.n1")

    podman.stop(signal.SIGKILL)
    await until(lambda: source(node.status(), "podman")["away"])
    assert endpoints(node) == before

    podman.start()
    await until(lambda: source(node.status(), "podman")["away"] is None)
    podman.launch("other", labels=OTHER)
    await known(node, "default/web.n1", "default/other.n1")
