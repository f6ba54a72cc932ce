"""The messages of NFQUEUE: any bytes give a packet or an error, and packets are read right whatever came before."""

import struct
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.dataplane import netlink
from nfq_enforcer.dataplane.netlink import MessageError, Packets
from tests import netlink as kernel

NUMBER = st.integers(0, 2**32 - 1)
PORT = st.sampled_from((1, 2, 3, 2**31))


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, tuple[bytes, int, int, int, bytes]]:
    """Give the message of a packet, and what is to be read from it."""
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
    reader = Packets()

    for data, expected in sent * 2:
        assert reader.read(data) == expected


@given(st.lists(packets(), max_size=3), st.data())
def test_any_bytes_are_a_packet_or_an_error(
    sent: list[tuple[bytes, tuple[bytes, int, int, int, bytes]]], data: st.DataObject
) -> None:
    reader = Packets()
    for known, _ in sent:
        reader.read(known)
    original = data.draw(st.sampled_from([known for known, _ in sent])) if sent else b""
    damaged = bytearray(original[: data.draw(st.integers(0, len(original)))] + data.draw(st.binary(max_size=60)))
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)) if damaged else ():
        damaged[place] = data.draw(st.integers(0, 255))

    with suppress(MessageError):
        reader.read(bytes(damaged))
    with suppress(MessageError):
        netlink.error(bytes(damaged))
