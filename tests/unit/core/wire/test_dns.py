"""DNS messages: which are read, and which are malformed."""

import pytest

from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.dns import Address, Answer, Query, parse_answer, parse_query, refusal

NAME = b"\3www\7example\3com\0"
QUESTION = NAME + b"\0\1\0\1"
OPT = b"\0\0\x29\x10\0\0\0\x80\0\0\0"  # 4,096 bytes, DO
V4, V6 = bytes((192, 0, 2, 1)), bytes.fromhex("20010db8") + bytes(11) + b"\1"
TO_NAME = b"\xc0\x0c"  # pointer to the question's name


def message(
    question: bytes = QUESTION, *records: bytes, flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0)
) -> bytes:
    return b"\x12\x34" + b"".join(n.to_bytes(2, "big") for n in (flags, *counts)) + question + b"".join(records)


def answer(*records: bytes, flags: int = 0x8180, others: tuple[int, int] = (0, 0), question: bytes = QUESTION) -> bytes:
    counts = (1, len(records) - sum(others), *others)
    return message(question, *records, flags=flags, counts=counts)


def record(kind: int, data: bytes, owner: bytes = TO_NAME, ttl: int = 60, klass: int = 1) -> bytes:
    head = b"".join((kind.to_bytes(2, "big"), klass.to_bytes(2, "big"), ttl.to_bytes(4, "big")))
    return owner + head + len(data).to_bytes(2, "big") + data


def test_a_query_is_read() -> None:
    assert parse_query(message()) == Query(0x1234, "www.example.com", 1, 1, 0x0100, 33, -1)


def test_a_query_may_have_edns() -> None:
    assert parse_query(message(QUESTION, OPT, counts=(1, 0, 0, 1))).edns == 0x8000


def test_a_query_may_be_signed() -> None:
    signature = record(250, b"data", owner=b"\0")

    assert parse_query(message(QUESTION, OPT, signature, counts=(1, 0, 0, 2))).name == "www.example.com"


def test_the_case_of_a_name_does_not_matter() -> None:
    assert parse_query(message(QUESTION.upper())).name == "www.example.com"


@pytest.mark.parametrize(
    ("encoded", "name"),
    [
        (b"\0", ""),
        (b"\5_sip1\0", "_sip1"),
        (b"\3a.b\1c\0", "a\\.b.c"),
        (b"\2A\\\0", "a\\\\"),
        (b"\4 \xff\0@\0", "\\032\\255\\000\\@"),
        (b"\x04a/25\1b\0", "a/25.b"),
        (b"\x3f" + b"a" * 63 + b"\0", "a" * 63),
        ((b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + b"\0", ".".join(["a" * 63] * 3 + ["b" * 61])),
    ],
)
def test_each_name_has_one_form(encoded: bytes, name: str) -> None:
    assert parse_query(message(encoded + b"\0\1\0\1")).name == name


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        message()[:11],
        message()[:-1],
        message() + b"\0",
        message(b"", counts=(0, 0, 0, 0)),
        message(QUESTION * 2, counts=(2, 0, 0, 0)),
        message(flags=0x8100),  # an answer
        message(flags=0x2800),  # an update
        message(flags=0x0300),  # truncated
        message(flags=0x0105),  # with a response code
        message(QUESTION, record(1, V4), counts=(1, 1, 0, 0)),
        message(QUESTION, record(6, b""), counts=(1, 0, 1, 0)),
        message(counts=(1, 0, 0, 1)),
        message(QUESTION, OPT, OPT, counts=(1, 0, 0, 2)),
        message(QUESTION, TO_NAME + OPT[1:], counts=(1, 0, 0, 1)),
        message(QUESTION, OPT[:-1] + b"\1", counts=(1, 0, 0, 1)),
        message(QUESTION, *[record(16, b"")] * 501, counts=(1, 0, 0, 501)),
        message(b"\xc0\x0c\0\1\0\1"),  # a pointer to itself
        message(b"\1a\xc0\x0c\0\1\0\1"),  # a loop
        message(b"\xc0\x0e\1a\0\0\1\0\1"),  # a pointer ahead
        message(b"\xc0\0\0\1\0\1"),  # a pointer into the header
        message(b"\x40a\0\0\1\0\1"),  # a label of a type that nobody uses
        message(b"\x80a\0\0\1\0\1"),
        message((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"b" * 62 + b"\0\0\1\0\1"),  # 256 bytes
    ],
)
def test_a_message_that_is_no_query_of_one_question_is_malformed(wrong: bytes) -> None:
    with pytest.raises(PacketError) as error:
        parse_query(wrong)

    assert error.value.reason is DropReason.DNS_MALFORMED


def test_an_answer_has_the_addresses_of_its_question() -> None:
    two = answer(record(1, V4), record(1, V4[::-1], ttl=30))

    assert parse_answer(two) == Answer(
        0x1234, "www.example.com", 1, 1, 0, False, (), (Address(V4, 60), Address(V4[::-1], 30))
    )
    assert parse_answer(two).ttl == 30
    assert parse_answer(two).question == parse_query(message()).question


def test_an_answer_follows_its_aliases_in_any_order() -> None:
    last, middle = b"\1c\0", b"\1b\xc0\x10"  # b.example.com
    records = [
        record(28, V6, owner=last),
        record(5, last, owner=middle),
        record(5, middle),
        record(1, V4),  # the name has an alias, so this is no address of the question
        record(1, V4, owner=b"\5other\0"),
        record(1, V4, owner=last, klass=3),
        record(5, b"\1d\0", klass=3),
        record(16, b"\3txt"),
    ]

    read = parse_answer(answer(*records))

    assert (read.aliases, read.addresses) == (("b.example.com", "c"), (Address(V6, 60),))


def test_aliases_that_lead_in_a_circle_have_no_addresses() -> None:
    read = parse_answer(answer(record(5, b"\1b\0"), record(5, TO_NAME, owner=b"\1b\0"), record(1, V4)))

    assert read.aliases == ("b", "www.example.com")
    assert parse_answer(answer(record(5, TO_NAME))).aliases == ("www.example.com",)


def test_addresses_outside_the_answer_section_do_not_count() -> None:
    read = parse_answer(answer(record(2, b"\2ns\0"), record(1, V4), OPT, others=(1, 2)))

    assert (read.addresses, read.rcode, read.ttl) == ((), 0, 0)


def test_the_response_code_includes_that_of_edns() -> None:
    assert parse_answer(answer(flags=0x8183)).rcode == 3
    assert parse_answer(answer(b"\0\0\x29\x10\0\1\0\0\0\0\0", others=(0, 1))).rcode == 16


def test_a_time_to_live_above_31_bits_is_none() -> None:
    assert parse_answer(answer(record(1, V4, ttl=1 << 31))).ttl == 0  # RFC 2181 section 8


def test_a_truncated_answer_has_no_records() -> None:
    read = parse_answer(answer(record(1, V4), flags=0x8380)[:-2])

    assert (read.truncated, read.addresses) == (True, ())


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        message(),
        answer(flags=0xA180),
        message(QUESTION * 2, counts=(2, 0, 0, 0), flags=0x8180),
        answer(record(1, V4)[:-1]),
        answer(record(1, V4)) + b"\0",
        answer(record(1, V6)),
        answer(record(28, V4)),
        answer(record(5, b"\1b\0\0")),
        answer(record(5, b"\1b\1")),
        answer(b"\xc0\x21" + record(1, V4)[2:]),  # the owner is a pointer to itself
        answer(*[record(1, V4)] * 501),
        answer(record(2, b"")[:-1], others=(1, 0)),
        answer(OPT, OPT, others=(0, 2)),
    ],
)
def test_a_message_that_is_no_answer_to_one_question_is_malformed(wrong: bytes) -> None:
    with pytest.raises(PacketError) as error:
        parse_answer(wrong)

    assert error.value.reason is DropReason.DNS_MALFORMED


def test_at_most_20_pointers_lead_to_a_name() -> None:
    def chained(number: int) -> bytes:
        last = 12 + len(QUESTION) + 10 + 1  # in the data of a first record: pointers, each to the one before
        chain = b"".join((TO_NAME, *((0xC000 | last + 2 * i).to_bytes(2, "big") for i in range(number - 2))))
        end = (0xC000 | last + 2 * (number - 2)).to_bytes(2, "big")
        return answer(record(16, chain, owner=b"\0"), record(1, V4, owner=end))

    assert parse_answer(chained(20)).addresses == (Address(V4, 60),)
    with pytest.raises(PacketError):
        parse_answer(chained(21))


def test_a_refusal_repeats_the_question_as_it_was_asked() -> None:
    asked = message(QUESTION.upper())

    refused = refusal(asked, parse_query(asked))

    assert refused == message(QUESTION.upper(), flags=0x8105)
    assert (parse_answer(refused).rcode, parse_answer(refused).question) == (5, parse_query(asked).question)


def test_a_refusal_has_edns_if_its_query_has() -> None:
    asked = message(QUESTION, OPT, flags=0x0010, counts=(1, 0, 0, 1))

    assert refusal(asked, parse_query(asked)) == message(
        QUESTION, b"\0\0\x29\x04\xd0\0\0\x80\0\0\0", flags=0x8015, counts=(1, 0, 0, 1)
    )
