"""Slots: the table of a worker, and the rules of a slot by the policy in force."""

import pytest

from nfq_enforcer.core.identity import ANY, HOST, Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch, ProxyProtocols, SniMatch
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.slots import UNKNOWN_SLOT, Side, SlotChange, SlotKey, SlotTable, sides
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP

WEB, CLIENT = Identity(300), Identity(500)
KEY = SlotKey("", "default/web", CLIENT, WEB, (CLIENT,), (WEB,), 80)
OPEN = PolicyMap({}, enforced=False)
REF = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0)
GET = L7Rule(REF, HttpMatch(method="GET"))
NAME = L7Rule(REF, DnsMatch("*"))
SNI = L7Rule(REF, SniMatch("*.example"))
HTTP, TLS = ProxyProtocols.HTTP, ProxyProtocols.TLS


def policy(entry: PolicyEntry, peer: Identity = CLIENT, kind: str = "CiliumNetworkPolicy") -> PolicyMap:
    return PolicyMap({PolicyKey(peer, TCP, 80, 16): entry}, enforced=True, enforced_by=(REF._replace(kind=kind),))


def rules(policy: PolicyMap, key: SlotKey = KEY, *, allow_localhost: bool = True) -> tuple[Side, ...]:
    web = LocalEndpoint("default/web", WEB, "veth", policy, policy)
    return sides(Snapshot(1, {}, Ipcache({}, []), allow_localhost=allow_localhost), {"default/web": web}, key)


def test_a_table_knows_slots_by_key_and_number() -> None:
    other = KEY._replace(port=81)
    table = SlotTable([SlotChange(KEY, 1, False), SlotChange(other, 2, True)])

    assert (table.find(KEY), table.find(other), table.find(KEY._replace(port=82))) == (1, 2, 0)
    assert (table.is_open(KEY), table.is_open(other)) == (False, True)
    assert (table.key(1), table.key(2), table.key(3)) == (KEY, other, None)
    table.apply([SlotChange(KEY, 1, True), SlotChange(other, 0, False)])
    assert (table.is_open(KEY), table.find(other), table.key(2)) == (True, 0, None)


@pytest.mark.parametrize(
    ("policy", "side"),
    [
        (OPEN, None),
        (policy(PolicyEntry(allowed_by=(REF,))), None),
        (policy(PolicyEntry(l7=(GET,))), (GET,)),
        (policy(PolicyEntry(l7=(GET,)), ANY), (GET,)),
        (policy(PolicyEntry(allowed_by=(REF,), l7=(GET,))), None),
        (policy(PolicyEntry(l7=(NAME,))), ()),
        (policy(PolicyEntry(l7=(SNI, GET, NAME))), (SNI, GET)),
        (policy(PolicyEntry(denied_by=(REF,))), ()),
        (policy(PolicyEntry(l7=(GET,)), WEB), ()),
    ],
)
def test_a_side_has_the_rules_of_the_matching_entries(policy: PolicyMap, side: Side) -> None:
    assert rules(policy) == (side,)


def test_each_local_end_has_a_side() -> None:
    key = SlotKey("default/web", "default/web", WEB, WEB, (CLIENT,), (CLIENT,), 80)
    assert rules(policy(PolicyEntry(l7=(GET,))), key) == ((GET,), (GET,))
    assert rules(OPEN, key._replace(server="")) == (None,)


def test_nothing_is_allowed_to_an_endpoint_that_has_gone_or_has_another_identity() -> None:
    assert rules(OPEN, KEY._replace(server="default/gone")) == ((),)
    assert rules(OPEN, KEY._replace(destination=CLIENT)) == ((),)


def test_the_host_may_connect_unless_a_rule_closes_the_endpoint_to_it() -> None:
    from_host = KEY._replace(source=HOST, client_peers=(HOST,))
    cilium, kubernetes = (
        policy(PolicyEntry(l7=(GET,)), kind=kind) for kind in ("CiliumNetworkPolicy", "NetworkPolicy")
    )

    assert rules(cilium, from_host) == (None,)
    assert rules(cilium, from_host, allow_localhost=False) == ((),)
    assert rules(kubernetes, from_host, allow_localhost=False) == (None,)


@pytest.mark.parametrize(
    ("slot", "wanted", "serves"),
    [
        (HTTP, HTTP, True),
        (HTTP, TLS, True),  # its requests are refused
        (HTTP, HTTP | TLS, True),
        (TLS, TLS, True),
        (TLS, HTTP | TLS, True),
        (TLS, HTTP, False),  # names are compared once
        (HTTP | TLS, TLS, True),
        (HTTP | TLS, HTTP, False),
    ],
)
def test_a_slot_serves_the_connections_of_its_ends(slot: ProxyProtocols, wanted: ProxyProtocols, serves: bool) -> None:
    table = SlotTable([SlotChange(KEY._replace(protocols=slot), 1, True)])
    key = KEY._replace(protocols=wanted)

    assert table.find_serving(key, 1) == table.find_serving(key, UNKNOWN_SLOT) == serves
    assert table.find_serving(key, 2) == 0
    assert table.find_serving(key._replace(port=81), 1) == table.find_serving(key._replace(port=81), UNKNOWN_SLOT) == 0
