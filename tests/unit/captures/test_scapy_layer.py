"""Layer for scapy: it builds the stamps that a node writes, and reads any packet so that it can be built again."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from scapy.layers.inet import ICMP, IP, TCP, IPOption, IPOption_NOP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Ether

from nfq_enforcer.captures.scapy_layer import IPOptionStamp, IPv6OptionStamp, stamps
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from tests.support import packets

ENDS = {4: ("10.1.0.10", "10.2.0.10"), 6: ("fd01::10", "fd02::10")}
STAMPS = some.builds(
    Stamp,
    some.integers(256, (1 << 24) - 1).map(Identity),
    some.integers(0, 255),
    some.one_of(some.just(b""), some.binary(min_size=8, max_size=8)),
)
FAMILIES = some.sampled_from([4, 6])


def of_family(family: int, packet: bytes) -> IP | IPv6:
    return IP(packet) if family == 4 else IPv6(packet)


@given(FAMILIES, STAMPS)
def test_it_reads_a_stamp_that_a_node_writes_and_builds_the_same_bytes(family: int, written: Stamp) -> None:
    plain = packets.syn(*ENDS[family])
    packet = stamp.write(plain, parse(plain), written)

    read = of_family(family, packet)

    (found,) = stamps(read)
    assert (found.version, found.flags, found.identity) == (1, 1 if written.tag else 0, written.identity)
    assert (found.key_id, found.tag) == (written.key_id, written.tag)
    read.clear_cache()  # without it, scapy returns the bytes that it has read
    assert bytes(read) == packet


@given(FAMILIES, STAMPS)
def test_a_node_reads_a_stamp_that_it_builds(family: int, wanted: Stamp) -> None:
    fields = {"identity": wanted.identity, "key_id": wanted.key_id, "tag": wanted.tag}
    fields["flags"] = "signed" if wanted.tag else 0
    source, target = ENDS[family]
    if family == 4:
        packet = IP(src=source, dst=target, options=[IPOptionStamp(**fields)]) / TCP()
    else:
        packet = IPv6(src=source, dst=target) / IPv6ExtHdrDestOpt(options=[IPv6OptionStamp(**fields)]) / TCP()

    payload = bytes(packet)

    assert stamp.read(payload, parse(payload)) == wanted


@given(FAMILIES, some.sampled_from([30, 94, 158, 222]), some.integers(0, 40), some.binary(min_size=38, max_size=38))
def test_a_packet_with_any_stamp_is_built_as_it_was_read(family: int, kind: int, length: int, body: bytes) -> None:
    """The kinds are all those that scapy takes for one option of IPv4."""
    room = 40 if family == 4 else 38
    option = bytes((kind if family == 4 else 0x1E, length)) + body[: max(0, length - (2 if family == 4 else 0))]
    padding = bytes(room - len(option[:room]))  # ends of the list, or Pad1
    if family == 4:
        packet = packets.ip(*ENDS[4], 6, bytes(20), options=option[:room] + padding)
    else:
        packet = packets.ip(*ENDS[6], 6, bytes(20), options=bytes((4,)) + option[:room] + padding)

    read = of_family(family, packet)
    read.clear_cache()  # without it, scapy returns the bytes that it has read

    assert bytes(read) == packet


@pytest.mark.parametrize(("size", "version", "value"), [(2, None, b""), (7, None, b"\x10abcd"), (8, 1, None)])
def test_an_option_that_is_too_short_for_a_stamp_has_a_value(
    size: int, version: int | None, value: bytes | None
) -> None:
    option = IPOptionStamp((bytes((158, size, 0x10)) + b"abcdefgh")[:size])

    assert (option.length, option.version, option.value) == (size, version, value)


def test_an_option_with_the_same_number_that_is_no_stamp_has_a_value() -> None:
    other = IPOptionStamp(bytes((0x1E, 8, 0x10, 0)) + bytes(4))  # without the copy flag

    assert (other.version, other.value) == (None, bytes((0x10, 0)) + bytes(4))


def test_a_malformed_stamp_can_be_built() -> None:
    assert bytes(IPOptionStamp(length=3, value=b"\x10")) == bytes.fromhex("9e0310")
    assert bytes(IPv6OptionStamp(optlen=1, value=b"\x10")) == bytes.fromhex("1e0110")
    assert bytes(IPOptionStamp(version=2, flags=2, identity=1)) == bytes.fromhex("9e08220000000001")


def test_all_stamps_of_the_outer_header_are_found_among_other_options() -> None:
    two = [IPOption_NOP(), IPOptionStamp(identity=300), IPOption(copy_flag=1, option=20, value=b"aa")]
    frame = Ether() / IP(options=[*two, IPOptionStamp(identity=301)]) / ICMP(type=3) / IP(options=two)
    extended = (
        IPv6() / IPv6ExtHdrDestOpt(options=[PadN(), IPv6OptionStamp(identity=302)])
        / IPv6ExtHdrDestOpt(options=[IPv6OptionStamp(identity=303)])
        / ICMPv6DestUnreach() / IPv6() / IPv6ExtHdrDestOpt(options=[IPv6OptionStamp(identity=304)])
    )  # fmt: skip

    assert [found.identity for found in stamps(Ether(bytes(frame)))] == [300, 301]
    assert [found.identity for found in stamps(IPv6(bytes(extended)))] == [302, 303]
    assert list(stamps(Ether() / b"no IP header")) == []
