"""Policy maps: an entry opens its ports to its peer, deny wins, and a rule for some requests yields to one for all."""

import pickle
from itertools import pairwise
from typing import Any

import pytest

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch, ProxyProtocols
from nfq_enforcer.core.tables.policymap import (
    PORT_BITS,
    WHOLE,
    Action,
    L7Rule,
    LookupResult,
    PolicyEntry,
    PolicyKey,
    PolicyMap,
    RuleOrder,
    RuleRef,
    Tier,
    port_blocks,
)
from nfq_enforcer.core.verdict import Direction

WEB, DB = Identity(256), Identity(257)
TCP, UDP, ICMP = 6, 17, 1


def ref(name: str, namespace: str = "shop") -> RuleRef:
    return RuleRef("CiliumNetworkPolicy", namespace, name, Direction.INGRESS, 2)


def key(identity: int, proto: int, port: int) -> PolicyKey:
    return PolicyKey(Identity(identity), proto, port, PORT_BITS if port else 0)


def opening(**keys: tuple[int, int, int]) -> PolicyMap:
    """Return a map where the rule of each name opens its key."""
    return PolicyMap({key(*one): PolicyEntry((ref(name),)) for name, one in keys.items()}, enforced=True)


def ordered(name: str, tier: Tier, action: Action, priority: int = 10) -> RuleRef:
    order = RuleOrder(tier, priority, action)
    return RuleRef("ClusterNetworkPolicy", "", name, Direction.INGRESS, 2, order=order)


def rules(found: LookupResult) -> list[str]:
    assert found.allowed is bool(found.rules)
    return [rule.name for rule in found.rules]


def test_a_rule_reads_as_its_document_and_the_place_in_it() -> None:
    assert str(ref("web")) == "shop/web ingress[2]"
    assert str(ref("web", namespace="")) == "web ingress[2]"
    assert str(ref("web")._replace(deny=True)) == "shop/web ingressDeny[2]"
    assert str(ref("web")._replace(number=WHOLE)) == "shop/web ingress"


def test_an_ordered_rule_reads_with_its_tier_priority_action_and_name() -> None:
    place = "name ingress[2]"
    assert str(ordered("name", Tier.ADMIN, Action.DENY)) == f"{place} (Admin 10, Deny)"
    named = RuleOrder(Tier.BASELINE, 0, Action.PASS, "to the default")
    assert str(ordered("name", Tier.ADMIN, Action.DENY)._replace(order=named)) == (
        f"{place} (Baseline 0, Pass 'to the default')"
    )


def test_an_entry_opens_one_port_of_one_protocol_to_one_peer() -> None:
    entries = opening(web=(WEB, TCP, 80))

    assert rules(entries.lookup(WEB, TCP, 80)) == ["web"]
    closed = LookupResult(False)
    assert [entries.lookup(*one) for one in ((WEB, TCP, 81), (WEB, UDP, 80), (DB, TCP, 80))] == [closed] * 3
    assert not closed.denied


def test_port_0_opens_every_port_of_its_protocol() -> None:
    entries = opening(web=(WEB, TCP, 0))

    assert [rules(entries.lookup(WEB, *port)) for port in ((TCP, 1), (TCP, 65535), (UDP, 1))] == [["web"], ["web"], []]


def test_protocol_0_opens_everything_icmp_included() -> None:
    entries = opening(web=(WEB, 0, 0))

    assert [rules(entries.lookup(WEB, *port)) for port in ((TCP, 1), (ICMP, 0))] == [["web"], ["web"]]


def test_identity_0_is_any_peer() -> None:
    assert rules(opening(web=(ANY, TCP, 80)).lookup(DB, TCP, 80)) == ["web"]


def test_every_rule_that_opens_it_is_named_once() -> None:
    entries = opening(
        a=(WEB, TCP, 80), b=(WEB, TCP, 0), c=(WEB, 0, 0), d=(ANY, TCP, 80), e=(ANY, TCP, 0), f=(ANY, 0, 0), g=(DB, 0, 0)
    )

    assert rules(entries.lookup(WEB, TCP, 80)) == list("abcdef")
    assert rules(entries.lookup(WEB, TCP, 0)) == list("bcef")


def test_a_type_of_icmp_is_a_port_and_type_0_is_one_of_them() -> None:
    entries = PolicyMap({PolicyKey(WEB, ICMP, 0, PORT_BITS): PolicyEntry((ref("reply"),))}, enforced=True)

    assert [entries.lookup(WEB, ICMP, kind).allowed for kind in (0, 8)] == [True, False]


@pytest.mark.parametrize(
    ("first", "last", "blocks"),
    [
        (80, 80, [(80, 16)]),
        (0, 65535, [(0, 0)]),
        (8080, 8087, [(8080, 13)]),
        (1, 6, [(1, 16), (2, 15), (4, 15), (6, 16)]),
        (65534, 65535, [(65534, 15)]),
    ],
)
def test_a_range_is_cut_into_the_fewest_blocks(first: int, last: int, blocks: list[tuple[int, int]]) -> None:
    assert list(port_blocks(first, last)) == blocks


@pytest.mark.parametrize(("first", "last"), [(1, 65535), (1, 65534), (1000, 2000), (32767, 32769), (3, 3)])
def test_the_blocks_of_a_range_join_without_gap_or_overlap(first: int, last: int) -> None:
    keys = [PolicyKey(ANY, TCP, port, bits) for port, bits in port_blocks(first, last)]

    assert (keys[0].port, keys[-1].last_port) == (first, last)
    assert all(one.last_port + 1 == following.port for one, following in pairwise(keys))


def test_a_range_opens_its_ports_both_ends_included() -> None:
    entries = {PolicyKey(WEB, TCP, *block): PolicyEntry((ref("range"),)) for block in port_blocks(1000, 2001)}
    found = PolicyMap(entries, enforced=True)

    assert [found.lookup(WEB, TCP, port).allowed for port in (999, 1000, 1500, 2001, 2002)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not found.lookup(WEB, UDP, 1000).allowed


@pytest.mark.parametrize("allow", [(WEB, TCP, 80), (WEB, 0, 0), (ANY, TCP, 80), (ANY, 0, 0)])
@pytest.mark.parametrize("deny", [(WEB, TCP, 80), (WEB, TCP, 0), (ANY, 0, 0)])
def test_a_deny_beats_every_allow_narrower_or_not(allow: tuple[int, int, int], deny: tuple[int, int, int]) -> None:
    entries = {key(*allow): PolicyEntry((ref("allow"),))}
    denying = PolicyEntry(entries.get(key(*deny), PolicyEntry()).allowed_by, (ref("deny"),))

    found = PolicyMap(entries | {key(*deny): denying}, enforced=True).lookup(WEB, TCP, 80)

    assert found == LookupResult(False, (ref("deny"),))
    assert found.denied


def test_a_deny_holds_where_nothing_is_enforced_and_all_else_passes_there() -> None:
    found = PolicyMap({key(WEB, TCP, 80): PolicyEntry((), (ref("deny"),))}, enforced=False)

    assert found.can_refuse
    assert (found.lookup(WEB, TCP, 80).denied, found.lookup(WEB, TCP, 81)) == (True, LookupResult(True))


GET = L7Rule(ref("get"), HttpMatch("GET"))
PUT = L7Rule(ref("put"), HttpMatch("PUT"))


def test_rules_for_some_requests_add_up() -> None:
    entries = {key(WEB, TCP, 80): PolicyEntry(l7=(GET,)), key(ANY, TCP, 80): PolicyEntry(l7=(PUT, GET))}

    found = PolicyMap(entries, enforced=True).lookup(WEB, TCP, 80)

    assert found == LookupResult(True, (ref("get"), ref("put")), (GET, PUT), protocols=ProxyProtocols.HTTP)


@pytest.mark.parametrize("allow", [(WEB, TCP, 80), (WEB, 0, 0), (ANY, TCP, 80), (ANY, 0, 0), (WEB, TCP, 0)])
def test_a_rule_for_all_requests_lifts_those_for_some(allow: tuple[int, int, int]) -> None:
    entries = {key(WEB, TCP, 80): PolicyEntry(l7=(GET,))}
    plain = PolicyEntry((ref("plain"),), (), entries.get(key(*allow), PolicyEntry()).l7)

    found = PolicyMap(entries | {key(*allow): plain}, enforced=True).lookup(WEB, TCP, 80)

    assert found == LookupResult(True, (ref("plain"),))


@pytest.mark.parametrize("allow", [(DB, TCP, 80), (DB, 0, 0), (WEB, TCP, 81), (ANY, UDP, 80)])
def test_a_rule_for_another_peer_or_port_lifts_nothing(allow: tuple[int, int, int]) -> None:
    entries = {key(WEB, TCP, 80): PolicyEntry(l7=(GET,)), key(*allow): PolicyEntry((ref("plain"),))}

    assert PolicyMap(entries, enforced=True).lookup(WEB, TCP, 80).l7 == (GET,)


def test_the_ports_with_http_rules_are_ranges_without_overlap() -> None:
    http, dns = L7Rule(ref("l7"), HttpMatch("GET")), L7Rule(ref("l7"), DnsMatch("*"))
    entries = {
        PolicyKey(Identity(1), TCP, 80, 16): PolicyEntry(l7=(http,)),
        PolicyKey(Identity(2), TCP, 80, 15): PolicyEntry(l7=(http, http)),  # 80 and 81
        PolicyKey(Identity(1), TCP, 82, 16): PolicyEntry(l7=(http,)),
        PolicyKey(ANY, TCP, 8080, 16): PolicyEntry(l7=(dns, http)),
        PolicyKey(ANY, TCP, 53, 16): PolicyEntry(l7=(dns,)),
        PolicyKey(ANY, UDP, 90, 16): PolicyEntry(l7=(http,)),
        PolicyKey(ANY, TCP, 443, 16): PolicyEntry((ref("plain"),)),
    }
    some = PolicyMap(entries, enforced=True)

    assert some.proxy_ports == ((80, 82), (8080, 8080))
    assert some.proxy_ports is some.proxy_ports
    assert pickle.loads(pickle.dumps(some)).proxy_ports == some.proxy_ports
    assert PolicyMap({PolicyKey(ANY, 0, 0, 0): PolicyEntry(l7=(http,))}, enforced=True).proxy_ports == ((0, 65535),)
    assert some.with_entries({}).proxy_ports == ()


def test_a_map_says_whether_it_is_enforced_and_by_which_rules() -> None:
    closed = PolicyMap({}, enforced=True, enforced_by=(ref("web"),))
    open_map = PolicyMap({key(WEB, TCP, 80): PolicyEntry((ref("web"),))}, enforced=False)

    assert (closed.enforced, closed.enforced_by, dict(closed.entries)) == (True, (ref("web"),), {})
    assert closed.can_refuse
    assert (open_map.enforced_by, open_map.can_refuse) == ((), False)


def test_a_map_means_the_same_in_another_process() -> None:
    entries = {key(WEB, TCP, 80): PolicyEntry((ref("allow"),)), key(ANY, TCP, 80): PolicyEntry((), (ref("deny"),))}
    first = PolicyMap(entries, enforced=True, enforced_by=(ref("allow"),))
    asked = [(WEB, TCP, 80), (DB, TCP, 80), (DB, TCP, 81)]
    answers = [first.lookup(*one) for one in asked]

    second = pickle.loads(pickle.dumps(first))

    assert [second.lookup(*one) for one in asked] == [first.lookup(*one) for one in asked] == answers
    assert (second.enforced, second.enforced_by, second.entries) == (True, first.enforced_by, entries)


@pytest.mark.parametrize("enforced", [True, False])
def test_a_map_over_the_same_entries_means_the_same(enforced: bool) -> None:
    entries = {key(WEB, TCP, 80): PolicyEntry((ref("allow"),)), key(ANY, TCP, 80): PolicyEntry((), (ref("deny"),))}
    first = PolicyMap(entries, enforced=enforced, enforced_by=(ref("allow"),) if enforced else ())
    asked = [(WEB, TCP, 80), (DB, TCP, 80), (DB, TCP, 81), (DB, UDP, 80)]

    empty = pickle.loads(pickle.dumps(first.with_entries({})))
    again = empty.with_entries(dict(entries))

    assert [again.lookup(*one) for one in asked] == [first.lookup(*one) for one in asked]
    assert (again.can_refuse, again.closes_host, again.enforced_by) == (True, first.closes_host, first.enforced_by)
    assert [empty.lookup(*one).allowed for one in asked] == [not enforced] * 4


def test_a_look_up_names_the_rules_of_an_entry_without_counting_them() -> None:
    many = tuple(ref(str(number)) for number in range(1000))
    found = PolicyMap({key(WEB, TCP, 80): PolicyEntry(many), key(ANY, 0, 0): PolicyEntry(many)}, enforced=True)

    assert found.lookup(WEB, TCP, 80).rules == many
    assert found.lookup(WEB, TCP, 80) is found.lookup(WEB, TCP, 80)


def test_a_map_that_other_rules_close_has_the_same_entries() -> None:
    deny = PolicyMap({key(WEB, TCP, 80): PolicyEntry(denied_by=(ref("no"),))}, enforced=False)
    closed = deny.with_enforcement((ref("closes"),), enforced=True)

    assert (closed.enforced, closed.enforced_by, closed.can_refuse) == (True, (ref("closes"),), True)
    assert closed.entries is deny.entries
    assert rules_that_deny(closed) == rules_that_deny(deny) == ["no"]
    assert not closed.lookup(DB, TCP, 80).allowed
    assert [one.can_refuse for one in (closed.with_enforcement((), enforced=False), PolicyMap({}, enforced=False))] == [
        True,
        False,
    ]


def rules_that_deny(policy: PolicyMap) -> list[str]:
    return [rule.name for rule in policy.lookup(WEB, TCP, 80).rules]


@pytest.mark.parametrize("more", [key(WEB, TCP, 443), key(WEB, UDP, 0), key(WEB, 0, 0)])
def test_a_map_with_other_entries_answers_as_one_made_of_them(more: PolicyKey) -> None:
    before = opening(web=(WEB, TCP, 80), db=(DB, TCP, 5432))
    entries = {**before.entries, more: PolicyEntry((ref("more"),))}
    del entries[key(DB, TCP, 5432)]
    revised = before.revised(entries, {more, key(DB, TCP, 5432)}, enforced=True, enforced_by=())

    fresh = PolicyMap(entries, enforced=True)
    asked = [(peer, proto, port) for peer in (WEB, DB) for proto in (TCP, UDP, ICMP) for port in (80, 443, 5432)]
    assert [revised.lookup(*one) for one in asked] == [fresh.lookup(*one) for one in asked]
    assert rules(before.lookup(DB, TCP, 5432)) == ["db"]


def test_a_map_revised_to_deny_refuses_even_where_nothing_is_closed() -> None:
    open_map = PolicyMap({}, enforced=False)
    denying = {key(WEB, 0, 0): PolicyEntry(denied_by=(ref("deny"),))}

    assert open_map.revised(denying, denying, enforced=False, enforced_by=()).can_refuse


ADMIN = {action: ordered(f"admin-{action}", Tier.ADMIN, action) for action in Action}
BASELINE = {action: ordered(f"baseline-{action}", Tier.BASELINE, action) for action in Action}


def among(*refs: RuleRef, isolated: bool | None = None, enforced: bool = False, **more: Any) -> LookupResult:
    entry = PolicyEntry(ordered=refs, **more)
    return PolicyMap({key(ANY, TCP, 80): entry}, enforced=enforced, isolated=isolated).lookup(WEB, TCP, 80)


@pytest.mark.parametrize("enforced", [True, False])
def test_the_first_rule_of_admin_decides_over_all_others(enforced: bool) -> None:
    others: dict[str, Any] = {"allowed_by": (ref("allow"),), "denied_by": (ref("deny"),), "enforced": enforced}
    later = ordered("later", Tier.ADMIN, Action.DENY, 11)

    accept, deny, leave = (ADMIN[action] for action in Action)
    assert among(later, accept, BASELINE[Action.DENY], **others) == LookupResult(True, (accept,))
    assert among(later, deny, BASELINE[Action.ACCEPT], **others) == LookupResult(False, (deny,))
    assert among(later, leave, BASELINE[Action.ACCEPT], **others) == LookupResult(False, (ref("deny"),))


def test_baseline_decides_where_no_rule_matches_and_none_isolates() -> None:
    accept, deny, leave = (BASELINE[action] for action in Action)

    for enforced in (True, False):
        assert among(accept, enforced=enforced, isolated=False) == LookupResult(True, (accept,))
        assert among(deny, enforced=enforced, isolated=False) == LookupResult(False, (deny,))
        assert among(leave, enforced=enforced, isolated=False) == LookupResult(not enforced)
    assert among(accept) == LookupResult(True, (accept,))
    assert among(accept, enforced=True) == among(accept, enforced=True, isolated=True) == LookupResult(False)
    assert among(deny, allowed_by=(ref("allow"),)) == LookupResult(True, (ref("allow"),))


def test_only_a_rule_that_denies_makes_an_open_map_refuse() -> None:
    refs = (*ADMIN.values(), *BASELINE.values())

    refusing = [
        one for one in refs if PolicyMap({key(ANY, TCP, 80): PolicyEntry(ordered=(one,))}, enforced=False).can_refuse
    ]
    assert refusing == [ADMIN[Action.DENY], BASELINE[Action.DENY]]


def test_a_map_over_other_entries_leaves_baseline_as_it_was() -> None:
    first = PolicyMap(
        {key(ANY, TCP, 80): PolicyEntry(ordered=(BASELINE[Action.ACCEPT],))}, enforced=True, isolated=False
    )

    for again in (first.with_entries(first.entries), pickle.loads(pickle.dumps(first))):
        assert again.lookup(WEB, TCP, 80).allowed
    isolated = first.with_enforcement((ref("np"),), enforced=True, isolated=True)
    assert (isolated.isolated, isolated.lookup(WEB, TCP, 80).allowed) == (True, False)


NAMES = L7Rule(ref("names"), DnsMatch("*.example.com"))


@pytest.mark.parametrize("enforced", [True, False])
def test_answers_are_read_for_the_rules_that_learn_from_them(enforced: bool) -> None:
    found = among(ADMIN[Action.ACCEPT], enforced=enforced, learned_by=(ref("learns"),), l7=(NAMES,))

    assert (found.allowed, found.l7, found.rules) == (True, (), (ADMIN[Action.ACCEPT],))
    assert found.dns
    assert [rule.name for rule in found.dns.find("a.name")] == ["learns", "names"]
    assert among(ADMIN[Action.DENY], learned_by=(ref("learns"),)).dns is None


def test_dns_rules_that_decide_keep_their_patterns() -> None:
    found = among(enforced=True, learned_by=(ref("learns"),), l7=(NAMES,))

    assert found.l7 == (NAMES,)
    assert found.dns
    assert not found.dns.find("a.name")
