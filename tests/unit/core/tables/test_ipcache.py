"""The ipcache: a known address has its identity, any other that of its longest prefix, else it is the world's."""

from collections.abc import Callable, MutableMapping
from ipaddress import ip_network

import pytest

from nfq_enforcer.core.identity import HOST, KUBE_APISERVER, LOCAL, REMOTE_NODE, WORLD, Identity
from nfq_enforcer.core.tables.ipcache import (
    Ipcache,
    Peer,
    PeerTable,
    apply_changes,
    changes_between,
)
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, Prefixes
from tests.support.packets import packed

CLIENT = Peer(Identity(500), remote=True)
NODE = Peer(REMOTE_NODE, remote=True)
CACHE = Ipcache(
    {packed("10.2.0.10"): CLIENT, packed("fd02::10"): CLIENT, packed("172.16.0.2"): NODE},
    [ip_network("10.9.0.0/16"), ip_network("192.0.2.7/32"), ip_network("fd09::/32")],
)


@pytest.mark.parametrize(("address", "peer"), [("10.2.0.10", CLIENT), ("fd02::10", CLIENT), ("172.16.0.2", NODE)])
def test_a_known_address_is_its_peers(address: str, peer: Peer) -> None:
    assert CACHE.lookup(packed(address)) == peer


@pytest.mark.parametrize(
    ("address", "in_cluster"),
    [
        ("10.9.0.0", True),
        ("10.9.255.255", True),
        ("10.8.255.255", False),
        ("10.10.0.0", False),
        ("192.0.2.7", True),
        ("192.0.2.6", False),
        ("fd09::1", True),
        ("fd09:1::1", False),
        ("a09::", False),  # begins with the bytes of 10.9.0.0
    ],
)
def test_an_unknown_address_is_the_worlds_and_stamped_only_in_the_clusters_networks(
    address: str, in_cluster: bool
) -> None:
    assert CACHE.lookup(packed(address)) == Peer(WORLD, remote=in_cluster)


@pytest.mark.parametrize(("everything", "address"), [("0.0.0.0/0", "203.0.113.9"), ("::/0", "2001:db8::9")])
def test_a_network_of_everything_holds_its_own_family_only(everything: str, address: str) -> None:
    cache = Ipcache({}, [ip_network(everything)])

    assert cache.lookup(packed(address)).remote
    assert not cache.lookup(packed("::1" if "." in address else "192.0.2.1")).remote


WIDE, NARROW, HOLE, SIXTH = (Identity(LOCAL | number) for number in range(4))
PREFIXES = Prefixes(
    {
        ip_network("0.0.0.0/0"): WIDE,
        ip_network("10.0.0.0/8"): NARROW,
        ip_network("10.9.0.0/16"): HOLE,
        ip_network("fd00::/8"): SIXTH,
    }
)


@pytest.mark.parametrize(
    ("address", "identity"),
    [
        ("192.0.2.1", WIDE),
        ("10.0.0.0", NARROW),
        ("10.255.255.255", NARROW),
        ("10.9.0.0", HOLE),
        ("10.10.0.0", NARROW),
        ("fd00::1", SIXTH),
        ("2001:db8::1", None),
    ],
)
def test_the_longest_prefix_wins_in_each_family(address: str, identity: Identity | None) -> None:
    assert PREFIXES.lookup(packed(address)) == identity
    assert NO_PREFIXES.lookup(packed(address)) is None


def test_only_an_address_that_is_nobodys_has_the_identity_of_a_prefix() -> None:
    cache = Ipcache({packed("10.2.0.10"): CLIENT}, [ip_network("10.9.0.0/16")], outside=PREFIXES)

    assert cache.lookup(packed("10.2.0.10")) == CLIENT
    assert cache.lookup(packed("10.2.0.11")) == Peer(NARROW, remote=False)
    assert cache.lookup(packed("10.9.0.9")) == Peer(HOLE, remote=True)
    assert cache.lookup(packed("2001:db8::1")) == Peer(WORLD, remote=False)


def test_any_address_may_have_local_identities() -> None:
    site = Identity(LOCAL | 9)
    cache = Ipcache({packed("10.2.0.10"): CLIENT}, blocks=PREFIXES, sites={packed("10.2.0.10"): site})

    assert cache.local_identities(packed("10.2.0.10")) == (NARROW, site)
    assert cache.local_identities(packed("2001:db8::1")) == ()
    assert CACHE.local_identities(packed("10.2.0.10")) == ()


def test_an_address_of_the_api_server_has_that_identity_and_keeps_the_one_it_had_as_a_local_one() -> None:
    node, stranger, endpoint, far = map(packed, ("10.2.0.1", "10.2.0.11", "10.2.0.10", "2001:db8::1"))
    peers = {endpoint: CLIENT, node: Peer(REMOTE_NODE, remote=True)}
    cache = Ipcache(peers, (), PREFIXES, kube_apiserver=frozenset((node, stranger, endpoint, far)))

    assert cache.lookup(node) == Peer(KUBE_APISERVER, remote=True)  # stamped as before
    assert cache.lookup(stranger) == cache.lookup(far) == Peer(KUBE_APISERVER, remote=False)
    assert cache.lookup(endpoint) == CLIENT
    assert cache.local_identities(node, KUBE_APISERVER) == (REMOTE_NODE,)
    assert cache.local_identities(stranger, KUBE_APISERVER) == (NARROW,)
    assert cache.local_identities(far, KUBE_APISERVER) == (WORLD,)
    assert cache.local_identities(endpoint, CLIENT.identity) == (KUBE_APISERVER,)
    for other in (WORLD, Identity(CLIENT.identity + 1)):  # translated: by its stamp, the sender is another one
        assert all(cache.local_identities(address, other) == () for address in (node, endpoint, far))
    assert cache.local_identities(stranger, HOST) == (KUBE_APISERVER,)  # this host's own address: never the world
    assert cache.lookup(packed("10.2.0.12")) == Peer(NARROW, remote=False)
    assert cache.local_identities(packed("10.2.0.12"), NARROW) == ()


def test_more_strangers_than_are_remembered_are_all_told_right() -> None:
    outside = Prefixes({ip_network("10.0.0.0/12"): Identity(LOCAL + 1)})
    ipcache = Ipcache({}, [ip_network("10.8.0.0/13")], outside)
    addresses = [(10 << 24 | number * 257).to_bytes(4, "big") for number in range(6000)]

    for _ in range(2):
        for address in addresses:
            inside = address[1] < 16
            expected = Peer(Identity(LOCAL + 1) if inside else WORLD, remote=8 <= address[1] < 16)
            assert ipcache.lookup(address) == expected


def test_a_stranger_who_becomes_a_peer_is_one_at_once() -> None:
    peers = PeerTable({})
    ipcache = Ipcache(peers)
    address, peer = packed("10.0.0.1"), Peer(Identity(300), remote=True)

    assert ipcache.lookup(address).identity == WORLD
    peers[address] = peer
    assert ipcache.lookup(address) == peer
    del peers[address]
    assert ipcache.lookup(address).identity == WORLD


def test_its_length_is_the_number_of_known_addresses() -> None:
    assert (len(CACHE), len(Ipcache({}))) == (3, 0)


A, B, C = (packed(f"10.2.0.{number}") for number in (1, 2, 3))


def test_an_ipcache_over_other_peers_is_else_the_same_and_sees_them_change() -> None:
    site = Identity(LOCAL | 9)
    first = Ipcache({A: CLIENT}, [ip_network("10.9.0.0/16")], PREFIXES, PREFIXES, {A: site})
    peers = {B: CLIENT}

    other = first.with_peers(peers)
    apply_changes(peers, [(B, None), (C, NODE)])

    assert (first.lookup(A), first.lookup(C)) == (CLIENT, Peer(NARROW, remote=False))
    assert [other.lookup(at) for at in (A, B, C)] == [Peer(NARROW, remote=False)] * 2 + [NODE]
    assert other.lookup(packed("10.9.0.9")) == Peer(HOLE, remote=True)
    assert other.local_identities(A) == (NARROW, site)


def test_a_table_of_peers_is_a_mapping_like_any_other() -> None:
    many = {number.to_bytes(4, "big"): Peer(Identity(number), remote=True) for number in range(1000)}
    table = PeerTable(many)

    assert (len(table), dict(table)) == (1000, many)
    assert (table.get(packed("0.0.0.7")), table.get(A)) == (Peer(Identity(7), remote=True), None)
    del table[packed("0.0.0.7")]
    table[A] = NODE
    assert table == {address: peer for address, peer in many.items() if peer.identity != 7} | {A: NODE}
    with pytest.raises(KeyError):
        del table[packed("0.0.0.7")]


@pytest.mark.parametrize("kind", [dict, PeerTable])
def test_of_changes_to_one_address_the_last_counts_and_one_to_nobody_may_be_told_twice(
    kind: Callable[[dict[bytes, Peer]], MutableMapping[bytes, Peer]],
) -> None:
    peers = kind({A: CLIENT})

    apply_changes(peers, [(A, None), (A, NODE), (B, CLIENT), (B, None), (B, None)])

    assert peers == {A: NODE}


@pytest.mark.parametrize(
    ("before", "now", "count"),
    [
        ({}, {}, 0),
        ({}, {A: CLIENT, B: NODE}, 2),
        ({A: CLIENT, B: NODE}, {}, 2),
        ({A: CLIENT, B: CLIENT}, {A: CLIENT, B: NODE}, 1),
        ({A: CLIENT, B: CLIENT}, {B: CLIENT, C: CLIENT}, 2),
    ],
)
def test_the_changes_between_two_states_lead_from_one_to_the_other_and_are_no_more_than_needed(
    before: dict[bytes, Peer], now: dict[bytes, Peer], count: int
) -> None:
    changes = changes_between(before, now)
    apply_changes(before, changes)

    assert (before, len(changes)) == (now, count)
