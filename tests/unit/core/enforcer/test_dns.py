"""DNS rules: the queries and answers that pass, the answer to a refused query, and the log."""

import dns.message
import pytest

from nfq_enforcer.core.events import Decision, DnsMessage
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import checksum, parse
from nfq_enforcer.core.wire.skb import GSO
from tests.support.dns import AAAA, ID, OPT, address, alias, answer, answers, asks, query, question
from tests.support.nodes import CLIENT, DB, ETH0, VETH_DB, VETH_WEB, WAN0, WEB, Addresses, Node, event, refused, rule
from tests.support.packets import (
    CLIENT_PORT,
    cut_short,
    error,
    packed,
    stamped,
)

ALLOWED, OTHER = "www.example.com", "www.example.org"
QUERY = query(ALLOWED)


def ask(node: Node, at: Addresses, message: bytes = QUERY, port: int = CLIENT_PORT, skb: int = 0) -> Decision:
    """Decide a query of web to the client of the second node, which is its DNS server."""
    return node.forward(asks(at.web, at.client, message, port), VETH_WEB, ETH0, skb=skb)


def hear(node: Node, at: Addresses, message: bytes, port: int = CLIENT_PORT) -> Decision:
    return node.forward(stamped(answers(at.client, at.web, message, port), CLIENT), ETH0, VETH_WEB)


@pytest.fixture
def node() -> Node:
    node = Node(can_requeue=True)
    node.load_dns("www.example.com", "*.example.net")
    return node


def test_an_allowed_query_passes_and_so_does_its_answer(node: Node, at: Addresses) -> None:
    asked, heard = ask(node, at), hear(node, at, answer(ALLOWED, address(ALLOWED, "192.0.2.1", ttl=30)))

    assert (refused(asked), refused(heard)) == (None, None)
    assert event(asked)._replace(opening=event(heard).opening) == event(asked)
    assert event(asked).l7 == DnsMessage(False, ALLOWED, 1)
    assert (event(asked).is_reply, event(heard).is_reply) == (False, True)
    assert event(heard).l7 == DnsMessage(True, ALLOWED, 1, 0, 30, (packed("192.0.2.1"),))
    first = rule("web", Direction.EGRESS, 0)
    assert (event(asked).allowed_by, event(heard).allowed_by) == ((first,), (first,))
    assert (event(asked).opening.source, event(asked).opening.destination) == (WEB, CLIENT)


def test_each_query_of_a_flow_is_decided(node: Node, at: Addresses) -> None:
    assert [refused(ask(node, at, query(name))) for name in (ALLOWED, OTHER, "x.example.net", "x.y.example.net")] == [
        None,
        DropReason.DNS_REFUSED,
        None,
        DropReason.DNS_REFUSED,
    ]


@pytest.mark.parametrize("name", ["WwW.eXaMpLe.CoM", "www.EXAMPLE.net"])
def test_the_case_of_a_name_does_not_matter(node: Node, at: Addresses, name: str) -> None:
    assert refused(ask(node, at, query(name))) is None
    assert refused(hear(node, at, answer(name.swapcase()))) is None


@pytest.mark.parametrize("edns", [False, True])
def test_a_refused_query_is_answered_as_if_by_its_server(node: Node, at: Addresses, edns: bool) -> None:
    asked = query(OTHER, edns=edns)

    decision = ask(node, at, asked)

    assert refused(decision) is DropReason.DNS_REFUSED
    assert decision.answer is not None
    sent = parse(decision.answer)
    assert (sent.src, sent.dst, sent.sport, sent.dport) == (packed(at.client), packed(at.web), 53, CLIENT_PORT)
    message = dns.message.from_wire(decision.answer[sent.l4_offset + 8 :])
    assert dns.message.from_wire(asked).is_response(message)
    assert message.rcode() == dns.rcode.REFUSED
    datagram = decision.answer[sent.l4_offset :]
    length = len(datagram).to_bytes(4, "big")
    assert checksum(sent.src + sent.dst + length + b"\0\0\0\x11" + datagram) == 0
    if at.version == 4:
        assert checksum(decision.answer[:20]) == 0


def test_the_log_of_a_refused_query_has_its_name_and_the_rules_that_do_not_allow_it(node: Node, at: Addresses) -> None:
    ask(node, at)
    for dropped in (event(ask(node, at, query(OTHER, AAAA))), event(ask(node, at, query(OTHER, AAAA), port=41_000))):
        assert (dropped.verdict, dropped.direction, dropped.is_reply) == (
            FlowVerdict.DROPPED,
            Direction.EGRESS,
            False,
        )
        assert dropped.l7 == DnsMessage(False, OTHER, AAAA)
        assert dropped.enforced_by == (rule("web", Direction.EGRESS, 0), rule("web", Direction.EGRESS, 1))
        assert (dropped.opening.source, dropped.opening.destination) == (WEB, CLIENT)


def test_the_answer_of_the_worker_comes_by_once(node: Node, at: Addresses) -> None:
    node.load_dns(ALLOWED, ingress={"web": []}, allow_localhost=False)
    sent = ask(node, at, query(OTHER)).answer
    assert sent is not None

    assert refused(node.send(sent, VETH_WEB)) is None
    assert refused(node.send(sent, VETH_WEB)) is not None


def test_nobody_else_can_send_the_answer_of_the_worker(node: Node, at: Addresses) -> None:
    node.load_dns(ALLOWED, ingress={"web": []}, allow_localhost=False)
    sent = ask(node, at, query(OTHER)).answer
    assert sent is not None

    assert refused(node.forward(sent, WAN0, VETH_WEB)) is not None
    assert refused(node.send(sent[:-1] + b"\7", VETH_WEB)) is not None
    assert refused(node.send(sent, VETH_WEB)) is None


def test_answers_that_never_come_by_are_forgotten(node: Node, at: Addresses) -> None:
    node.load_dns(ALLOWED, ingress={"web": []}, allow_localhost=False)
    sent = [ask(node, at, query(OTHER), port=1000 + number).answer for number in range(257)]
    assert sent[0] is not None
    assert sent[1] is not None

    assert refused(node.send(sent[0], VETH_WEB)) is not None
    assert refused(node.send(sent[1], VETH_WEB)) is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"no question",
        QUERY[:-1],
        QUERY + b"\0",
        QUERY[:4] + b"\0\2" + QUERY[6:] + question(OTHER),
        QUERY[:12] + b"\xc0\x0c\0\1\0\1",
        answer(ALLOWED),
        query(ALLOWED, edns=True) + OPT,
    ],
)
def test_what_is_no_query_does_not_reach_the_server(node: Node, at: Addresses, message: bytes) -> None:
    first = ask(node, at, message)
    ask(node, at)

    assert refused(first) is refused(ask(node, at, message)) is DropReason.DNS_MALFORMED
    assert (first.answer, event(first).l7) == (None, None)


def test_a_datagram_that_ends_before_its_packet_is_read_to_its_end(node: Node, at: Addresses) -> None:
    longer = asks(at.web, at.client, QUERY + b"more")
    cut = parse(longer).l4_offset + 4
    inner = longer[:cut] + (8 + len(QUERY)).to_bytes(2, "big") + longer[cut + 2 :]
    outer = longer[:cut] + (9 + len(QUERY) + 4).to_bytes(2, "big") + longer[cut + 2 :]

    assert refused(node.forward(inner, VETH_WEB, ETH0)) is None
    assert refused(node.forward(outer, VETH_WEB, ETH0)) is DropReason.INVALID_PACKET


@pytest.mark.parametrize(
    "message",
    [
        answer(ALLOWED, ident=ID + 1),
        answer(OTHER),
        answer(ALLOWED, kind=AAAA),
        answer("x.example.net"),
    ],
)
def test_an_answer_to_no_question_does_not_pass(node: Node, at: Addresses, message: bytes) -> None:
    ask(node, at)

    assert refused(hear(node, at, message)) is DropReason.DNS_UNSOLICITED
    assert refused(hear(node, at, answer(ALLOWED))) is None


def test_a_malformed_answer_does_not_pass(node: Node, at: Addresses) -> None:
    ask(node, at)

    assert refused(hear(node, at, answer(ALLOWED)[:-1])) is DropReason.DNS_MALFORMED
    assert refused(hear(node, at, QUERY)) is DropReason.DNS_MALFORMED


def test_a_question_is_answered_once_for_each_time_it_is_asked(node: Node, at: Addresses) -> None:
    ask(node, at)
    ask(node, at)

    assert refused(hear(node, at, answer(ALLOWED))) is None
    assert refused(hear(node, at, answer(ALLOWED))) is DropReason.DNS_UNSOLICITED
    ask(node, at)
    assert refused(hear(node, at, answer(ALLOWED))) is None


def test_an_answer_belongs_to_the_flow_of_its_question(node: Node, at: Addresses) -> None:
    ask(node, at)
    ask(node, at, query(ALLOWED, ident=1), port=41_000)

    assert refused(hear(node, at, answer(ALLOWED), port=41_000)) is DropReason.DNS_UNSOLICITED


def test_a_server_that_was_not_asked_has_no_flow(node: Node, at: Addresses) -> None:
    ask(node, at)

    heard = node.forward(stamped(answers(at.other, at.web, answer(ALLOWED)), 501), ETH0, VETH_WEB)

    assert event(heard).l7 is None  # ingress of web is open here, and no flow of DNS


def test_a_question_waits_for_half_a_minute(node: Node, at: Addresses) -> None:
    ask(node, at)
    node.now += 29
    ask(node, at, query(ALLOWED, ident=1))
    node.now += 2

    assert refused(hear(node, at, answer(ALLOWED))) is DropReason.DNS_UNSOLICITED
    assert refused(hear(node, at, answer(ALLOWED, ident=1))) is None


def test_of_many_questions_of_a_client_the_newest_stay(node: Node, at: Addresses) -> None:
    for ident in range(513):
        ask(node, at, query(ALLOWED, ident=ident))
    other = node.forward(asks(at.db, at.client, QUERY), VETH_DB, ETH0)  # has no DNS rules

    assert refused(other) is None
    assert refused(hear(node, at, answer(ALLOWED, ident=0))) is DropReason.DNS_UNSOLICITED
    assert refused(hear(node, at, answer(ALLOWED, ident=1))) is None


def test_questions_of_an_endpoint_that_left_are_forgotten(node: Node, at: Addresses) -> None:
    ask(node, at)
    node.load_dns("*", endpoints={})
    node.load_dns("*")

    assert refused(hear(node, at, answer(ALLOWED))) is DropReason.DNS_UNSOLICITED


def test_a_change_of_policy_decides_the_next_query(node: Node, at: Addresses) -> None:
    ask(node, at)
    node.load_dns("www.example.org")

    assert refused(hear(node, at, answer(ALLOWED))) is None  # it was asked
    assert refused(ask(node, at)) is DropReason.DNS_REFUSED
    assert refused(ask(node, at, query(OTHER))) is None


def test_a_flow_without_dns_rules_any_more_carries_anything(node: Node, at: Addresses) -> None:
    ask(node, at)
    node.load()

    assert refused(ask(node, at, b"anything")) is None
    assert refused(hear(node, at, b"anything")) is None


def test_a_flow_that_gets_dns_rules_is_inspected(at: Addresses) -> None:
    node = Node()
    ask(node, at, b"anything")
    node.load_dns("www.example.com")

    assert refused(ask(node, at, b"anything")) is DropReason.DNS_MALFORMED
    assert refused(hear(node, at, answer(ALLOWED))) is DropReason.DNS_UNSOLICITED
    assert refused(ask(node, at)) is None


def test_an_imported_flow_is_inspected(node: Node, at: Addresses) -> None:
    node.import_flow(asks(at.web, at.client, QUERY))

    assert refused(hear(node, at, answer(ALLOWED))) is DropReason.DNS_UNSOLICITED
    assert refused(ask(node, at)) is None
    assert refused(hear(node, at, answer(ALLOWED))) is None


def test_a_query_keeps_its_stamp(node: Node, at: Addresses) -> None:
    first, second = ask(node, at), ask(node, at)

    assert first.payload == second.payload == stamped(asks(at.web, at.client, QUERY), WEB)


def test_in_per_flow_mode_no_flow_with_dns_rules_is_offloaded(at: Addresses) -> None:
    node = Node()
    node.load_dns("www.example.com", epoch=1)

    for _ in range(3):
        assert ask(node, at).verdict is Verdict.ACCEPT
        assert hear(node, at, answer(ALLOWED)).verdict is Verdict.ACCEPT


def test_truncated_and_unsegmented_packets_are_requeued_whole(node: Node, at: Addresses) -> None:
    ask(node, at)
    long = answer(ALLOWED, *[address(ALLOWED, "192.0.2.1")] * 60)

    cut = node.forward(cut_short(stamped(answers(at.client, at.web, long), CLIENT)), ETH0, VETH_WEB)

    assert cut.verdict is Verdict.REQUEUE_WHOLE
    assert ask(node, at, skb=GSO).verdict is Verdict.REQUEUE_SEGMENTED
    assert refused(hear(node, at, long)) is None


def test_without_another_queue_a_truncated_answer_is_dropped(at: Addresses) -> None:
    node = Node()
    node.load_dns("*")
    ask(node, at)
    long = answer(ALLOWED, *[address(ALLOWED, "192.0.2.1")] * 60)

    cut = node.forward(cut_short(stamped(answers(at.client, at.web, long), CLIENT)), ETH0, VETH_WEB)

    assert refused(cut) is DropReason.PAYLOAD_TOO_LONG


def test_in_audit_mode_all_passes_and_is_named(node: Node, at: Addresses) -> None:
    node.load_dns("www.example.com", audit=True)

    denied = ask(node, at, query(OTHER)), ask(node, at, b"?"), hear(node, at, answer(ALLOWED, ident=9))
    heard = hear(node, at, answer(OTHER))

    assert [refused(decision) for decision in denied] == [None] * 3
    assert [(event(decision).verdict, event(decision).reason) for decision in denied] == [
        (FlowVerdict.AUDIT, DropReason.DNS_REFUSED),
        (FlowVerdict.AUDIT, DropReason.DNS_MALFORMED),
        (FlowVerdict.AUDIT, DropReason.DNS_UNSOLICITED),
    ]
    assert [decision.answer for decision in denied] == [None] * 3
    assert (event(heard).verdict, event(heard).allowed_by) == (FlowVerdict.FORWARDED, ())


def test_an_error_about_a_query_passes(node: Node, at: Addresses) -> None:
    ask(node, at)

    about = error(at.client, at.web, stamped(asks(at.web, at.client, QUERY), WEB))

    assert refused(node.forward(stamped(about, CLIENT), ETH0, VETH_WEB)) is None
    assert refused(ask(node, at, b"?")) is DropReason.DNS_MALFORMED


def test_ingress_of_the_server_on_this_node_is_decided_too(node: Node, at: Addresses) -> None:
    node.load_dns("www.example.com", peer=DB, ingress={"db": [(WEB, 17, 53)]})

    asked = node.forward(asks(at.web, at.db, QUERY), VETH_WEB, VETH_DB)

    assert event(asked).allowed_by == (rule("web", Direction.EGRESS, 0), rule("db", Direction.INGRESS, 0))
    assert refused(node.forward(answers(at.db, at.web, answer(ALLOWED)), VETH_DB, VETH_WEB)) is None


def test_only_the_chain_from_the_name_is_logged(node: Node, at: Addresses) -> None:
    ask(node, at)

    heard = hear(node, at, answer(ALLOWED, alias(ALLOWED, "b"), address("b", "192.0.2.1"), address("c", "192.0.2.2")))

    assert event(heard).l7 == DnsMessage(True, ALLOWED, 1, 0, 60, (packed("192.0.2.1"),), ("b",))


def test_a_group_is_asked_by_each_packet(node: Node, at: Addresses) -> None:
    group = "224.0.0.251" if at.version == 4 else "ff02::fb"
    node.load_dns("www.example.com", peer=2)

    for message, reason in ((QUERY, None), (query(OTHER), DropReason.DNS_REFUSED), (QUERY, None)):
        assert refused(node.forward(asks(at.web, group, message), VETH_WEB, WAN0)) is reason
