"""Transfer of policy maps: entries arrive complete, are sent once, and are freed when no snapshot needs them."""

from collections.abc import Iterable
from ipaddress import ip_network

import pytest

from nfq_enforcer.core.identity import LOCAL, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import LookupResult, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, PART, Prefixes
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.dataplane.worker.channel import encode, message_decoder
from nfq_enforcer.dataplane.worker.map_transfer import (
    Chunk,
    MapChunk,
    MapReceiver,
    MapRemoval,
    MapSender,
    SnapshotReference,
)
from tests.support.packets import packed

RULE = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0)
OPEN = PolicyMap({}, enforced=False)
WEB4, WEB6, DB = packed("10.1.0.10"), packed("fd01::10"), packed("10.1.0.20")


def policy(size: int, first: int = 300) -> PolicyMap:
    """Return a map that opens port 80 to this many identities."""
    keys = (PolicyKey(Identity(number), TCP, 80, 16) for number in range(first, first + size))
    return PolicyMap({key: PolicyEntry((RULE,)) for key in keys}, enforced=True, enforced_by=(RULE,))


def snapshot(revision: int, ingress: PolicyMap, *, db: PolicyMap | None = None) -> Snapshot:
    """Return a snapshot in which WEB has two addresses; DB exists only with a map."""
    web = LocalEndpoint("default/web", Identity(300), "veth-web", ingress, OPEN)
    endpoints = {WEB4: web, WEB6: web}
    if db is not None:
        endpoints[DB] = LocalEndpoint("default/db", Identity(301), "veth-db", db, OPEN)
    return Snapshot(revision, endpoints, Ipcache({}))


def deliver(receiver: MapReceiver, messages: Iterable[object]) -> list[Snapshot]:
    """Deliver encoded messages to a receiver; return the snapshots among them."""
    snapshots = []
    for message in message_decoder().feed(b"".join(map(encode, messages))):
        if isinstance(message, SnapshotReference):
            snapshots.append(receiver.resolve(message))
        elif isinstance(message, MapRemoval):
            receiver.remove(message)
        else:
            receiver.add(message)
    return snapshots


def sizes(chunks: Iterable[Chunk]) -> list[int]:
    """Return the number of entries in each chunk of policy maps."""
    return [len(chunk.entries) for chunk in chunks if isinstance(chunk, MapChunk)]


@pytest.mark.parametrize("size", [0, 1, 499, 500, 501, 3000])
def test_what_arrives_means_what_was_sent(size: int) -> None:
    sender, wanted = MapSender(), snapshot(3, policy(size))

    (filled,) = deliver(MapReceiver(), [*sender.add(wanted), sender.refer(wanted)])

    ingress = filled.endpoints[WEB4].ingress
    assert ingress.entries == wanted.endpoints[WEB4].ingress.entries
    assert [ingress.lookup(Identity(300 + number), TCP, 80) for number in (0, size - 1) if size] == [
        LookupResult(True, (RULE,)) for _ in range(2) if size
    ]
    assert not ingress.lookup(Identity(300 + size), TCP, 80).allowed
    assert filled.endpoints[WEB4].egress.lookup(Identity(300), TCP, 80).allowed
    assert (filled.revision, filled.endpoint_interfaces) == (3, frozenset({"veth-web"}))


def test_no_message_holds_more_than_a_worker_takes_at_once() -> None:
    chunks = list(MapSender().add(snapshot(1, policy(1700))))

    assert sizes(chunks) == [500, 500, 500, 200]


def test_what_is_one_endpoint_or_one_map_stays_one() -> None:
    sender, shared = MapSender(), policy(10)
    wanted = snapshot(1, shared, db=shared)

    (filled,) = deliver(MapReceiver(), [*sender.add(wanted), sender.refer(wanted)])

    assert filled.endpoints[WEB4] is filled.endpoints[WEB6]
    assert filled.endpoints[WEB4].ingress is filled.endpoints[DB].ingress


def test_maps_over_the_same_entries_send_them_once_and_stay_different() -> None:
    sender, enforced = MapSender(), policy(10)
    wanted = snapshot(1, enforced, db=enforced.with_enforcement((), enforced=False))

    chunks = list(sender.add(wanted))
    (filled,) = deliver(MapReceiver(), [*chunks, sender.refer(wanted)])

    assert sizes(chunks) == [10]
    web, db = filled.endpoints[WEB4].ingress, filled.endpoints[DB].ingress
    assert (web.enforced, db.enforced) == (True, False)
    assert web.entries is db.entries


def test_what_a_worker_has_is_not_sent_again() -> None:
    sender, receiver, same = MapSender(), MapReceiver(), policy(10)
    first, second = snapshot(1, same), snapshot(2, same, db=policy(5, first=900))
    deliver(receiver, [*sender.add(first), sender.refer(first), sender.retain(first)])

    chunks = list(sender.add(second))
    (filled,) = deliver(receiver, [*chunks, sender.refer(second), sender.retain(second)])

    assert sizes(chunks) == [5]
    assert filled.endpoints[WEB4].ingress.entries == same.entries


def test_a_worker_that_starts_is_sent_what_is_needed_now_and_no_more() -> None:
    sender, last = MapSender(), snapshot(2, policy(7))
    for wanted in (snapshot(1, policy(1000, first=900)), last):
        list(sender.add(wanted))
        sender.retain(wanted)

    chunks = list(sender.chunks())
    (filled,) = deliver(MapReceiver(), [*chunks, sender.refer(last)])

    assert sizes(chunks) == [7]
    assert filled.endpoints[WEB4].ingress.entries == last.endpoints[WEB4].ingress.entries


def test_what_is_forgotten_goes_little_by_little_and_leaves_what_is_needed() -> None:
    sender, receiver = MapSender(), MapReceiver()
    old, new = snapshot(1, policy(3000)), snapshot(2, policy(7, first=9000))
    (before,) = deliver(receiver, [*sender.add(old), sender.refer(old), sender.retain(old)])
    (after,) = deliver(receiver, [*sender.add(new), sender.refer(new), removal := sender.retain(new)])

    entries = before.endpoints[WEB4].ingress.entries
    left = [len(entries)]
    for _ in range(4):
        receiver.free_some()
        left.append(len(entries))

    assert len(removal.numbers) == 3  # the entries, the map, and the endpoints
    assert left == [3000, 3000, 3000, 1000, 0]  # interfaces and endpoints come first
    assert len(after.endpoints[WEB4].ingress.entries) == 7


def test_a_worker_that_has_not_got_what_is_forgotten_does_without() -> None:
    receiver = MapReceiver()

    receiver.remove(MapRemoval((5,)))
    receiver.free_some()

    assert deliver(receiver, [SnapshotReference(Snapshot(1, {}, Ipcache({})), 1, 2, 3)])[0].endpoints == {}


def test_prefixes_arrive_in_parts_once_and_are_removed_with_the_last_snapshot_that_needs_them() -> None:
    sender, receiver = MapSender(), MapReceiver()
    numbers = {ip_network((number << 9, 24)): Identity(LOCAL | number % 2) for number in range(PART)}
    outside, blocks = Prefixes(numbers), Prefixes({ip_network("fd00::/8"): Identity(LOCAL | 7)})
    first = Snapshot(1, {}, Ipcache({}, outside=outside, blocks=blocks))
    later = Snapshot(2, {}, Ipcache({}, outside=outside, blocks=NO_PREFIXES))

    chunks = list(sender.add(first))
    (filled,) = deliver(receiver, [*chunks, sender.refer(first), sender.retain(first)])
    (last,) = deliver(receiver, [*sender.add(later), sender.refer(later), removal := sender.retain(later)])

    assert max(len(encode(chunk)) for chunk in chunks) < 20_000
    for number in range(PART):
        address = (number << 9).to_bytes(4, "big")
        assert filled.ipcache.lookup(address) == last.ipcache.lookup(address) == first.ipcache.lookup(address)
    assert filled.ipcache.local_identities(packed("fd01::1")) == (LOCAL | 7,)
    assert last.ipcache.local_identities(packed("fd01::1")) == ()
    assert len(removal.numbers) == 2  # the blocks, and the endpoints of the first snapshot


def test_many_endpoints_arrive_in_portions() -> None:
    sender = MapSender()
    endpoints = {
        (10 << 24 | number).to_bytes(4, "big"): LocalEndpoint(
            f"default/e{number}", Identity(300), f"v{number}", OPEN, OPEN
        )
        for number in range(1050)
    }
    wanted = Snapshot(1, endpoints, Ipcache({}), cluster_interfaces=frozenset({"v0"}))

    chunks = list(sender.add(wanted))
    (filled,) = deliver(MapReceiver(), [*chunks, reference := sender.refer(wanted)])

    assert max(map(len, map(encode, [*chunks, reference]))) < 10_000
    assert filled.endpoint_interfaces == wanted.endpoint_interfaces == {f"v{number}" for number in range(1, 1050)}
    assert {address: (one.name, one.ingress.enforced) for address, one in filled.endpoints.items()} == {
        address: (one.name, False) for address, one in endpoints.items()
    }
