"""DNS rules over TCP: the segments that pass, in both directions, and the answer to a refused query."""

from collections.abc import Callable

import dns.message
import dns.rcode
import pytest

from nfq_enforcer.core.events import Decision, DnsMessage
from nfq_enforcer.core.verdict import DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import TCP, checksum, parse
from nfq_enforcer.core.wire.skb import GSO
from tests.support.dns import AAAA, address, answer, query
from tests.support.nodes import CLIENT, ETH0, FAMILIES, VETH_WEB, WEB, Addresses, Node, event, refused
from tests.support.packets import ACK, CLIENT_PORT, FIN, PSH, SYN, identity_on, packed, stamped, tcp

ALLOWED, OTHER = "www.example.com", "www.example.org"
START, SERVER_START = 0xFFFFFFF0, 5_000  # the client's numbers pass the end of the space
URG = 0x20


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


QUERY, SECOND = framed(query(ALLOWED)), framed(query(ALLOWED, AAAA, ident=7))
ANSWER = answer(ALLOWED, address(ALLOWED, "192.0.2.1"))


class Connection:
    """TCP connection of web to its DNS server, the client of the second node; numbers are relative to its beginning."""

    def __init__(self, node: Node, at: Addresses, *, established: bool = True) -> None:
        self.node, self.at = node, at
        if established:
            assert refused(self.ask(b"", flags=SYN, seq=-1)) is None
            assert refused(self.hear(b"", flags=SYN | ACK, seq=-1)) is None

    def ask(self, data: bytes, seq: int = 0, flags: int = PSH | ACK, skb: int = 0, options: bytes = b"") -> Decision:
        numbers = (START + seq) % 2**32, SERVER_START
        packet = tcp(self.at.web, self.at.client, CLIENT_PORT, 53, flags, data, numbers=numbers, options=options)
        return self.node.forward(packet, VETH_WEB, ETH0, skb=skb)

    def hear(self, data: bytes, seq: int = 0, flags: int = PSH | ACK, ack: int = 0) -> Decision:
        numbers = (SERVER_START + seq) % 2**32, (START + ack) % 2**32
        packet = tcp(self.at.client, self.at.web, 53, CLIENT_PORT, flags, data, numbers=numbers)
        return self.node.forward(stamped(packet, CLIENT), ETH0, VETH_WEB)


@pytest.fixture
def node() -> Node:
    node = Node(can_requeue=True)
    node.load_dns("www.example.com", "*.example.net")
    return node


@pytest.fixture
def connection(node: Node, at: Addresses) -> Connection:
    return Connection(node, at)


def test_an_allowed_query_and_its_answer_pass_and_are_logged(connection: Connection) -> None:
    asked, heard = connection.ask(QUERY), connection.hear(framed(ANSWER))

    assert event(asked).l7 == DnsMessage(False, ALLOWED, 1)
    assert event(heard).l7 == DnsMessage(True, ALLOWED, 1, 0, 60, (packed("192.0.2.1"),))
    assert [(one.name, one.addresses) for one in heard.learned] == [(ALLOWED, ((packed("192.0.2.1"), 60),))]
    assert (event(asked).is_reply, event(heard).is_reply) == (False, True)


def test_the_handshake_and_the_end_pass(node: Node, at: Addresses) -> None:
    opened = Connection(node, at, established=False).ask(b"", flags=SYN, seq=-1)
    assert (event(opened).verdict, event(opened).l7) == (FlowVerdict.FORWARDED, None)

    connection = Connection(node, at)
    assert refused(connection.ask(b"", flags=ACK)) is None
    assert refused(connection.ask(QUERY)) is None
    assert refused(connection.hear(framed(ANSWER), flags=PSH | ACK | FIN)) is None
    assert refused(connection.ask(b"", len(QUERY), flags=FIN | ACK)) is None


def test_several_queries_and_answers_of_one_segment_are_inspected(connection: Connection) -> None:
    asked = connection.ask(QUERY + SECOND)
    heard = connection.hear(framed(ANSWER, answer(ALLOWED, address(ALLOWED, "2001:db8::1"), kind=AAAA, ident=7)))

    assert [one.l7 for one in (event(asked), *asked.further)] == [
        DnsMessage(False, ALLOWED, 1),
        DnsMessage(False, ALLOWED, AAAA),
    ]
    assert [one.addresses for one in heard.learned] == [((packed("192.0.2.1"), 60),), ((packed("2001:db8::1"), 60),)]
    assert len(heard.further) == 1


def test_an_answer_in_many_segments_passes_and_its_end_teaches(connection: Connection) -> None:
    long = framed(answer(ALLOWED, *(address(ALLOWED, f"192.0.2.{number}") for number in range(200))))
    connection.ask(QUERY)

    decisions = [connection.hear(long[at : at + 500], at) for at in range(0, len(long), 500)]

    assert [refused(one) for one in decisions] == [None] * len(decisions)
    assert [len(one.learned) for one in decisions] == [*[0] * (len(decisions) - 1), 1]
    assert len(decisions[-1].learned[0].addresses) == 200


def test_a_refused_query_is_answered_as_if_by_its_server(connection: Connection, at: Addresses) -> None:
    assert refused(connection.ask(QUERY)) is None
    asked = query(OTHER, ident=3)
    data = framed(query(ALLOWED, ident=2), asked)

    decision = connection.ask(data, len(QUERY))

    assert refused(decision) is DropReason.DNS_REFUSED
    assert event(decision).l7 == DnsMessage(False, OTHER, 1)
    assert decision.answer is not None
    sent = parse(decision.answer)
    assert (sent.src, sent.dst, sent.sport, sent.dport) == (packed(at.client), packed(at.web), 53, CLIENT_PORT)
    segment = decision.answer[sent.l4_offset :]
    numbers = int.from_bytes(segment[4:8], "big"), int.from_bytes(segment[8:12], "big")
    assert numbers == (SERVER_START, (START + len(QUERY) + len(data)) % 2**32)
    assert segment[13] == PSH | ACK | FIN
    assert checksum(sent.src + sent.dst + len(segment).to_bytes(4, "big") + bytes((0, 0, 0, TCP)) + segment) == 0
    body = segment[20:]
    first = int.from_bytes(body[:2], "big")
    messages = [dns.message.from_wire(part) for part in (body[2 : 2 + first], body[4 + first :])]
    assert [(one.id, one.rcode()) for one in messages] == [(2, dns.rcode.REFUSED), (3, dns.rcode.REFUSED)]
    assert dns.message.from_wire(asked).is_response(messages[1])


def test_the_answer_to_a_refused_query_passes_the_host(connection: Connection, node: Node) -> None:
    answer_to_it = connection.ask(framed(query(OTHER))).answer
    assert answer_to_it is not None

    assert refused(node.send(answer_to_it, VETH_WEB)) is None


@pytest.mark.parametrize(
    "segment",
    [
        lambda connection: connection.ask(QUERY[:-1]),
        lambda connection: connection.ask(QUERY[:1]),
        lambda connection: connection.ask(QUERY + SECOND[:-3]),
        lambda connection: connection.ask(QUERY, 1),
        lambda connection: connection.ask(QUERY, -len(QUERY)),
        lambda connection: connection.ask(QUERY, flags=PSH | ACK | URG),
        lambda connection: connection.ask(b"", flags=ACK | URG),
        lambda connection: connection.ask(QUERY, options=bytes((1, 1, 1, 30, 8, 0x20, 0, 0, 0, 0, 0, 0))),
        lambda connection: connection.ask(QUERY, options=bytes((8, 9, 0, 0))),
        lambda connection: connection.ask(QUERY, options=bytes((1, 1, 1, 8))),
        lambda connection: connection.hear(framed(ANSWER), 1),
    ],
    ids=[
        *("cut", "half a length", "second cut", "ahead", "behind", "urgent", "urgent later", "Multipath TCP"),
        *("long option", "half an option", "answer ahead"),
    ],
)
def test_segments_that_are_no_messages_in_order_do_not_pass(
    connection: Connection, segment: Callable[[Connection], Decision]
) -> None:
    assert refused(segment(connection)) is DropReason.DNS_SEGMENT
    assert refused(connection.ask(QUERY)) is None


def test_options_that_do_not_move_data_pass(connection: Connection) -> None:
    timestamps = bytes((1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2))

    assert refused(connection.ask(QUERY, options=timestamps)) is None
    assert refused(connection.ask(SECOND, len(QUERY), options=bytes((1, 0, 30, 0)))) is None


def test_the_same_answer_twice_in_a_segment_is_one_answer(connection: Connection) -> None:
    connection.ask(QUERY)

    assert refused(connection.hear(framed(ANSWER, ANSWER))) is None
    assert refused(connection.hear(framed(ANSWER), 2 * len(framed(ANSWER)))) is DropReason.DNS_UNSOLICITED


def test_what_is_no_query_is_not_answered_with_the_refused_ones(connection: Connection) -> None:
    decision = connection.ask(framed(query(OTHER), b"junk"))

    assert refused(decision) is DropReason.DNS_REFUSED
    assert decision.answer is not None
    body = decision.answer[parse(decision.answer).l4_offset + 20 :]
    assert int.from_bytes(body[:2], "big") == len(body) - 2


def test_the_newest_queries_of_a_connection_may_be_repeated(connection: Connection) -> None:
    places = [number * len(QUERY) for number in range(70)]
    assert {refused(connection.ask(QUERY, place)) for place in places} == {None}

    assert refused(connection.ask(QUERY, places[-60])) is None
    assert refused(connection.ask(QUERY, places[0])) is DropReason.DNS_SEGMENT


def test_bytes_that_are_no_query_do_not_pass(connection: Connection) -> None:
    assert refused(connection.ask(framed(b"GET / HTTP/1.1"))) is DropReason.DNS_MALFORMED
    assert refused(connection.ask(framed(b""))) is DropReason.DNS_MALFORMED


def test_a_query_may_be_repeated_but_not_changed(connection: Connection) -> None:
    hidden = framed(query(OTHER))
    longer = framed(query(ALLOWED) + hidden)  # whose end a server that has the query would read as the next one
    assert refused(connection.ask(QUERY)) is None

    assert refused(connection.ask(QUERY)) is None
    assert refused(connection.ask(QUERY + SECOND)) is None
    assert refused(connection.ask(framed(query("a.example.net")))) is DropReason.DNS_SEGMENT
    assert refused(connection.ask(longer)) is DropReason.DNS_SEGMENT
    assert refused(connection.ask(QUERY + hidden[2:], 2)) is DropReason.DNS_SEGMENT
    assert refused(connection.ask(QUERY, len(QUERY + SECOND))) is None


def test_an_answer_that_is_repeated_passes(connection: Connection) -> None:
    connection.ask(QUERY)
    data = framed(ANSWER)

    assert refused(connection.hear(data[:10])) is None
    assert refused(connection.hear(data[:10])) is None
    heard = connection.hear(data, 0)
    assert len(heard.learned) == 1
    assert refused(connection.hear(data)) is None


def test_an_answer_that_nobody_asked_for_does_not_pass(connection: Connection) -> None:
    assert refused(connection.hear(framed(ANSWER))) is DropReason.DNS_UNSOLICITED
    connection.ask(QUERY)
    assert refused(connection.hear(framed(answer(OTHER)))) is DropReason.DNS_UNSOLICITED
    assert refused(connection.hear(framed(ANSWER))) is None


def test_the_server_alone_says_where_the_first_query_begins(connection: Connection) -> None:
    assert refused(connection.ask(QUERY)) is None

    connection.ask(b"", flags=SYN, seq=-11)  # for which its server has no ear: the connection exists
    assert refused(connection.ask(QUERY, -10)) is DropReason.DNS_SEGMENT
    connection.hear(b"", flags=SYN | ACK, seq=-1)  # repeated on the way
    assert refused(connection.ask(framed(query("a.example.net")))) is DropReason.DNS_SEGMENT
    assert refused(connection.ask(SECOND, len(QUERY))) is None


def test_a_new_connection_with_the_same_ports_begins_anew(connection: Connection) -> None:
    connection.ask(QUERY)
    connection.hear(b"", flags=FIN | ACK)
    connection.ask(b"", len(QUERY), flags=FIN | ACK)

    connection.ask(b"", flags=SYN, seq=99_999)
    assert refused(connection.ask(QUERY, 100_000)) is DropReason.DNS_SEGMENT
    connection.hear(b"", flags=SYN | ACK, seq=-1, ack=100_000)
    assert refused(connection.ask(QUERY, 100_000)) is None
    assert refused(connection.hear(framed(ANSWER))) is None


def test_a_connection_whose_beginning_was_not_seen_has_to_be_opened_again(node: Node, at: Addresses) -> None:
    node.import_flow(tcp(at.web, at.client, CLIENT_PORT, 53, ACK))

    assert refused(Connection(node, at, established=False).ask(QUERY)) is DropReason.DNS_SEGMENT


def test_a_client_has_a_limited_number_of_connections(node: Node, at: Addresses) -> None:
    connection = Connection(node, at)
    for port in range(50_000, 50_032):
        packet = tcp(at.web, at.client, port, 53, SYN)
        assert refused(node.forward(packet, VETH_WEB, ETH0)) is None
        packet = stamped(tcp(at.client, at.web, 53, port, SYN | ACK), CLIENT)
        assert refused(node.forward(packet, ETH0, VETH_WEB)) is None

    assert refused(connection.ask(QUERY)) is DropReason.DNS_SEGMENT


def test_segments_bear_stamps_and_are_never_offloaded(at: Addresses) -> None:
    node = Node(can_requeue=True)
    node.load_dns(ALLOWED, epoch=1)
    connection = Connection(node, at)

    asked = connection.ask(QUERY)
    assert asked.verdict is Verdict.ACCEPT
    assert identity_on(asked.payload) == WEB
    assert connection.hear(framed(ANSWER)).verdict is Verdict.ACCEPT


def test_large_segments_are_requeued_in_parts(connection: Connection) -> None:
    assert connection.ask(QUERY, skb=GSO).verdict is Verdict.REQUEUE_SEGMENTED


def test_in_audit_mode_all_passes_and_is_named(node: Node, at: Addresses) -> None:
    node.load_dns(ALLOWED, audit=True)
    connection = Connection(node, at)
    denied = framed(query(OTHER))

    refusal, cut = connection.ask(denied), connection.ask(QUERY[:5], len(denied))

    assert [(refused(one), event(one).verdict, event(one).reason) for one in (refusal, cut)] == [
        (None, FlowVerdict.AUDIT, DropReason.DNS_REFUSED),
        (None, FlowVerdict.AUDIT, DropReason.DNS_SEGMENT),
    ]
    assert refused(connection.hear(framed(answer(OTHER)))) is None


def test_names_are_forgotten_with_their_endpoint(node: Node) -> None:
    at = FAMILIES[0]
    connection = Connection(node, at)
    node.load(endpoints={})
    node.load_dns(ALLOWED)

    assert refused(connection.ask(QUERY)) is DropReason.DNS_SEGMENT
