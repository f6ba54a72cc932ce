"""Names: the current names of identities and addresses."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import pytest

from nfq_enforcer.cluster.names import End, EndpointName, Ends, KnownAddress, Names
from nfq_enforcer.core.identity import HOST, LOCAL, REMOTE_NODE, RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.wire.packet import TCP
from tests.support.packets import packed

WEB, NAMELESS, UNKNOWN, CIDR = Identity(300), Identity(301), Identity(302), Identity(LOCAL | 1)
ALL, RELEVANT = Labels.parse({"app": "web", "version": "7"}), Labels.parse({"app": "web"})


class Host(NamedTuple):
    addresses: tuple[IPv4Address | IPv6Address, ...]
    version: str = "0.1"
    datapath: str = "per-packet"
    peers: tuple[IPv4Address | IPv6Address, int] | None = None


class Workload(NamedTuple):
    namespace: str
    name: str
    node: str
    identity: Identity
    addresses: tuple[bytes, ...]
    interface: str | None = None
    cgroup: str | None = None


class Cluster:
    """Cluster: names, and the mappings that their owner changes."""

    def __init__(self) -> None:
        self.identities = {WEB: RELEVANT, NAMELESS: Labels()}
        self.endpoints: dict[str, Workload] = {}
        self.owners: dict[bytes, Workload] = {}
        nodes = {"n1": Host((ip_address("172.16.0.1"),)), "n2": Host((ip_address("172.16.0.2"), ip_address("fd00::2")))}
        every = {"shop/front1": ALL}
        self.names = Names("n1", self.identities, nodes, self.endpoints, self.owners, every.__getitem__)

    def add(self, workload: Workload) -> None:
        self.endpoints[f"{workload.namespace}/{workload.name}"] = workload
        self.owners |= dict.fromkeys(workload.addresses, workload)


@pytest.fixture
def cluster() -> Cluster:
    """Give the names of two nodes and an endpoint."""
    cluster = Cluster()
    cluster.add(Workload("shop", "front1", "n1", WEB, (packed("10.1.0.10"), packed("fd01::10")), "veth1"))
    return cluster


NAME = EndpointName("shop", "front1", "n1", WEB, ALL, ("10.1.0.10", "fd01::10"), "veth1", None)


def test_an_identity_has_the_labels_that_make_it(cluster: Cluster) -> None:
    assert cluster.names.labels(WEB) == RELEVANT


def test_a_reserved_identity_is_always_known(cluster: Cluster) -> None:
    assert cluster.names.labels(WORLD) == RESERVED[WORLD]


def test_the_identity_of_a_cidr_is_known_while_policy_names_it(cluster: Cluster) -> None:
    assert cluster.names.labels(CIDR) is None

    cluster.names.cidrs = {CIDR: Labels()}
    assert cluster.names.labels(CIDR) == Labels()


def test_an_identity_without_labels_is_not_an_unknown_one(cluster: Cluster) -> None:
    assert cluster.names.labels(NAMELESS) == Labels()
    assert cluster.names.labels(UNKNOWN) is None


def test_an_endpoint_is_found_by_its_address_and_identity_together(cluster: Cluster) -> None:
    assert cluster.names.endpoint(packed("10.1.0.10"), WEB) == NAME
    assert cluster.names.endpoint(packed("fd01::10"), WEB) == NAME
    assert cluster.names.endpoint(packed("10.1.0.10"), WORLD) is None
    assert cluster.names.endpoint(packed("10.1.0.11"), WEB) is None
    assert cluster.names.endpoint(b"", WEB) is None


def test_every_endpoint_and_node_is_listed(cluster: Cluster) -> None:
    assert (list(cluster.names), len(cluster.names)) == ([NAME], 1)
    assert list(cluster.names.nodes) == ["n1", "n2"]


def test_what_its_owner_changes_is_seen_at_once(cluster: Cluster) -> None:
    cluster.endpoints.clear()
    cluster.owners.clear()
    del cluster.identities[WEB]

    assert (list(cluster.names), cluster.names.labels(WEB)) == ([], None)
    assert cluster.names.endpoint(packed("10.1.0.10"), WEB) is None


def test_every_address_is_listed_an_endpoints_before_a_nodes(cluster: Cluster) -> None:
    cluster.add(Workload("shop", "host", "n2", NAMELESS, (packed("fd00::2"),)))

    assert list(cluster.names.addresses()) == [
        KnownAddress("10.1.0.10", WEB, "n1", "shop/front1"),
        KnownAddress("fd01::10", WEB, "n1", "shop/front1"),
        KnownAddress("fd00::2", NAMELESS, "n2", "shop/host"),
        KnownAddress("172.16.0.1", HOST, "n1", ""),
        KnownAddress("172.16.0.2", REMOTE_NODE, "n2", ""),
    ]


def opening(src: str, source: Identity, dst: str, destination: Identity) -> Opening:
    return Opening(packed(src), packed(dst), TCP, 40_000, 80, -1, -1, False, source, destination)


def test_both_ends_of_a_connection_have_names(cluster: Cluster) -> None:
    ends = cluster.names.ends(opening("203.0.113.9", WORLD, "10.1.0.10", WEB))

    assert ends == Ends(End(RESERVED[WORLD]), End(RELEVANT, "shop", "front1"))


def test_who_bears_an_endpoints_address_and_not_its_identity_is_not_that_endpoint(cluster: Cluster) -> None:
    ends = cluster.names.ends(opening("10.1.0.10", WORLD, "10.1.0.11", UNKNOWN))

    assert ends == Ends(End(RESERVED[WORLD]), End(None))


def test_names_that_were_looked_up_stay_when_their_owner_is_gone(cluster: Cluster) -> None:
    ends = cluster.names.ends(opening("10.1.0.10", WEB, "172.16.0.2", REMOTE_NODE))
    cluster.owners.clear()
    cluster.identities.clear()

    assert ends == Ends(End(RELEVANT, "shop", "front1"), End(RESERVED[REMOTE_NODE]))
