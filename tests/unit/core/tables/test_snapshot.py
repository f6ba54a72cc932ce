"""The snapshot: which source addresses may come from which interfaces; and that it reaches a worker as it was."""

import pickle
from dataclasses import replace

import pytest

from nfq_enforcer.core.identity import WORLD, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from tests.support.nodes import V4, Node
from tests.support.packets import packed

OPEN = PolicyMap({}, enforced=False)
HOMED = LocalEndpoint("default/homed", Identity(300), "veth1", OPEN, OPEN)
UNHOMED = LocalEndpoint("default/unhomed", Identity(301), None, OPEN, OPEN)
HOST = LocalEndpoint("default/host", Identity(302), None, OPEN, OPEN, is_host=True)
ON_UPLINK = LocalEndpoint("default/uplink", Identity(303), "eth0", OPEN, OPEN)
A, B, C, D, STRANGER = (bytes((10, 0, 0, number)) for number in range(1, 6))
SNAPSHOT = Snapshot(1, {A: HOMED, B: UNHOMED, C: HOST, D: ON_UPLINK}, Ipcache({}), frozenset({"eth0"}))


@pytest.mark.parametrize(
    ("address", "interface", "endpoint"),
    [
        (A, "veth1", HOMED),
        (A, None, HOMED),
        (B, None, UNHOMED),
        (B, "br0", UNHOMED),  # nobody said where it lives: anywhere but behind an interface with a meaning
        (C, None, HOST),
        (D, "eth0", ON_UPLINK),
        (STRANGER, None, None),
        (STRANGER, "eth0", None),  # other nodes are behind it too
        (STRANGER, "wan0", None),
    ],
)
def test_a_source_is_believed_where_it_can_come_from(
    address: bytes, interface: str | None, endpoint: LocalEndpoint | None
) -> None:
    assert SNAPSHOT.source_endpoint(address, interface) is endpoint


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        (A, "eth0"),
        (A, "wan0"),
        (B, "eth0"),
        (B, "veth1"),
        (C, "eth0"),
        (C, "veth1"),
        (C, "br0"),  # the host's own address comes from the host alone
        (D, "br0"),
        (STRANGER, "veth1"),
    ],
)
def test_a_source_is_not_believed_where_it_cannot_come_from(address: bytes, interface: str) -> None:
    with pytest.raises(LookupError):
        SNAPSHOT.source_endpoint(address, interface)


def test_a_link_local_address_is_that_of_the_endpoint_behind_the_interface() -> None:
    link_local = packed("fe80::1")

    assert SNAPSHOT.source_endpoint(link_local, "veth1") is HOMED
    assert SNAPSHOT.destination_endpoint(link_local, "veth1") is HOMED
    assert SNAPSHOT.source_endpoint(link_local, "eth0") is None
    assert SNAPSHOT.destination_endpoint(link_local, "eth0") is None


def test_endpoints_behind_one_interface_share_it() -> None:
    twin = LocalEndpoint("default/twin", Identity(302), "veth1", OPEN, OPEN)
    snapshot = Snapshot(1, {A: HOMED, B: twin}, Ipcache({}))

    assert snapshot.source_endpoint(B, "veth1") is twin


def test_it_reaches_a_worker_as_it_was() -> None:
    sent = Node().snapshot(7, ingress={"db": [(300, 6, 80)]})
    received: Snapshot = pickle.loads(pickle.dumps(sent))

    assert received.revision == 7
    here = received.source_endpoint(packed(V4.web), "veth-web")
    assert here is not None
    assert here.name == "default/web"
    with pytest.raises(LookupError):
        received.source_endpoint(packed(V4.web), "eth0")


def test_over_peers_it_sees_them_change_and_is_else_the_same() -> None:
    peers = {STRANGER: Peer(Identity(500), remote=True)}
    snapshot = SNAPSHOT.with_tables(peers, set())

    peers[STRANGER] = Peer(Identity(501), remote=True)

    assert snapshot.ipcache.lookup(STRANGER) == Peer(Identity(501), remote=True)
    assert SNAPSHOT.ipcache.lookup(STRANGER) == Peer(WORLD, remote=False)
    assert (snapshot.revision, snapshot.endpoints, snapshot.endpoint_interfaces) == (
        1,
        SNAPSHOT.endpoints,
        SNAPSHOT.endpoint_interfaces,
    )


def test_renewed_it_differs_in_its_number_alone() -> None:
    assert SNAPSHOT.with_revision(9) == replace(SNAPSHOT, revision=9)
    assert SNAPSHOT.with_revision(9).endpoint_interfaces == SNAPSHOT.endpoint_interfaces
