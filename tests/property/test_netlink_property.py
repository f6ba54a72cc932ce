"""NFQUEUE messages: any bytes give a packet or MessageError; decoding does not depend on earlier messages."""

import struct
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import MessageError, PacketReader, VerdictBatch
from tests.support import netlink as kernel

NUMBER = st.integers(0, 2**32 - 1)
PORT = st.sampled_from((1, 2, 3, 2**31))


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, tuple[bytes, int, int, int, bytes]]:
    """Draw a packet message and its expected decoding."""
    indev, physindev, outdev, physoutdev, mark, skb = (draw(st.none() | PORT) for _ in range(6))
    about = [
        kernel.number(kind, value)
        for kind, value in (
            (kernel.INDEV, indev),
            (kernel.PHYSINDEV, physindev),
            (kernel.OUTDEV, outdev),
            (kernel.PHYSOUTDEV, physoutdev),
            (kernel.MARK, mark),
        )
        if value is not None
    ]
    about += draw(st.lists(st.sampled_from([kernel.hardware_address(1), kernel.hardware_address(2)]), max_size=1))
    about += draw(st.lists(st.just(kernel.timestamp()), max_size=1))
    about += [kernel.number(kernel.LENGTH, length) for length in draw(st.lists(NUMBER, max_size=1))]
    about += [] if skb is None else [kernel.number(kernel.SKB_INFO, skb)]
    packet, payload, hook = draw(NUMBER), draw(st.binary(min_size=1, max_size=40)), draw(st.integers(0, 4))
    expected = struct.pack("!I", packet), physindev or indev or 0, physoutdev or outdev or 0, skb or 0, payload
    return kernel.of_packet(packet, payload, about, hook=hook), expected


@given(st.lists(packets(), max_size=20))
def test_packets_are_read_whatever_came_before(sent: list[tuple[bytes, tuple[bytes, int, int, int, bytes]]]) -> None:
    reader = PacketReader()

    for data, expected in sent * 2:
        assert reader.read(data) == expected


@given(st.lists(packets(), max_size=3), st.data())
def test_any_bytes_are_a_packet_or_an_error(
    sent: list[tuple[bytes, tuple[bytes, int, int, int, bytes]]], data: st.DataObject
) -> None:
    reader = PacketReader()
    for known, _ in sent:
        reader.read(known)
    original = data.draw(st.sampled_from([known for known, _ in sent])) if sent else b""
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))] + data.draw(st.binary(max_size=60)))
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)) if damaged else ():
        damaged[place] = data.draw(st.integers(0, 255))

    with suppress(MessageError):
        reader.read(bytes(damaged))
    with suppress(MessageError):
        netlink.read_errno(bytes(damaged))


class KernelQueue:
    """Kernel queue: a model of parked packets and of the effect of verdicts (net/netfilter/nfnetlink_queue.c)."""

    def __init__(self, first: int, number: int) -> None:
        self.waiting = [(first + place) % 2**32 for place in range(number)]
        self.decided: list[tuple[int, int, bytes | None]] = []

    def apply(self, kind: int, attributes: dict[int, bytes]) -> None:
        verdict, packet = struct.unpack("!II", attributes[2])
        if kind == 3 << 8 | 3:
            while self.waiting and (packet - self.waiting[0]) % 2**32 < 2**31:
                self.decided.append((self.waiting.pop(0), verdict, None))
        else:
            self.waiting.remove(packet)
            self.decided.append((packet, verdict, attributes.get(10)))


RESULT = st.sampled_from([netlink.ACCEPT, netlink.DROP, netlink.requeue(102), b"other bytes"])
FIRST = st.sampled_from([0, 1, 2**31 - 3, 2**32 - 3, 2**32 - 1])


@given(
    st.lists(st.tuples(st.integers(0, 2), RESULT, st.booleans()), max_size=30), st.lists(FIRST, min_size=3, max_size=3)
)
def test_every_packet_gets_its_own_verdict_in_the_order_of_its_queue(
    verdicts: list[tuple[int, int | bytes, bool]], first: list[int]
) -> None:
    numbers = [queue for queue, _, _ in verdicts]
    queues = [KernelQueue(first[queue], numbers.count(queue)) for queue in range(3)]
    expected: list[list[tuple[int, int, bytes | None]]] = [[], [], []]
    batch, sent = VerdictBatch(), b""
    for queue, result, send in verdicts:
        packet = (first[queue] + len(expected[queue])) % 2**32
        expected[queue].append((packet, 1, result) if isinstance(result, bytes) else (packet, result, None))
        if result == netlink.ACCEPT:
            batch.accepted[netlink.queue_number(queue)] = struct.pack("!I", packet)
        else:
            batch.add(netlink.queue_number(queue), struct.pack("!I", packet), result)
        sent += b"".join(batch.take()) if send else b""

    for kind, queue, attributes in kernel.messages(sent + b"".join(batch.take())):
        queues[queue].apply(kind, attributes)

    assert [queue.decided for queue in queues] == expected
    assert [queue.waiting for queue in queues] == [[], [], []]
