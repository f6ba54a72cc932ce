"""Endpoints of containers: names, namespaces, labels, interfaces, and containers that policy does not reach."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from nfq_enforcer.workloads.containers.container import Container, Network
from nfq_enforcer.workloads.containers.projection import Projection, namespace_of, project, user_labels

V4, V6, OTHER_V4 = "172.17.0.2", "fd00:17::2", "172.18.0.2"


class Link(NamedTuple):
    kind: str = "veth"
    interface: str | None = "veth1"
    bridge: str | None = "docker0"
    passed: bool = True


def network(name: str = "bridge", *addresses: str) -> Network:
    return Network(name, tuple(map(ip_address, addresses or (V4,))))


def container(*networks: Network, name: str = "web", mode: str = "default", **labels: str) -> Container:
    return Container("0123456789abcdef", name, labels, mode, 42, networks or (network(),))


def projected(
    one: Container, links: Mapping[str, Link] | None = None, node: str = "n1", taken: tuple[str, ...] = ()
) -> Projection:
    """Return the projection of a container with these links by address, by default one for its first address."""
    given = {V4: Link()} if links is None else links
    return project(one, node, {ip_address(address).packed: link for address, link in given.items()}, taken)


def names(projection: Projection) -> list[str]:
    return [f"{one.namespace}/{one.name}" for one in projection.endpoints]


def test_an_endpoint_has_the_labels_addresses_and_port_of_its_container() -> None:
    one = container(network("bridge", V4, V6), role="frontend")

    (endpoint,) = projected(one, {V4: Link(), V6: Link()}).endpoints

    assert (endpoint.namespace, endpoint.name) == ("default", "web.n1")
    assert endpoint.metadata.labels == {"role": "frontend"}
    assert [str(ip) for ip in endpoint.spec.ips] == [V4, V6]
    assert endpoint.spec.interface == "veth1"


@pytest.mark.parametrize(
    ("name", "node", "expected"),
    [
        ("web", "n1", "web.n1"),
        ("web", "host.example.com", "web.host.example.com"),
        ("shop_web_1", "n1", "shop-web-1.n1"),
        ("Web", "Host_A", "web.host-a"),
        ("a.-b_", "n1", "a.b.n1"),
        ("___", "n1", "0123456789ab.n1"),
        ("x" * 300, "n1", "x" * 100 + ".n1"),
    ],
)
def test_the_name_of_an_endpoint_is_that_of_container_and_node_as_a_dns_name(
    name: str, node: str, expected: str
) -> None:
    assert names(projected(container(name=name), node=node)) == [f"default/{expected}"]


def test_a_name_of_another_container_is_completed_by_the_id() -> None:
    assert names(projected(container(name="shop_web"), taken=("default/shop-web.n1",))) == [
        "default/shop-web-0123456789ab.n1"
    ]


@pytest.mark.parametrize(
    ("labels", "namespace"),
    [
        ({}, "default"),
        ({"com.docker.compose.project": "shop"}, "shop"),
        ({"io.podman.compose.project": "shop"}, "shop"),
        ({"com.docker.compose.project": "my_shop.eu"}, "my-shop-eu"),
        ({"com.docker.compose.project": "s" * 80}, "s" * 63),
        ({"com.docker.compose.project": "__"}, "default"),
        ({"com.docker.compose.project": "shop", "nfq-enforcer.io/namespace": "till"}, "till"),
    ],
)
def test_a_compose_project_is_the_namespace_unless_a_label_names_one(labels: dict[str, str], namespace: str) -> None:
    assert namespace_of(labels) == namespace


def test_labels_that_no_endpoint_can_have_and_those_of_runtimes_are_left_out() -> None:
    given = {
        "role": "frontend",
        "example.com/tier": "1",
        "com.docker.compose.service": "web",
        "com.docker.compose.container-number": "2",
        "com.docker.compose.config-hash": "ab12",
        "org.opencontainers.image.version": "1.2",
        "io.buildah.version": "1.28.2",
        "PODMAN_SYSTEMD_UNIT": "web.service",
        "nfq-enforcer.io/namespace": "till",
        "description": "two words",
        "io.kubernetes.pod.namespace": "kube-system",
        "io.cilium.k8s.policy.serviceaccount": "admin",
        "reserved:host": "",
        "k8s:role": "backend",
        "bad key": "x",
    }

    assert user_labels(given) == {"role": "frontend", "example.com/tier": "1", "com.docker.compose.service": "web"}


@pytest.mark.parametrize("mode", ["host", "none", "container:0123", "ns:/run/netns/x"])
def test_a_container_without_a_network_of_its_own_is_no_endpoint(mode: str) -> None:
    assert projected(container(mode=mode)) == Projection()


def test_each_network_has_an_endpoint_and_the_first_is_that_of_the_creation() -> None:
    one = container(network("back", OTHER_V4), network("bridge"))
    links = {V4: Link(), OTHER_V4: Link(interface="veth2", bridge="br-1")}

    assert names(projected(one, links)) == ["default/web.back.n1", "default/web.n1"]
    assert [endpoint.spec.interface for endpoint in projected(one, links).endpoints] == ["veth2", "veth1"]


def test_the_first_network_of_podman_is_its_default_one_or_the_first_by_name() -> None:
    links = {V4: Link(), OTHER_V4: Link(interface="veth2")}
    default = container(network("back"), network("podman", OTHER_V4), mode="bridge")
    others = container(network("front"), network("back", OTHER_V4), mode="bridge")

    assert names(projected(default, links)) == ["default/web.back.n1", "default/web.n1"]
    assert names(projected(others, links)) == ["default/web.front.n1", "default/web.n1"]


def test_a_network_without_addresses_is_left_out() -> None:
    assert projected(container(Network("bridge", ()))) == Projection()


def test_a_container_that_starts_has_no_interface_yet() -> None:
    (endpoint,) = project(container(), "n1", None).endpoints

    assert endpoint.spec.interface is None


def test_the_interface_is_the_bridge_if_its_frames_do_not_pass_the_rules() -> None:
    found = projected(container(), {V4: Link(passed=False)})

    assert found.endpoints[0].spec.interface == "docker0"
    assert found.unseen == {"docker0"}


def test_the_interface_is_unknown_if_the_frames_of_one_family_pass_only() -> None:
    found = projected(container(network("bridge", V4, V6)), {V4: Link(), V6: Link(passed=False)})

    assert found.endpoints[0].spec.interface is None
    assert found.unseen == {"docker0"}


def test_a_link_without_a_bridge_is_the_interface() -> None:
    found = projected(container(), {V4: Link(bridge=None, passed=False)})

    assert (found.endpoints[0].spec.interface, found.unseen) == ("veth1", frozenset())


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ({}, "the container's network namespace does not have the address; no policy applies there"),
        (
            {V4: Link("macvlan", None, None, False)},
            "its link (macvlan) does not lead to an interface of this host; no policy applies there",
        ),
        (
            {V4: Link("", None, None, False)},
            "its link (unknown) does not lead to an interface of this host; no policy applies there",
        ),
        ({V4: Link(interface="veth 1")}, "interfaces 'veth 1' cannot be used as one"),
    ],
)
def test_a_network_without_an_interface_of_the_host_is_named(links: dict[str, Link], reason: str) -> None:
    found = projected(container(), links)

    assert found.endpoints == ()
    assert found.problems == (f"container 'web', network 'bridge': {reason}",)


def test_an_address_that_no_endpoint_can_have_is_named() -> None:
    found = projected(container(network("bridge", "127.0.0.5")), {"127.0.0.5": Link()})

    (problem,) = found.problems
    assert problem.startswith(
        "container 'web', network 'bridge': default/web.n1: spec.ips.0: '127.0.0.5' is not allowed"
    )


def test_a_problem_shows_control_characters_escaped() -> None:
    (problem,) = projected(container(network("a\x1b[2J"), name="w\n"), {}).problems

    assert problem.startswith(r"container 'w\n', network 'a\x1b[2J': ")
