"""Packet comment: reason, both ends and the rules in one printable line."""

from typing import Any

from nfq_enforcer.captures.comment import describe
from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import WORLD, Identity
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import Action, RuleOrder, RuleRef, Tier
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.observe.flow import Logged, render
from tests.support.packets import packed

RULE = RuleRef("CiliumNetworkPolicy", "shop", "web", Direction.INGRESS, 0)
DENY = RuleRef("CiliumClusterwideNetworkPolicy", "", "nobody", Direction.EGRESS, 2, deny=True)
ORDER = RuleOrder(Tier.ADMIN, 10, Action.DENY, "no telnet")
ORDERED = RuleRef("ClusterNetworkPolicy", "", "admin", Direction.INGRESS, 1, order=ORDER)
UNNAMED = ORDERED._replace(order=ORDER._replace(title=""))
OPENING = Opening(packed("10.2.0.10"), packed("10.1.0.10"), 6, 40_000, 80, -1, -1, False, Identity(300), WORLD)
EVENT = FlowEvent(5.0, FlowVerdict.DROPPED, DropReason.POLICY_DENIED, Direction.INGRESS, OPENING, 2, is_reply=False)
LABELS = Labels([Label("k8s", "role", "web"), Label("k8s", "io.kubernetes.pod.namespace", "shop")])
NAMES = Ends(End(LABELS, "shop", "web-1"), End(Labels([Label("reserved", "world", "")])))


def comment(event: FlowEvent, names: Ends = NAMES, **fields: Any) -> str:
    return describe(
        {"flow": render(Logged(event, names, event.time, "n1", "")), "arrived_by": None, "leaves_by": None, **fields}
    )


def test_a_drop_because_no_rule_allows_it_names_the_rules_that_enforce() -> None:
    assert comment(EVENT._replace(enforced_by=(RULE, RULE)), arrived_by="eth0", leaves_by="veth1") == (
        "DROPPED POLICY_DENIED: no rule allows it; ingress on node n1 arrived by eth0 leaving by veth1; "
        "from shop/web-1 identity 300 (k8s:role=web); to identity 2 (reserved:world); "
        "enforced by CiliumNetworkPolicy shop/web ingress[0]"
    )


def test_deny_rules_of_both_directions_are_named() -> None:
    text = comment(EVENT._replace(reason=DropReason.POLICY_DENY, denied_by=(ORDERED, UNNAMED, DENY)))

    assert text.endswith(
        "; denied by CiliumClusterwideNetworkPolicy nobody egressDeny[2]; "
        "denied by ClusterNetworkPolicy admin ingress[1] (Admin 10, Deny 'no telnet'), "
        "ClusterNetworkPolicy admin ingress[1] (Admin 10, Deny)"
    )


def test_the_ends_of_a_reply_are_those_of_the_packet() -> None:
    text = comment(EVENT._replace(is_reply=True, reason=DropReason.CT_NO_MATCH))

    assert "; from identity 2 (reserved:world); to shop/web-1 identity 300 (k8s:role=web)" in text


def test_a_packet_without_readable_headers_has_its_reason() -> None:
    opening = Opening(b"", b"", 0, 0, 0, -1, -1, False, Identity(0), Identity(0))
    text = comment(EVENT._replace(opening=opening, reason=DropReason.INVALID_PACKET), Ends(End(None), End(None)))

    assert text == (
        "DROPPED INVALID_PACKET: the packet's headers are malformed; ingress on node n1; "
        "from unknown identity; to unknown identity"
    )


def test_a_reason_of_another_version_is_kept() -> None:
    flow = render(Logged(EVENT, NAMES, 5.0, "n1", "")) | {"drop_reason_desc": "NEW_REASON"}

    assert describe({"flow": flow}).startswith("DROPPED NEW_REASON; ingress on node n1; ")


def test_no_name_moves_the_cursor() -> None:
    label = Labels([Label("container", "x", "\x1b[2J\n\u202e")])

    text = comment(EVENT, Ends(End(label, "a\x07", "b\x9b"), End(None)))

    assert text.isprintable()
    assert r"from a\x07/b\x9b identity 300 (container:x=\x1b[2J\n\u202e)" in text
