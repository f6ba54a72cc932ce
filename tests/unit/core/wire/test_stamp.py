"""Stamps: what is written can be read, what is not to be believed is refused by its name, nothing else is touched."""

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Pad1,
    PadN,
    RouterAlert,
)
from scapy.layers.sctp import SCTP

from nfq_enforcer.core.identity import CLUSTER_MAX, CLUSTER_MIN, WORLD, Identity
from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.packet import checksum, parse
from nfq_enforcer.core.wire.stamp import Stamp, overhead, read, strip, write

STAMP = Stamp(Identity(0x00ABCDEF), key_id=7)
OTHER = Stamp(Identity(300))
SIGNED = Stamp(Identity(300), key_id=2, tag=bytes(range(8)))

BODY = bytes.fromhex("10 07 00abcdef")  # version 1, no flags; key id 7; identity
STAMP4 = bytes((158, 8)) + BODY
STAMP6 = bytes((0x1E, 6)) + BODY
RECORD_ROUTE = bytes((7, 7, 4)) + bytes(4)
LIMIT = HBHOptUnknown(otype=4, optdata=b"\x05")  # tunnel encapsulation limit, RFC 2473

DATA = b"16 bytes of data"
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")


def v4(options: bytes, data: bytes = DATA) -> bytes:
    """Return an IPv4 packet with these bytes as its option area."""
    plain = bytes(V4 / UDP() / data)
    header = bytearray(plain[:20] + options + bytes(-len(options) % 4))
    header[0] = 0x40 | len(header) // 4
    header[2:4] = (len(header) + len(plain) - 20).to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + plain[20:]


def stamp6(identity: int = 0x00ABCDEF) -> Any:
    return HBHOptUnknown(otype=0x1E, optdata=BODY[:2] + identity.to_bytes(4, "big"))


def v6(*extensions: Any) -> bytes:
    layers: Any = V6
    for extension in extensions:
        layers = layers / extension
    return bytes(layers / UDP() / DATA)


def v6_broken(options: bytes) -> bytes:
    """Return an IPv6 packet with these six bytes as its destination options, which scapy would not build."""
    return bytes(IPv6(src="fd00::1", dst="fd00::2", nh=60) / (bytes((17, 0)) + options) / UDP())


def options6(*options: Any) -> Any:
    return IPv6ExtHdrDestOpt(options=list(options))


def written(payload: bytes, stamp: Stamp = STAMP) -> bytes:
    return write(payload, parse(payload), stamp)


def stamp_of(payload: bytes) -> Stamp | None:
    return read(payload, parse(payload))


def stripped(payload: bytes) -> bytes:
    return strip(payload, parse(payload))


def refusal(payload: bytes) -> DropReason:
    with pytest.raises(PacketError) as caught:
        stamp_of(payload)
    return caught.value.reason


def as_scapy_sees_it(payload: bytes) -> Any:
    return IP(payload) if payload[0] >> 4 == 4 else IPv6(payload)


def resummed(payload: bytes) -> bytes:
    """Return the packet with every checksum computed anew by scapy."""
    layers = as_scapy_sees_it(payload)
    layer = layers
    while layer:
        if "chksum" in layer.fields:
            del layer.chksum
        layer = layer.payload
    return bytes(layers)


# --- on the wire


def test_the_ipv4_stamp_is_the_first_option() -> None:
    payload = written(bytes(V4 / UDP() / b"data"))

    assert payload[20:28] == STAMP4
    assert (IP(payload).ihl, IP(payload).len, len(payload)) == (7, 40, 40)
    assert payload[28:] == bytes(V4 / UDP() / b"data")[20:]


def test_the_ipv6_stamp_has_a_destination_options_header_behind_the_fixed_header() -> None:
    payload = written(v6())

    assert payload[40:56] == bytes((17, 1)) + STAMP6 + bytes((1, 4, 0, 0, 0, 0))
    assert (IPv6(payload).nh, IPv6(payload).plen, len(payload)) == (60, 40, 80)
    assert payload[56:] == v6()[40:]


def test_the_ipv6_stamp_leaves_a_hop_by_hop_header_first() -> None:
    payload = written(v6(IPv6ExtHdrHopByHop(options=[RouterAlert()]), IPv6ExtHdrFragment()))

    assert (payload[6], payload[40], payload[48]) == (0, 60, 44)
    assert payload[50:58] == STAMP6


def test_a_signed_stamp_has_its_tag_behind_the_identity() -> None:
    body = bytes.fromhex("11 02 0000012c") + SIGNED.tag

    assert written(bytes(V4 / UDP()), SIGNED)[20:36] == bytes((158, 16)) + body
    assert written(v6(), SIGNED)[40:64] == bytes((17, 2, 0x1E, 14)) + body + bytes((1, 4, 0, 0, 0, 0))


@pytest.mark.parametrize("payload", [bytes(V4 / TCP()), bytes(V6 / TCP())])
@pytest.mark.parametrize("stamp", [STAMP, SIGNED])
def test_the_overhead_is_what_a_stamp_adds(payload: bytes, stamp: Stamp) -> None:
    assert len(written(payload, stamp)) - len(payload) == overhead(payload[0] >> 4, signed=bool(stamp.tag))


def test_the_overhead_is_8_bytes_in_ipv4_and_16_in_ipv6_and_8_more_if_signed() -> None:
    assert (overhead(4), overhead(4, signed=True), overhead(6), overhead(6, signed=True)) == (8, 16, 16, 24)


@pytest.mark.parametrize("payload", [TCP() / b"odd", UDP() / b"data", SCTP() / b"data"])
@pytest.mark.parametrize("network", [V4, V6])
@pytest.mark.parametrize("stamp", [STAMP, SIGNED])
def test_every_checksum_is_right_without_touching_the_transport(payload: Any, network: Any, stamp: Stamp) -> None:
    plain = bytes(network / payload)
    stamped = written(plain, stamp)

    assert resummed(stamped) == stamped
    assert stamped.endswith(plain[parse(plain).l4_offset :])


# --- reading


@pytest.mark.parametrize("payload", [bytes(V4 / UDP()), v6(), v4(RECORD_ROUTE), v6(options6(LIMIT))])
def test_a_packet_without_a_stamp_has_none(payload: bytes) -> None:
    assert stamp_of(payload) is None


@pytest.mark.parametrize(
    "payload",
    [
        v4(STAMP4),
        v4(b"\x01\x01" + STAMP4),
        v4(RECORD_ROUTE + STAMP4),
        v6(options6(stamp6())),
        v6(options6(Pad1(), LIMIT, PadN(optdata=b"\0"), stamp6())),
        v6(IPv6ExtHdrHopByHop(options=[RouterAlert()]), options6(LIMIT), options6(stamp6())),
    ],
)
def test_a_stamp_is_found_among_other_options(payload: bytes) -> None:
    assert stamp_of(payload) == STAMP


@pytest.mark.parametrize("payload", [bytes(V4 / UDP()), v6()])
@pytest.mark.parametrize("stamp", [STAMP, SIGNED, Stamp(Identity(CLUSTER_MIN)), Stamp(Identity(CLUSTER_MAX), 255)])
def test_what_is_written_is_read(payload: bytes, stamp: Stamp) -> None:
    assert stamp_of(written(payload, stamp)) == stamp


def test_a_stamp_behind_the_end_of_the_options_is_none() -> None:
    assert stamp_of(v4(b"\x00" + STAMP4)) is None


def test_a_stamp_in_a_hop_by_hop_header_is_none() -> None:
    assert stamp_of(v6(IPv6ExtHdrHopByHop(options=[stamp6()]))) is None


def test_a_stamp_is_read_from_a_truncated_packet() -> None:
    assert stamp_of(written(bytes(V4 / UDP() / bytes(1000)))[:100]) == STAMP


@pytest.mark.parametrize(
    "option",
    [
        bytes((158, 2)),  # no body
        bytes((158, 7)) + BODY[:5],
        bytes((158, 9)) + BODY + b"\0",
        bytes((158, 16)) + BODY + bytes(8),  # a tag, but not signed
        bytes((158, 8, 0x11)) + BODY[1:],  # signed, but no tag
        bytes((158, 8, 0x12)) + BODY[1:],  # an unknown flag
        bytes((158, 16, 0x13)) + BODY[1:] + bytes(8),  # an unknown flag beside the known one
    ],
)
def test_a_stamp_of_a_wrong_length_or_with_unknown_flags_is_malformed(option: bytes) -> None:
    assert refusal(v4(option)) is DropReason.STAMP_MALFORMED
    assert refusal(v6(options6(HBHOptUnknown(otype=0x1E, optdata=option[2:])))) is DropReason.STAMP_MALFORMED


@pytest.mark.parametrize("body", [b"\x00", b"\x20", b"\x2f\x07" + bytes(20)])
def test_a_stamp_of_another_version_is_refused_as_such_whatever_else_it_says(body: bytes) -> None:
    assert refusal(v4(bytes((158, 2 + len(body))) + body)) is DropReason.STAMP_VERSION
    assert refusal(v6(options6(HBHOptUnknown(otype=0x1E, optdata=body)))) is DropReason.STAMP_VERSION


def test_a_stamp_may_say_that_the_source_is_the_world() -> None:
    payload = v4(STAMP4[:4] + WORLD.to_bytes(4, "big"))

    assert read(payload, parse(payload)) == Stamp(WORLD, STAMP4[3])


@pytest.mark.parametrize("identity", [0, 1, 3, 6, CLUSTER_MIN - 1, CLUSTER_MAX + 1, 0xFFFFFFFF])
def test_a_stamp_with_an_identity_that_never_travels_is_refused(identity: int) -> None:
    assert refusal(v4(STAMP4[:4] + identity.to_bytes(4, "big"))) is DropReason.STAMP_IDENTITY
    assert refusal(v6(options6(stamp6(identity)))) is DropReason.STAMP_IDENTITY


@pytest.mark.parametrize(
    "payload",
    [
        v4(STAMP4 + STAMP4),
        v4(STAMP4 + bytes((158, 2))),
        v6(options6(stamp6(), stamp6())),
        v6(options6(stamp6()), options6(LIMIT), options6(stamp6(300))),
    ],
)
def test_a_second_stamp_is_refused(payload: bytes) -> None:
    assert refusal(payload) is DropReason.STAMP_DUPLICATE


BROKEN_LISTS = [
    v4(bytes((7, 1, 0, 0))),  # a length that does not cover itself
    v4(bytes((7, 0, 0, 0))),
    v4(bytes((7, 5, 0, 0))),  # beyond the area
    v4(bytes((1, 1, 1, 7))),  # no length at all
    v4(STAMP4 + bytes((7, 5, 0, 0))),
    v6_broken(bytes((4, 5, 0, 0, 0, 0))),
    v6_broken(bytes((4, 2, 0, 0, 0, 4))),
]


@pytest.mark.parametrize("payload", BROKEN_LISTS)
def test_a_broken_option_list_makes_the_packet_invalid(payload: bytes) -> None:
    assert refusal(payload) is DropReason.INVALID_PACKET


@pytest.mark.parametrize("rewrite", [stripped, written])
@pytest.mark.parametrize("payload", BROKEN_LISTS)
def test_a_broken_option_list_is_not_rewritten(payload: bytes, rewrite: Any) -> None:
    with pytest.raises(PacketError) as caught:
        rewrite(payload)

    assert caught.value.reason is DropReason.INVALID_PACKET


# --- replacing


@pytest.mark.parametrize(
    "payload",
    [
        v4(STAMP4),
        v4(STAMP4 + STAMP4),
        v4(bytes((158, 3, 0xFF))),
        v6(options6(stamp6())),
        v6(options6(stamp6(), stamp6()), options6(stamp6())),
        v6(options6(HBHOptUnknown(otype=0x1E, optdata=b"\xff"))),
    ],
)
def test_stamps_already_there_are_replaced_valid_or_not(payload: bytes) -> None:
    plain = bytes(V4 / UDP() / DATA) if payload[0] >> 4 == 4 else v6()

    assert written(payload, OTHER) == written(plain, OTHER)
    assert stripped(payload) == plain


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("data", [b"", b"data"])
def test_an_ipv4_packet_does_not_become_shorter_than_its_old_header(number: int, data: bytes) -> None:
    payload, plain = v4(STAMP4 * number, data), bytes(V4 / UDP() / data)

    for rewritten, kept in ((stripped(payload), 20), (written(payload, OTHER), 28)):
        packet = parse(rewritten)
        assert len(rewritten) == packet.length == max(kept + 8 + len(data), 20 + 8 * number)
        assert rewritten[packet.l4_offset :] == plain[20:]
        assert checksum(rewritten[: packet.l4_offset]) == 0
        assert set(rewritten[kept : packet.l4_offset]) <= {0}


def test_other_ipv4_options_stay_in_order_behind_the_stamp() -> None:
    payload = written(v4(RECORD_ROUTE + bytes((158, 3, 0)) + bytes((148, 4, 0, 0))))

    assert payload[20:40] == STAMP4 + RECORD_ROUTE + b"\x01\x01\x01" + bytes((148, 4))
    assert payload[40:44] == bytes(4)
    assert resummed(payload) == payload


def test_an_option_keeps_its_alignment() -> None:
    timestamp = bytes((68, 12, 13, 0)) + bytes(8)

    assert written(v4(b"\x01\x01" + timestamp))[28:44] == b"\x01\x01" + timestamp + b"\0\0"


def test_a_destination_options_header_with_other_options_keeps_these() -> None:
    payload = v6(options6(stamp6(), LIMIT))

    assert stripped(payload)[40:48] == bytes((17, 0, 4, 1, 5, 1, 1, 0))
    assert stripped(payload) == v6(options6(LIMIT))
    assert written(payload) == written(v6(options6(LIMIT)))


def test_padding_freed_by_a_stamp_is_never_longer_than_linux_takes() -> None:
    far = HBHOptUnknown(otype=0x3E, optdata=b"far!")
    four, two = PadN(optdata=bytes(4)), PadN(optdata=bytes(2))
    payload = v6(IPv6ExtHdrDestOpt(options=[four, stamp6(), two, far, four], autopad=0))

    assert stripped(payload)[40:56] == bytes((17, 1)) + b"\1\0" + bytes((0x3E, 4)) + b"far!" + b"\1\4" + bytes(4)


def test_a_header_of_padding_alone_is_not_ours_to_remove() -> None:
    payload = v6(options6(PadN(optdata=bytes(4))), options6(stamp6()))

    assert stripped(payload) == v6(options6(PadN(optdata=bytes(4))))


@pytest.mark.parametrize("payload", [bytes(V4 / UDP()), v6(), v4(RECORD_ROUTE), v6(options6(LIMIT))])
def test_stripping_a_packet_without_a_stamp_is_the_same_object(payload: bytes) -> None:
    assert strip(payload, parse(payload)) is payload


@pytest.mark.parametrize("payload", [bytes(V4 / TCP() / b"data"), v6(), v6(IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment())])
def test_stripping_undoes_writing(payload: bytes) -> None:
    assert stripped(written(payload)) == payload


# --- no room


def no_room(payload: bytes, stamp: Stamp = STAMP) -> bool:
    with pytest.raises(PacketError) as caught:
        written(payload, stamp)
    return caught.value.reason is DropReason.STAMP_NO_ROOM


def test_an_ipv4_header_has_room_for_40_bytes_of_options() -> None:
    assert stamp_of(written(v4(bytes((7, 32)) + bytes(30)))) == STAMP
    assert no_room(v4(bytes((7, 33)) + bytes(31)))
    assert no_room(v4(bytes((7, 32)) + bytes(30)), SIGNED)


@pytest.mark.parametrize("network", [V4, V6])
def test_a_stamped_packet_is_no_longer_than_its_length_field_can_say(network: Any) -> None:
    room = 65535 - (20 if network is V4 else 0) - 8 - overhead(network.version)

    assert stamp_of(written(bytes(network / UDP() / bytes(room)))) == STAMP
    assert no_room(bytes(network / UDP() / bytes(room + 1)))


# --- what a caller must not do


@pytest.mark.parametrize("payload", [bytes(V4 / UDP() / bytes(99))[:60], bytes(V6 / UDP() / bytes(99))[:60]])
def test_a_truncated_packet_is_never_rewritten(payload: bytes) -> None:
    packet = parse(payload)

    with pytest.raises(ValueError, match="truncated"):
        write(payload, packet, STAMP)
    with pytest.raises(ValueError, match="truncated"):
        strip(payload, packet)
