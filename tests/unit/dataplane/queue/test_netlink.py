"""Netlink messages of NFQUEUE: decoding of packet messages, encoding of verdicts and configuration."""

import struct
from collections.abc import Iterable

import pytest

from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER
from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import QUEUE_FIELD, Marked, MessageError, PacketReader, VerdictBatch
from nfq_enforcer.dataplane.rules.packet_mark import FROM_OPENER, FROM_REPLIER
from tests.support.netlink import (
    FORWARD,
    HARDWARE_ADDRESS,
    INDEV,
    LENGTH,
    LOCAL_IN,
    LOCAL_OUT,
    MARK,
    OUTDEV,
    PAYLOAD,
    PHYSINDEV,
    PHYSOUTDEV,
    SKB_INFO,
    attribute,
    attributes,
    hardware_address,
    message,
    number,
    of_error,
    of_packet,
    timestamp,
)

QUEUE = struct.pack("!H", 258)
ID = struct.pack("!I", 0x01020304)
IN = (number(INDEV, 2), hardware_address())
PACKET = b"E of 13 bytes"


def header(data: bytes) -> tuple[int, ...]:
    """Check the message's length; return type, flags, sequence number, port, family, version and queue."""
    length, *rest = struct.unpack_from("=IHHII", data)
    assert length == len(data)
    return *rest, *struct.unpack_from("!BBH", data, 16)


@pytest.mark.parametrize(
    ("hook", "about", "indev", "outdev", "skb"),
    [
        (LOCAL_IN, IN, 2, 0, 0),
        (FORWARD, (number(INDEV, 2), number(OUTDEV, 3), hardware_address()), 2, 3, 0),
        (LOCAL_OUT, (number(OUTDEV, 3),), 0, 3, 0),
        (LOCAL_OUT, (number(OUTDEV, 3), number(SKB_INFO, 1)), 0, 3, 1),
        (LOCAL_OUT, (number(OUTDEV, 3), number(LENGTH, 60_000), number(SKB_INFO, 3)), 0, 3, 3),
        (LOCAL_OUT, (number(OUTDEV, 3), number(MARK, 7), number(LENGTH, 60_000)), 0, 3, 0),
        (LOCAL_IN, (number(INDEV, 2), number(MARK, 7), hardware_address(), timestamp(), number(SKB_INFO, 2)), 2, 0, 2),
        (FORWARD, (number(INDEV, 4), number(PHYSINDEV, 2), number(OUTDEV, 4), number(PHYSOUTDEV, 3)), 2, 3, 0),
        (FORWARD, (attribute(99, b"an attribute of a later kernel"), *IN), 2, 0, 0),
        (LOCAL_IN, (), 0, 0, 0),
        (LOCAL_IN, (number(INDEV, 2), number(MARK, FROM_OPENER | 7), hardware_address()), 2, 0, FLOW_OPENER),
        (LOCAL_OUT, (number(OUTDEV, 3), number(MARK, FROM_REPLIER), number(SKB_INFO, 3)), 0, 3, FLOW_REPLIER | 3),
    ],
)
def test_a_packet_is_read_the_first_time_and_when_its_like_is_known(
    hook: int, about: tuple[bytes, ...], indev: int, outdev: int, skb: int
) -> None:
    reader = PacketReader()

    for packet in (1, 2, 2**32 - 1):
        data = of_packet(packet, PACKET, about, hook=hook)
        assert reader.read(data) == (struct.pack("!I", packet), indev, outdev, skb, PACKET)


def test_packets_of_all_kinds_may_follow_each_other() -> None:
    reader = PacketReader()
    kinds = [
        (hook, marked, (number(INDEV, port), *marked, hardware_address(port)))
        for hook in (LOCAL_IN, FORWARD)
        for port in (2, 3, 4)
        for marked in ((), (number(MARK, 5),))
    ]

    for _ in range(2):
        for hook, _, about in kinds:
            assert reader.read(of_packet(1, PACKET, about, hook=hook))[1] == struct.unpack_from("!I", about[0], 4)[0]


def test_what_is_known_is_bounded() -> None:
    reader = PacketReader()

    for port in range(1, netlink.MAX_PATHS + 10):
        assert reader.read(of_packet(1, PACKET, [number(INDEV, port)]))[1] == port
    assert reader.cached_paths <= netlink.MAX_PATHS


def test_the_queue_of_a_packet_can_be_told() -> None:
    assert of_packet(1, PACKET, IN, queue=258)[QUEUE_FIELD] == netlink.queue_number(258)


@pytest.mark.parametrize("length", range(len(of_packet(1, b"", IN)) - 1))
def test_a_message_that_breaks_off_before_the_packet_is_refused(length: int) -> None:
    reader = PacketReader()
    reader.read(of_packet(1, PACKET, IN))

    with pytest.raises(MessageError):
        reader.read(of_packet(1, b"", IN)[:length])


@pytest.mark.parametrize(
    "data",
    [
        of_error(2, bytes(16)),
        message(3 << 8 | 1, bytes(100)),
        of_packet(1, PACKET, [struct.pack("=HH", 3, SKB_INFO)]),
        of_packet(1, PACKET, [struct.pack("=HH", 0, HARDWARE_ADDRESS)]),
        message(3 << 8, bytes(4) + number(MARK, 7) * 10),
    ],
)
def test_what_is_not_the_message_of_a_packet_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        PacketReader().read(data)


def test_a_message_that_continues_like_a_known_packet_is_refused() -> None:
    reader = PacketReader()
    packet = of_packet(1, PACKET, IN)
    reader.read(packet)

    for place in (4, 5, 20, 22):  # type of the message; length and type of its first attribute
        with pytest.raises(MessageError):
            reader.read(packet[:place] + bytes((packet[place] ^ 0x80,)) + packet[place + 1 :])


@pytest.mark.parametrize("about", [[], IN])
def test_a_message_is_read_the_same_whether_its_path_is_cached_or_not(about: Iterable[bytes]) -> None:
    reader = PacketReader()
    packet = of_packet(1, PACKET, about)
    reader.read(packet)
    odd = of_packet(1, b"", [*about, attribute(PAYLOAD | 0x100, PACKET)])[:-4]  # no kernel has types that long

    assert reader.read(odd) == PacketReader().read(odd)


def test_a_run_of_accepted_packets_is_told_as_one() -> None:
    batch = VerdictBatch()
    for packet in (b"id 1", b"id 2", b"id 3"):
        batch.accepted[QUEUE] = packet

    assert batch.take() == [netlink.accept_up_to(QUEUE, b"id 3")]
    assert batch.take() == []


def test_each_queues_packets_are_answered_in_their_order() -> None:
    batch, other = VerdictBatch(), netlink.queue_number(101)
    batch.accepted[QUEUE] = b"id 1"
    batch.accepted[other] = b"ID 1"
    batch.add(QUEUE, b"id 2", netlink.DROP)
    batch.add(QUEUE, b"id 3", PACKET)
    batch.accepted[QUEUE] = b"id 4"

    messages = batch.take()

    assert messages == [
        netlink.accept_up_to(QUEUE, b"id 1"),
        netlink.verdict(QUEUE, b"id 2", netlink.DROP),
        *netlink.accept_modified(QUEUE, b"id 3", PACKET),
        netlink.accept_up_to(other, b"ID 1"),
        netlink.accept_up_to(QUEUE, b"id 4"),
    ]


def test_while_a_packet_is_held_each_other_gets_a_verdict_of_its_own() -> None:
    batch, other = VerdictBatch(), netlink.queue_number(101)
    batch.accepted[QUEUE] = b"id 1"
    batch.hold(QUEUE, b"id 2")
    batch.accepted[QUEUE] = b"id 3"
    batch.accepted[other] = b"ID 1"

    assert batch.take() == [
        netlink.accept_up_to(QUEUE, b"id 1"),
        netlink.verdict(QUEUE, b"id 3", netlink.ACCEPT),
        netlink.verdict(other, b"ID 1", netlink.ACCEPT),
    ]
    batch.hold(QUEUE, b"id 4")
    assert batch.settle(QUEUE, b"id 2", netlink.DROP) == [netlink.verdict(QUEUE, b"id 2", netlink.DROP)]
    batch.accepted[QUEUE] = b"id 5"
    assert batch.take() == [netlink.verdict(QUEUE, b"id 5", netlink.ACCEPT)]

    assert batch.settle(QUEUE, b"id 4", PACKET) == list(netlink.accept_modified(QUEUE, b"id 4", PACKET))
    batch.hold(QUEUE, b"id 7")
    assert batch.settle(QUEUE, b"id 7", Marked(netlink.REPEAT, 7)) == [
        netlink.verdict(QUEUE, b"id 7", Marked(netlink.REPEAT, 7))
    ]
    batch.accepted[QUEUE] = b"id 6"
    assert batch.take() == [netlink.accept_up_to(QUEUE, b"id 6")]


def test_the_size_of_what_is_to_be_sent_is_known() -> None:
    batch = VerdictBatch()
    batch.add(QUEUE, ID, netlink.DROP)
    batch.accepted[QUEUE] = b"id 1"
    batch.add(QUEUE, ID, PACKET)

    assert batch.size == sum(map(len, batch.take()))
    assert batch.size == 0


@pytest.mark.parametrize("errno", [0, 1, 2, 95])
def test_the_kernels_answer_is_an_error_number(errno: int) -> None:
    assert netlink.read_errno(of_error(errno, netlink.verdict(QUEUE, ID, netlink.DROP))) == errno


@pytest.mark.parametrize("data", [b"", of_error(1, b"")[:19], of_packet(1, PACKET, IN), message(3, bytes(20))])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        netlink.read_errno(data)


@pytest.mark.parametrize(
    ("what", "word"),
    [
        (netlink.DROP, 0),
        (netlink.ACCEPT, 1),
        (netlink.requeue(102), 102 << 16 | 3),
        (netlink.requeue(65535), 0xFFFF0003),
        (netlink.requeue(102, bypass=True), 102 << 16 | 0x8003),
    ],
)
def test_a_verdict_is_on_one_packet(what: int, word: int) -> None:
    data = netlink.verdict(QUEUE, ID, what)

    assert header(data) == (3 << 8 | 1, 1, 0, 0, 0, 0, 258)
    assert attributes(data[20:]) == {2: struct.pack("!I", word) + ID}


@pytest.mark.parametrize(
    ("about", "mark"),
    [(IN, 0), ((number(MARK, 7), *IN), 7), ((number(INDEV, 2), timestamp(), number(MARK, 2**32 - 1)), 2**32 - 1)],
)
def test_the_mark_of_a_packet_can_be_told(about: tuple[bytes, ...], mark: int) -> None:
    assert netlink.read_mark(of_packet(1, PACKET, about)) == mark


def test_a_packet_can_be_sent_through_the_rules_again_with_another_mark() -> None:
    data = netlink.verdict(QUEUE, ID, Marked(netlink.REPEAT, 0xC0DE))

    assert header(data) == (3 << 8 | 1, 1, 0, 0, 0, 0, 258)
    assert attributes(data[20:]) == {2: struct.pack("!I", 4) + ID, 3: struct.pack("!I", 0xC0DE)}


def test_one_verdict_accepts_all_up_to_a_packet() -> None:
    data = netlink.accept_up_to(QUEUE, ID)

    assert header(data) == (3 << 8 | 3, 1, 0, 0, 0, 0, 258)
    assert attributes(data[20:]) == {2: struct.pack("!I", 1) + ID}


@pytest.mark.parametrize("size", [*range(20, 25), 65531])
def test_a_packet_can_be_accepted_as_another(size: int) -> None:
    payload = bytes(range(1, 256)) * 258
    data = b"".join(netlink.accept_modified(QUEUE, ID, payload[:size]))

    assert header(data) == (3 << 8 | 1, 1, 0, 0, 0, 0, 258)
    assert len(data) % 4 == 0
    assert attributes(data[20:]) == {2: struct.pack("!I", 1) + ID, 10: payload[:size]}


def test_a_queue_is_bound_with_its_length_and_flags_and_the_kernel_is_to_answer() -> None:
    data = netlink.bind(QUEUE, 4096, netlink.FAIL_OPEN | netlink.GSO)

    assert header(data) == (3 << 8 | 2, 1 | 4, 0, 0, 0, 0, 258)
    assert attributes(data[20:]) == {
        1: bytes((1, 0, 0, 0)),
        3: struct.pack("!I", 4096),
        4: struct.pack("!I", 1 | 4),
        5: struct.pack("!I", 1 | 4),
    }


def test_the_length_of_a_bound_queue_changes() -> None:
    data = netlink.set_max_length(QUEUE, 256)

    assert header(data) == (3 << 8 | 2, 1, 0, 0, 0, 0, 258)
    assert attributes(data[20:]) == {3: struct.pack("!I", 256)}


def test_a_queue_copies_as_much_as_it_is_told() -> None:
    data = netlink.set_copy_range(QUEUE, 65531)

    assert header(data) == (3 << 8 | 2, 1, 0, 0, 0, 0, 258)
    assert attributes(data[20:]) == {2: struct.pack("!IB", 65531, 2)}
