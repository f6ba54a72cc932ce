"""Listing of policy maps: one row for each rule, peers with the same ports, ports as people write them."""

from nfq_enforcer.core.identity import ANY, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import (
    PORT_BITS,
    WHOLE,
    Action,
    L7Rule,
    PolicyEntry,
    PolicyKey,
    PolicyMap,
    RuleOrder,
    RuleRef,
    Tier,
    port_blocks,
)
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import ICMP, TCP, UDP
from nfq_enforcer.policy import listing
from nfq_enforcer.policy.listing import MAX_PEERS, MAX_ROWS, PolicyRow, rows

WEB, DB = Identity(300), Identity(301)
LABELS = {WEB: Labels.parse({"app": "web"}), DB: Labels.parse({"app": "db"})}


def ref(name: str = "p", number: int = 0, *, deny: bool = False, order: RuleOrder | None = None) -> RuleRef:
    return RuleRef("CiliumNetworkPolicy", "default", name, Direction.INGRESS, number, deny=deny, order=order)


def listed(entries: dict[PolicyKey, PolicyEntry]) -> list[PolicyRow]:
    return rows(PolicyMap(entries, enforced=True))


def keys(peer: Identity, proto: int, first: int, last: int | None = None) -> list[PolicyKey]:
    return [PolicyKey(peer, proto, *block) for block in port_blocks(first, first if last is None else last)]


def test_peers_with_the_same_ports_of_a_rule_share_a_row() -> None:
    entry = PolicyEntry((ref(),))

    found = listed({key: entry for peer in (DB, WEB) for port in (443, 80) for key in keys(peer, TCP, port)})

    assert found == [PolicyRow("allow", ref(), (WEB, DB), ("80/TCP", "443/TCP"))]


def test_peers_with_other_ports_have_a_row_of_their_own() -> None:
    entry = PolicyEntry((ref(),))

    found = listed(dict.fromkeys((*keys(WEB, TCP, 80), *keys(DB, UDP, 53)), entry))

    assert {(row.peers, row.ports) for row in found} == {((WEB,), ("80/TCP",)), ((DB,), ("53/UDP",))}


def test_blocks_of_a_range_are_joined() -> None:
    entry = PolicyEntry((ref(),))

    (row,) = listed(dict.fromkeys(keys(WEB, TCP, 8000, 8099), entry))

    assert row.ports == ("8000-8099/TCP",)


def test_every_port_and_every_type_have_names() -> None:
    tcp, icmp = PolicyKey(WEB, TCP, 0, 0), PolicyKey(WEB, ICMP, 0, 0)

    (row,) = listed({tcp: PolicyEntry((ref(),)), icmp: PolicyEntry((ref(),))})

    assert row.ports == ("every ICMP type", "every TCP port")
    assert listed(dict.fromkeys(keys(WEB, ICMP, 8), PolicyEntry((ref(),))))[0].ports == ("ICMP type 8",)


def test_a_rule_without_ports_opens_everything() -> None:
    (row,) = listed({PolicyKey(ANY, 0, 0, 0): PolicyEntry((ref(),))})

    assert (row.peers, row.ports) == ((ANY,), ("everything",))


def test_rules_that_deny_come_first_and_ordered_rules_before_them() -> None:
    admin = ref("z", order=RuleOrder(Tier.ADMIN, 10, Action.PASS))
    entry = PolicyEntry((ref("a"),), (ref("b", deny=True),), ordered=(admin,), learned_by=(ref("c"),))

    found = listed({PolicyKey(WEB, TCP, 80, PORT_BITS): entry})

    assert [(row.action, row.rule.name) for row in found] == [
        ("pass", "z"),
        ("deny", "b"),
        ("allow", "a"),
        ("read", "c"),
    ]


def test_requests_of_a_rule_are_its_own() -> None:
    get, query = HttpMatch(method="GET", path="/x"), DnsMatch("*.example.com")
    entry = PolicyEntry(l7=(L7Rule(ref("a"), get), L7Rule(ref("b"), query)))

    found = listed({PolicyKey(WEB, TCP, 80, PORT_BITS): entry})

    assert [row.requests for row in found] == [("GET /x",), ("DNS queries for *.example.com",)]


def test_the_json_form_has_labels_of_peers_and_the_rules_that_enforce() -> None:
    by = RuleRef("NetworkPolicy", "default", "closed", Direction.INGRESS, WHOLE)
    policy_map = PolicyMap(
        {key: PolicyEntry((ref(),)) for peer in (WEB, WORLD) for key in keys(peer, TCP, 80)},
        enforced=True,
        enforced_by=(by,),
    )

    form = listing.to_json(policy_map, LABELS.get)

    assert form["enforced"]
    assert form["enforced_by"] == [
        {
            "kind": "NetworkPolicy",
            "namespace": "default",
            "name": "closed",
            "rule": "ingress",
            "text": "default/closed ingress",
        }
    ]
    assert form["rows"] == [
        {
            "action": "allow",
            "rule": listing.rule_json(ref()),
            "any_peer": False,
            "peers": [{"identity": WORLD, "labels": []}, {"identity": WEB, "labels": ["k8s:app=web"]}],
            "peers_total": 2,
            "ports": ["80/TCP"],
            "requests": [],
            "requests_total": 0,
        }
    ]
    assert form["rows_total"] == 1


def test_the_json_form_is_bounded_and_has_the_numbers_of_all() -> None:
    peers = [Identity(number) for number in range(300, 300 + 2 * MAX_PEERS)]
    entries = {PolicyKey(peer, TCP, 80, PORT_BITS): PolicyEntry((ref(),)) for peer in peers}
    many = tuple(ref(f"p{number}") for number in range(MAX_ROWS + 5))
    entries[PolicyKey(ANY, TCP, 80, PORT_BITS)] = PolicyEntry(many)

    form = listing.to_json(PolicyMap(entries, enforced=False), LABELS.get)

    assert (len(form["rows"]), form["rows_total"]) == (MAX_ROWS, MAX_ROWS + 6)
    row = next(row for row in form["rows"] if row["rule"]["name"] == "p" and not row["any_peer"])
    assert (len(row["peers"]), row["peers_total"]) == (MAX_PEERS, 2 * MAX_PEERS)
