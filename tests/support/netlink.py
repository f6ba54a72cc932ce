"""The kernel's messages to a queue's socket, laid out as by nfqnl_build_packet_message."""

import struct
from collections.abc import Iterable, Iterator

INDEV, OUTDEV, PHYSINDEV, PHYSOUTDEV, PAYLOAD = 5, 6, 7, 8, 10
MARK, TIMESTAMP, HARDWARE_ADDRESS, LENGTH, SKB_INFO = 3, 4, 9, 13, 14
LOCAL_IN, FORWARD, LOCAL_OUT = 1, 2, 3
PACKET, ERROR = 3 << 8, 2


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def hardware_address(last: int = 1) -> bytes:
    return attribute(HARDWARE_ADDRESS, struct.pack("!HH8s", 6, 0, bytes((2, 0, 0, 0, 0, last))))


def timestamp() -> bytes:
    return attribute(TIMESTAMP, bytes(16))


def of_packet(
    packet: int, payload: bytes, attributes: Iterable[bytes], *, queue: int = 100, hook: int = LOCAL_IN
) -> bytes:
    """Return the message of a packet; its payload is the last attribute, without padding."""
    header = attribute(1, struct.pack("!IHB", packet, 0x0800, hook))
    last = struct.pack("=HH", 4 + len(payload), PAYLOAD) + payload
    return message(PACKET, struct.pack("!BBH", 2, 0, queue) + header + b"".join(attributes) + last)


def of_error(errno: int, about: bytes) -> bytes:
    """Return the kernel's NLMSG_ERROR for a message, whose header it quotes."""
    return message(ERROR, struct.pack("=i", -errno) + about[:16])


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def attributes(data: bytes) -> dict[int, bytes]:
    """Return attributes by type."""
    found, place = dict[int, bytes](), 0
    while place < len(data):
        size, kind = struct.unpack_from("=HH", data, place)
        assert 4 <= size <= len(data) - place
        found[kind] = data[place + 4 : place + size]
        place += size + 3 & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """Yield type, queue and attributes of consecutive messages."""
    while data:
        length, kind = struct.unpack_from("=IH", data)
        assert 20 <= length <= len(data)
        yield kind, struct.unpack_from("!H", data, 18)[0], attributes(data[20:length])
        data = data[length + 3 & ~3 :]
