"""pcapng: a file of these blocks is what another reader (scapy's) reads, and each block has the length that it says."""

import io
import struct
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as some
from scapy.utils import RawPcapNgReader

from nfq_enforcer.captures import pcapng
from nfq_enforcer.captures.pcapng import LINKTYPE_RAW, Packet, interface, packet, section, statistics

HEAD = section("nfq-enforcer 1", "Linux 6"), interface(LINKTYPE_RAW, 128, "nfq-enforcer", "dropped packets")
PACKETS = some.builds(
    Packet,
    some.integers(0, 1 << 52),
    some.integers(0, 1 << 31),
    some.binary(max_size=300),
    some.text(some.characters(exclude_categories=["Cs"]), max_size=300),
)


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each block."""
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0
        assert data[length - 4 : length] == data[4:8]
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield code and value of each option up to the last one."""
    while True:
        code, length = struct.unpack_from("<HH", data)
        if not code:
            assert data[4:] == b""
            return
        yield code, data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]


@given(some.lists(PACKETS, max_size=5))
def test_another_reader_reads_the_packets(written: list[Packet]) -> None:
    reader = RawPcapNgReader(io.BytesIO(b"".join((*HEAD, *map(packet, written)))))

    read = list(reader)

    assert [data for data, _ in read] == [one.data for one in written]
    assert [one.linktype for _, one in read] == [LINKTYPE_RAW] * len(written)
    assert [(one.tshigh << 32 | one.tslow, one.tsresol) for _, one in read] == [
        (one.time_us, 1_000_000) for one in written
    ]
    assert [one.wirelen for _, one in read] == [one.length for one in written]
    assert [one.comments for _, one in read] == [[one.comment.encode()] if one.comment else None for one in written]


def test_a_section_begins_with_its_byte_order_and_names_the_program() -> None:
    ((kind, body),) = blocks(HEAD[0])

    assert (kind, body[:8].hex()) == (0x0A0D0D0A, "4d3c2b1a01000000")
    assert list(options(body[16:])) == [(3, b"Linux 6"), (4, b"nfq-enforcer 1")]


def test_the_statistics_have_the_packets_that_are_not_in_the_file() -> None:
    ((kind, body),) = blocks(statistics(1 << 32 | 5, 12, 2, "two are missing"))

    assert (kind, struct.unpack_from("<III", body)) == (5, (0, 1, 5))
    assert list(options(body[12:])) == [
        (1, b"two are missing"),
        (4, (12).to_bytes(8, "little")),
        (5, (2).to_bytes(8, "little")),
    ]


def test_a_comment_is_cut_between_two_characters() -> None:
    long = pcapng.Packet(0, 0, b"", "ü" * 40_000)

    ((_, body),) = blocks(packet(long))

    ((_, comment),) = options(body[20:])
    assert comment.decode() == "ü" * 32_767
