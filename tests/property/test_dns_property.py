"""DNS messages: any bytes give a message or a PacketError, and the parser reads what dnspython reads."""

from contextlib import suppress
from itertools import pairwise

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire.dns import REFUSED, parse_answer, parse_query, refusal
from tests.support.effort import scaled

SAME_EVERY_TIME = settings(derandomize=True, database=None, deadline=None, max_examples=scaled(1000))
LABELS = st.one_of(st.binary(min_size=1, max_size=63), st.sampled_from([b"www", b"Example", b"com", b"a.b"]))
NAMES = st.lists(LABELS, max_size=6).filter(lambda labels: sum(len(label) + 1 for label in labels) < 255)
ADDRESS_TYPES = {4: dns.rdatatype.A, 16: dns.rdatatype.AAAA}


def oracle(labels: list[bytes]) -> dns.name.Name:
    return dns.name.Name([*labels, b""])


def text(name: dns.name.Name) -> str:
    """Return a name of dnspython in the form of the parser."""
    labels = [label.lower() for label in name.labels[:-1]]
    return ".".join("".join(map(character, label)) for label in labels)


def character(byte: int) -> str:
    if chr(byte) in '"().;\\@$':
        return f"\\{chr(byte)}"
    return chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03}"


def query_of(labels: list[bytes], kind: int, edns: bool, dnssec: bool) -> dns.message.QueryMessage:
    return dns.message.make_query(
        oracle(labels), dns.rdatatype.RdataType(kind), use_edns=0 if edns else -1, want_dnssec=edns and dnssec
    )


@SAME_EVERY_TIME
@given(NAMES, st.sampled_from([1, 5, 12, 28, 65]), st.booleans(), st.booleans())
def test_a_query_is_read_and_refused_as_dnspython_does(
    labels: list[bytes], kind: int, edns: bool, dnssec: bool
) -> None:
    asked = query_of(labels, kind, edns, dnssec)
    wire = asked.to_wire()

    read = parse_query(wire)

    assert (read.id, read.name, read.type, read.klass) == (asked.id, text(oracle(labels)), kind, 1)
    assert read.edns == (asked.ednsflags if edns else -1)
    refused = dns.message.from_wire(refusal(wire, read))
    assert refused.rcode() == REFUSED
    assert (refused.id, refused.question, refused.edns) == (asked.id, asked.question, asked.edns)
    assert asked.is_response(refused)
    assert refused.ednsflags & dns.flags.DO == asked.ednsflags & dns.flags.DO
    assert refused.flags == dns.flags.QR | asked.flags & (dns.flags.RD | dns.flags.CD) | REFUSED


@st.composite
def answers(draw: st.DrawFn) -> tuple[dns.message.Message, list[str], list[tuple[bytes, int]]]:
    """Return an answer with the chain of aliases and the addresses that it was made of."""
    chain = draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=lambda labels: text(oracle(labels))))
    size = draw(st.sampled_from([4, 16]))
    addresses = draw(st.lists(st.binary(min_size=size, max_size=size), max_size=8, unique=True))
    ttl = draw(st.integers(0, 100_000))
    answer = dns.message.make_response(query_of(chain[0], ADDRESS_TYPES[size], draw(st.booleans()), False))
    for owner, target in pairwise(chain):
        rrset = dns.rrset.RRset(oracle(owner), dns.rdataclass.IN, dns.rdatatype.CNAME)
        rrset.add(dns.rdata.from_text("IN", "CNAME", oracle(target).to_text()), ttl)
        answer.answer.append(rrset)
    if addresses:
        last = dns.rrset.RRset(oracle(chain[-1]), dns.rdataclass.IN, ADDRESS_TYPES[size])
        for address in addresses:
            last.add(dns.rdata.from_wire("IN", ADDRESS_TYPES[size], address, 0, size), ttl)
        answer.answer.append(last)
    server = dns.rrset.from_text(oracle(chain[-1]), ttl, "IN", "NS", "ns.example.com.")
    if draw(st.booleans()):
        answer.authority.append(server)
    return answer, [text(oracle(name)) for name in chain], [(address, ttl) for address in addresses]


@SAME_EVERY_TIME
@given(answers())
def test_an_answer_is_read_as_dnspython_wrote_it(
    made: tuple[dns.message.Message, list[str], list[tuple[bytes, int]]],
) -> None:
    answer, chain, addresses = made

    read = parse_answer(answer.to_wire(max_size=65_535))

    assert (read.id, read.name, read.rcode) == (answer.id, chain[0], answer.rcode())
    assert list(read.aliases) == chain[1:]
    assert sorted(read.addresses) == sorted(addresses)


@SAME_EVERY_TIME
@given(answers(), st.data())
def test_a_damaged_message_is_read_as_dnspython_reads_it_or_is_malformed(
    made: tuple[dns.message.Message, list[str], list[tuple[bytes, int]]], data: st.DataObject
) -> None:
    wire = bytearray(made[0].to_wire(max_size=65_535))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(wire[: len(wire) - data.draw(st.sampled_from([0, 0, 1, 7]))])

    try:
        read = parse_answer(cut)
    except PacketError:
        return
    if read.truncated:
        return
    other = dns.message.from_wire(cut, one_rr_per_rrset=True, continue_on_error=True)
    question = other.question[0]
    assert (read.id, read.name, read.type) == (other.id, text(question.name), question.rdtype)
    found = {
        (text(rrset.name), rdata.to_wire())
        for rrset in other.answer
        for rdata in rrset
        if rrset.rdclass == dns.rdataclass.IN and rrset.rdtype in {dns.rdatatype.A, dns.rdatatype.AAAA}
    }
    owner = (read.name, *read.aliases)[-1]
    assert {(owner, address.address) for address in read.addresses} <= found


@SAME_EVERY_TIME
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for parse in (parse_query, parse_answer):
        with suppress(PacketError):
            parse(data)
