"""Policy maps: an entry opens its port to its peer, an entry for any opens it to all."""

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.policymap import PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.verdict import Direction

WEB, DB = Identity(256), Identity(257)
TCP, UDP, ICMP = 6, 17, 1


def ref(name: str, namespace: str = "shop") -> RuleRef:
    return RuleRef("CiliumNetworkPolicy", namespace, name, Direction.INGRESS, 2)


def opening(**keys: tuple[int, int, int]) -> PolicyMap:
    """Return a map where the rule of each name opens its key."""
    return PolicyMap({PolicyKey(Identity(key[0]), *key[1:]): (ref(name),) for name, key in keys.items()}, enforced=True)


def rules(found: tuple[RuleRef, ...]) -> list[str]:
    return [rule.name for rule in found]


def test_a_rule_reads_as_its_document_and_the_place_in_it() -> None:
    assert str(ref("web")) == "shop/web ingress[2]"
    assert str(ref("web", namespace="")) == "web ingress[2]"


def test_an_entry_opens_one_port_of_one_protocol_to_one_peer() -> None:
    entries = opening(web=(WEB, TCP, 80))

    assert rules(entries.lookup(WEB, TCP, 80)) == ["web"]
    assert [entries.lookup(*key) for key in ((WEB, TCP, 81), (WEB, UDP, 80), (DB, TCP, 80))] == [(), (), ()]


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


def test_a_map_says_whether_it_is_enforced_and_by_which_rules() -> None:
    closed = PolicyMap({}, enforced=True, enforced_by=(ref("web"),))

    assert (closed.enforced, closed.enforced_by, dict(closed.entries)) == (True, (ref("web"),), {})
    assert PolicyMap({}, enforced=False).enforced_by == ()
