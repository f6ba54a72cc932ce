"""Any bytes give a packet or a PacketError, and stamping is undone by stripping, whatever else the packet carries."""

from collections.abc import Callable
from random import Random
from typing import TypeVar

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.sctp import SCTP

from nfq_enforcer.core.identity import CLUSTER_MAX, CLUSTER_MIN, Identity
from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire.packet import Packet, checksum, parse, parse_quoted, reply_key
from nfq_enforcer.core.wire.stamp import Stamp, read, stamp_template, strip, write
from tests.support.effort import scaled

T = TypeVar("T")

SAME_EVERY_TIME = settings(derandomize=True, database=None, deadline=None, max_examples=scaled(500))
BULK = scaled(100_000)

STAMP = Stamp(Identity(4711), 1)
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
LIMIT = IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=4, optdata=b"\x05")])

PLAIN = [
    bytes(V4 / TCP(flags="S") / b"data"),
    bytes(V4 / UDP() / b"data"),
    bytes(V4 / SCTP()),
    bytes(V4 / ICMP()),
    bytes(V4 / ICMP(type=3, code=4) / V4 / UDP()),
    bytes(V6 / TCP(flags="S") / b"data"),
    bytes(V6 / UDP() / b"data"),
    bytes(V6 / ICMPv6EchoRequest()),
    bytes(V6 / ICMPv6PacketTooBig() / V6 / UDP()),
    bytes(V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(type=2, segleft=0, addresses=["fd00::7"]) / UDP()),
    bytes(V6 / LIMIT / IPv6ExtHdrFragment() / UDP()),
]
STAMPED = [write(payload, parse(payload), STAMP) for payload in PLAIN]
QUOTING = [  # errors about stamped packets
    bytes(V4 / ICMP(type=3, code=4)) + STAMPED[0],
    bytes(V6 / ICMPv6PacketTooBig()) + STAMPED[5],
]
VALID = PLAIN + STAMPED + QUOTING

INTERESTING = (0, 1, 4, 6, 8, 17, 30, 43, 44, 51, 58, 59, 60, 132, 158, 255)  # types, protocols, lengths


def attempt(step: Callable[..., T], *arguments: object) -> T | None:
    """Return what a step gives, None if it refuses the packet; any other exception is a failure."""
    try:
        return step(*arguments)
    except PacketError:
        return None


def handle(payload: bytes) -> Packet | None:
    """Do to a packet all that is ever done to one; return it if it can be judged."""
    packet = attempt(parse, payload)
    if packet is None:
        return None
    reply_key(packet.key)
    attempt(read, payload, packet)
    attempt(parse_quoted, payload, packet)
    if not packet.truncated:
        attempt(strip, payload, packet)
        attempt(write, payload, packet, STAMP)
    return packet


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    payload = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return bytes(payload[: draw(st.integers(0, len(payload)))]) if draw(st.booleans()) else bytes(payload)


def option_lists(kinds: list[int], uncounted: int, room: int) -> st.SearchStrategy[bytes]:
    """Make lists of whole options of these types that fit in ``room`` bytes."""
    option = st.builds(
        lambda kind, data: bytes((kind, len(data) + 2 - uncounted)) + data,
        st.sampled_from(kinds),
        st.binary(max_size=10),
    )
    return st.lists(option, min_size=1, max_size=6).map(b"".join).filter(lambda area: len(area) <= room)


def with_options4(options: bytes) -> bytes:
    plain = PLAIN[0]
    header = bytearray(plain[:20] + options + bytes(-len(options) % 4))
    header[0] = 0x40 | len(header) // 4
    header[2:4] = (len(header) + len(plain) - 20).to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
    return bytes(header) + plain[20:]


def with_options6(options: bytes) -> bytes:
    pad = -(len(options) + 2) % 8
    padding = bytes((1, pad - 2)) + bytes(pad - 2) if pad > 1 else bytes(pad)
    header = bytes((17, (len(options) + 2 + pad) // 8 - 1)) + options + padding
    return bytes(IPv6(src="fd00::1", dst="fd00::2", nh=60) / header / UDP())


OTHERS4 = option_lists([7, 68, 130, 148, 0x5E], uncounted=0, room=24).map(with_options4)
OTHERS6 = option_lists([4, 0x3E, 0xC9, 0x8A], uncounted=2, room=100).map(with_options6)
STAMPS = st.builds(
    Stamp,
    st.integers(CLUSTER_MIN, CLUSTER_MAX).map(Identity),
    st.integers(0, 255),
    st.one_of(st.just(b""), st.binary(min_size=8, max_size=8)),
)
PACKETS = st.one_of(st.sampled_from(PLAIN), OTHERS4, OTHERS6)


@SAME_EVERY_TIME
@given(st.one_of(st.binary(max_size=120), mutated(), OTHERS4, OTHERS6))
def test_any_bytes_give_a_packet_or_a_packet_error(payload: bytes) -> None:
    packet = handle(payload)

    assert packet is None or packet.version == payload[0] >> 4


@SAME_EVERY_TIME
@given(st.sampled_from([4, 6]), st.binary(min_size=60, max_size=200))
def test_any_bytes_behind_a_sound_start_give_a_packet_or_a_packet_error(version: int, noise: bytes) -> None:
    start = bytes(IP(len=len(noise) + 20, proto=noise[0]) if version == 4 else IPv6(plen=len(noise), nh=60))

    handle(start + noise)


@SAME_EVERY_TIME
@given(PACKETS, STAMPS)
def test_a_written_stamp_is_read_and_leaves_the_flow_alone(payload: bytes, stamp: Stamp) -> None:
    stamped = write(payload, parse(payload), stamp)

    assert read(stamped, parse(stamped)) == stamp
    assert parse(stamped).key == parse(payload).key
    assert stamped.endswith(payload[parse(payload).l4_offset :])


@SAME_EVERY_TIME
@given(PACKETS, STAMPS)
def test_stripping_undoes_writing_and_other_options_survive(payload: bytes, stamp: Stamp) -> None:
    stamped = write(payload, parse(payload), stamp)
    assume(len(payload) - parse(payload).l4_offset >= len(stamped) - len(payload))  # else it is padded

    assert strip(stamped, parse(stamped)) == payload


@SAME_EVERY_TIME
@given(st.sampled_from([payload for payload in PLAIN if parse(payload).is_bare]), STAMPS)
def test_pressing_a_stamp_on_a_bare_packet_is_writing_it(payload: bytes, stamp: Stamp) -> None:
    packet = parse(payload)

    assert stamp_template(stamp, packet.version, packet.proto).insert(payload) == write(payload, packet, stamp)


@SAME_EVERY_TIME
@given(PACKETS, STAMPS, STAMPS)
def test_the_last_stamp_written_is_the_only_one(payload: bytes, first: Stamp, last: Stamp) -> None:
    once = write(payload, parse(payload), first)

    assert write(once, parse(once), last) == write(payload, parse(payload), last)


@SAME_EVERY_TIME
@given(mutated())
def test_what_was_rewritten_is_a_sound_packet(payload: bytes) -> None:
    packet = attempt(parse, payload)
    if packet is None or packet.truncated:
        return
    stamped, bare = attempt(write, payload, packet, STAMP), attempt(strip, payload, packet)
    if stamped is None or bare is None:
        return

    assert read(stamped, parse(stamped)) == STAMP
    assert read(bare, parse(bare)) is None
    assert parse(stamped).key == parse(bare).key == packet.key


def test_a_hundred_thousand_damaged_packets_give_a_packet_or_a_packet_error() -> None:
    random, judged = Random(1), 0
    for _ in range(BULK):
        payload = bytearray(random.choice(VALID))
        for _ in range(random.randint(1, 3)):
            value = random.choice(INTERESTING) if random.random() < 0.5 else random.randrange(256)
            payload[random.randrange(min(len(payload), 72))] = value
        if random.random() < 0.1:
            del payload[random.randrange(len(payload)) :]
        judged += handle(bytes(payload)) is not None

    assert BULK // 10 < judged < BULK - BULK // 10  # damage was neither always fatal nor always harmless
