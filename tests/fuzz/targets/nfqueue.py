"""Any bytes on a queue's socket are a packet or MessageError, and earlier messages have no influence on a later one."""

from contextlib import suppress
from itertools import permutations

from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import MessageError, PacketReader
from tests.fuzz.inputs import Input, string
from tests.support import netlink as kernel

_ATTRIBUTES = [
    [kernel.number(kernel.INDEV, 2), kernel.hardware_address(1), kernel.number(kernel.SKB_INFO, 1)],
    [kernel.number(kernel.MARK, 7), kernel.number(kernel.OUTDEV, 3)],
    [kernel.number(kernel.INDEV, 2), kernel.number(kernel.PHYSINDEV, 4), kernel.timestamp()],
    [],
]
_MESSAGES = [kernel.of_packet(5, b"payload", attributes) for attributes in _ATTRIBUTES]
SEEDS = [
    *(string(one) + string(other) for one, other in permutations(_MESSAGES, 2)),
    string(kernel.of_error(2, bytes(16))),
]

_Result = tuple[bytes, int, int, int, bytes] | None


def check(data: bytes) -> None:
    given, reader = Input(data), PacketReader()
    while given.has_more:
        message = given.string()
        result = _read(reader, message)
        assert result == _read(reader, message) == _read(PacketReader(), message)
        with suppress(MessageError):
            netlink.read_errno(message)
        if result is not None:
            netlink.read_mark(message)


def _read(reader: PacketReader, message: bytes) -> _Result:
    try:
        return reader.read(message)
    except MessageError:
        return None
