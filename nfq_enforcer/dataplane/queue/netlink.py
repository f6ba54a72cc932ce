"""Netlink messages of NFQUEUE, as bytes: decoding of packet messages, encoding of verdicts and configuration.

A message is a netlink header (linux/netlink.h), a netfilter header with the queue number (linux/netfilter/
nfnetlink.h), and attributes: length, type, data, padded to four bytes (linux/netfilter/nfnetlink_queue.h). Headers are
in host byte order, numbers in netfilter's attributes in network byte order. Packet ids and queue numbers are only sent
back to the kernel, so they stay the bytes that arrived.
"""

import struct
import sys
from functools import lru_cache
from typing import NamedTuple

from nfq_enforcer.dataplane.rules import packet_mark

NETLINK_NETFILTER = 12  # linux/netlink.h
MAX_MESSAGE_BYTES = 0xFFFF + 512  # the longest payload, and all attributes that may precede it

DROP, ACCEPT, QUEUE, REPEAT = 0, 1, 3, 4  # NF_DROP, NF_ACCEPT, NF_QUEUE, NF_REPEAT (linux/netfilter.h)
_QUEUE_BYPASS = 0x8000  # NF_VERDICT_FLAG_QUEUE_BYPASS
FAIL_OPEN, GSO = 1, 4  # NFQA_CFG_F_FAIL_OPEN, NFQA_CFG_F_GSO

_SUBSYSTEM = 3  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM << 8 | kind for kind in range(4))  # enum nfqnl_msg_types
_ERROR = 2  # NLMSG_ERROR
_REQUEST, _ACK = 1, 4  # NLM_F_REQUEST, NLM_F_ACK

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this header, type
ERRNO = struct.Struct("=i")
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: an attribute's type without its flags
_ATTRIBUTES = HEADER.size + 4  # offset of the first attribute, behind struct nfgenmsg: family, version, queue number
_NUMBER = struct.Struct("!I")

# attributes of a packet (enum nfqnl_attr_type)
_PACKET_HEADER, _VERDICT_HEADER, _INDEV, _OUTDEV, _PHYSINDEV, _PHYSOUTDEV, _PAYLOAD = 1, 2, 5, 6, 7, 8, 10
_MARK, _HARDWARE_ADDRESS, _SKB_INFO = 3, 9, 14
_PATH_ATTRIBUTES = frozenset((_MARK, _HARDWARE_ADDRESS, _INDEV, _OUTDEV, _PHYSINDEV, _PHYSOUTDEV))
# attributes of a configuration (enum nfqnl_attr_config)
_COMMAND, _PARAMETERS, _QUEUE_MAXLEN, _MASK, _FLAGS = 1, 2, 3, 4, 5
_BIND, _COPY_PACKET = 1, 2  # NFQNL_CFG_CMD_BIND, NFQNL_COPY_PACKET

# Offsets in a packet message, whose first attribute is always NFQA_PACKET_HDR: packet id, protocol, hook.
QUEUE_FIELD = slice(18, 20)  # the queue number, encoded as by ``queue_number``
_TYPE, _FIRST, _ID = slice(4, 6), slice(_ATTRIBUTES, _ATTRIBUTES + ATTRIBUTE.size), slice(24, 28)
_PROTOCOL, _HOOK, _SECOND_ATTRIBUTE = 28, 30, 32
# offset of the low byte of an attribute's type: all types of NFQA are below 256, so one byte is enough to compare
_LOW_BYTE = ATTRIBUTE.size - 2 if sys.byteorder == "little" else ATTRIBUTE.size - 1
_PACKET_TYPE, _ERROR_TYPE = struct.pack("=H", _PACKET), struct.pack("=H", _ERROR)
_PACKET_HEADER_START = ATTRIBUTE.pack(ATTRIBUTE.size + 7, _PACKET_HEADER)  # id, protocol and hook, without padding
MAX_PATHS = 1024  # cached for one socket; a path is a combination of interfaces, mark and neighbour's hardware address


class MessageError(Exception):
    """Bytes that are not a well-formed message of the kernel."""


class Marked(NamedTuple):
    """Marked: a verdict that sets the packet mark first."""

    verdict: int  # ACCEPT; or REPEAT, by which a packet traverses the rules of its hook once more
    mark: int


class PacketReader:
    """Packet reader: decodes packet messages, with a cache of their common beginnings.

    Packets that take the same path (hook, interfaces, mark, hardware address) have messages that begin alike: the
    kernel writes these attributes first (``nfqnl_build_packet_message``). So these bytes are the key of a cache, and
    the attributes are decoded only for the first packet of a path.
    """

    def __init__(self) -> None:
        """Start with an empty cache."""
        self._paths: dict[bytes, tuple[int, int, int, int]] = {}  # interfaces, mark's flags, offset behind the path
        self._path_ends = [_SECOND_ATTRIBUTE] * 256  # by hook: offset behind the attributes of the last new path

    @property
    def cached_paths(self) -> int:
        """Return the number of cached paths."""
        return len(self._paths)

    def read(self, message: bytes) -> tuple[bytes, int, int, int, bytes]:
        """Return packet id, interfaces (in, out; 0: none), ``skb`` flags and payload; raise MessageError if malformed.

        The flags are those of NFQA_SKB_INFO and those of the packet mark (``packet_mark.skb_flags``). The port of a
        bridge takes precedence over the bridge. The payload is the last attribute and ends the message.
        """
        if message[_TYPE] != _PACKET_TYPE or message[_FIRST] != _PACKET_HEADER_START:
            raise MessageError("not the message of a packet")
        try:
            cached = self._paths.get(message[_PROTOCOL : self._path_ends[message[_HOOK]]])
            indev, outdev, skb, offset = cached or self._decode_path(message)
            while message[offset + _LOW_BYTE] != _PAYLOAD:
                size, kind = ATTRIBUTE.unpack_from(message, offset)
                if kind == _SKB_INFO:
                    skb |= _NUMBER.unpack_from(message, offset + 4)[0]
                elif kind in _PATH_ATTRIBUTES:  # a longer path than the cached one that it begins with
                    indev, outdev, skb, offset = self._decode_path(message)
                    continue
                offset = _next_attribute(offset, size)
        except (IndexError, struct.error):
            raise MessageError("the message of a packet breaks off") from None
        return message[_ID], indev, outdev, skb, message[offset + 4 :]

    def _decode_path(self, message: bytes) -> tuple[int, int, int, int]:
        """Decode and cache a path: interfaces, flags of the packet mark, offset of the attribute behind the path."""
        end, values = _SECOND_ATTRIBUTE, dict.fromkeys(_PATH_ATTRIBUTES, 0)
        offset = _SECOND_ATTRIBUTE
        while message[offset + _LOW_BYTE] != _PAYLOAD:
            size, kind = ATTRIBUTE.unpack_from(message, offset)
            following = _next_attribute(offset, size)
            if kind in _PATH_ATTRIBUTES:
                (values[kind],) = _NUMBER.unpack_from(message, offset + 4)
                end = following
            offset = following
        interfaces = values[_PHYSINDEV] or values[_INDEV], values[_PHYSOUTDEV] or values[_OUTDEV]
        path = *interfaces, packet_mark.skb_flags(values[_MARK]), end
        if len(self._paths) >= MAX_PATHS:
            self._paths.clear()
        self._path_ends[message[_HOOK]] = end
        self._paths[message[_PROTOCOL:end]] = path
        return path


class VerdictBatch:
    """Verdict batch: verdicts until they are sent, those of each queue in the order in which its packets arrived.

    A packet that is accepted unchanged gets no message of its own: one NFQNL_MSG_VERDICT_BATCH accepts all parked
    packets of a queue up to a packet id. So any other verdict follows the batch verdict for the packets before it, and
    its packet is no longer parked when the next batch verdict arrives.
    """

    def __init__(self) -> None:
        """Start with an empty batch."""
        self.accepted: dict[bytes, bytes] = {}  # queue: id of the last packet accepted unchanged; the caller writes it
        self.size = 0  # bytes of the messages so far
        self._messages: list[bytes] = []
        self._held: set[tuple[bytes, bytes]] = set()  # queue and id of packets that stay parked
        self._prefixes: dict[bytes, bytes] = {}  # queue: its batch verdict without the packet id

    def add(self, queue: bytes, packet_id: bytes, result: int | Marked | bytes) -> None:
        """Add the verdict for a packet, or the bytes with which it is accepted."""
        previous = self.accepted.pop(queue, None)
        messages = [] if previous is None else [self._accept_up_to(queue, previous)]
        if isinstance(result, bytes):
            messages += accept_modified(queue, packet_id, result)
        else:
            messages.append(verdict(queue, packet_id, result))
        self._messages += messages
        self.size += sum(map(len, messages))

    def hold(self, queue: bytes, packet_id: bytes) -> None:
        """Leave a packet parked: while any is, no batch verdict may accept the packets of a queue up to an id."""
        if not self._held:
            single = _SinglyAccepted(self)
            single.update(self.accepted)  # packets before this one
            self.accepted = single
        self._held.add((queue, packet_id))

    def settle(self, queue: bytes, packet_id: bytes, result: int | Marked | bytes) -> list[bytes]:
        """Return the messages with the verdict for a packet that was left parked; call it between batches only."""
        self._held.discard((queue, packet_id))
        if not self._held:
            self.accepted = {}
        if isinstance(result, bytes):
            return list(accept_modified(queue, packet_id, result))
        return [verdict(queue, packet_id, result)]

    def take(self) -> list[bytes]:
        """Return all messages, in parts, and empty the batch."""
        messages = self._messages
        if self.accepted:
            messages += [self._accept_up_to(queue, packet_id) for queue, packet_id in self.accepted.items()]
            self.accepted.clear()
        self._messages, self.size = [], 0
        return messages

    def _accept_up_to(self, queue: bytes, packet_id: bytes) -> bytes:
        prefix = self._prefixes.get(queue)
        if prefix is None:
            self._prefixes[queue] = prefix = accept_up_to(queue, b"")
        return prefix + packet_id


class _SinglyAccepted(dict[bytes, bytes]):
    """Accepted packets of a batch while another packet stays parked: each gets a verdict of its own."""

    def __init__(self, batch: VerdictBatch) -> None:
        super().__init__()
        self._batch = batch

    def __setitem__(self, queue: bytes, packet_id: bytes) -> None:
        self._batch.add(queue, packet_id, ACCEPT)


def read_errno(message: bytes) -> int:
    """Return the errno of an NLMSG_ERROR, 0 for an acknowledgement; raise MessageError for any other message.

    The kernel sends one for each message with NLM_F_ACK, and for each message that it refuses.
    """
    if len(message) < HEADER.size + ERRNO.size or message[_TYPE] != _ERROR_TYPE:
        raise MessageError("neither the message of a packet nor the answer to one of ours")
    number: int = ERRNO.unpack_from(message, HEADER.size)[0]
    return -number


def queue_number(number: int) -> bytes:
    """Return a queue number as encoded in messages."""
    return struct.pack("!H", number)


def read_mark(message: bytes) -> int:
    """Return the packet mark in a packet message, 0 without one: the kernel leaves a mark of 0 out."""
    offset = _SECOND_ATTRIBUTE
    while message[offset + _LOW_BYTE] != _PAYLOAD:
        size, kind = ATTRIBUTE.unpack_from(message, offset)
        if kind == _MARK:
            mark: int = _NUMBER.unpack_from(message, offset + 4)[0]
            return mark
        offset = _next_attribute(offset, size)
    return 0


def verdict(queue: bytes, packet_id: bytes, value: int | Marked) -> bytes:
    """Return the message with the verdict for one packet: DROP, ACCEPT, ``requeue(number)`` or Marked."""
    prefix, suffix = _verdict_parts(queue, value)
    return prefix + packet_id + suffix


@lru_cache(maxsize=256)
def _verdict_parts(queue: bytes, value: int | Marked) -> tuple[bytes, bytes]:
    """Return the bytes of a verdict message before and behind the packet id."""
    number, suffix = value, b""
    if isinstance(value, Marked):
        number, suffix = value.verdict, attribute(_MARK, _NUMBER.pack(value.mark))
    header = attribute(_VERDICT_HEADER, _NUMBER.pack(number) + bytes(4))
    message = _message(_VERDICT, queue, header + suffix)
    offset = len(message) - len(suffix)
    return message[: offset - 4], message[offset:]


def accept_up_to(queue: bytes, packet_id: bytes) -> bytes:
    """Return the batch verdict that accepts all parked packets of the queue up to this id, which ends the message."""
    return _message(_VERDICT_BATCH, queue, attribute(_VERDICT_HEADER, _NUMBER.pack(ACCEPT) + bytes(4)))[:-4] + packet_id


def accept_modified(queue: bytes, packet_id: bytes, payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the verdict that accepts a packet with other bytes, in three parts, which saves a copy of the payload."""
    attributes = attribute(_VERDICT_HEADER, _NUMBER.pack(ACCEPT) + packet_id)
    attributes += ATTRIBUTE.pack(ATTRIBUTE.size + len(payload), _PAYLOAD)
    padding = bytes(-len(payload) % 4)
    return _message(_VERDICT, queue, attributes, more=len(payload) + len(padding)), payload, padding


def requeue(number: int, *, bypass: bool = False) -> int:
    """Return the verdict that moves a packet to another queue (NF_QUEUE_NR).

    If no socket is bound to that queue, the packet is dropped; with ``bypass`` it is accepted.
    """
    return number << 16 | QUEUE | (_QUEUE_BYPASS if bypass else 0)


def bind(queue: bytes, max_length: int, flags: int) -> bytes:
    """Return the message that binds a queue with a maximum length and flags; the kernel replies with an NLMSG_ERROR."""
    attributes = (
        attribute(_COMMAND, struct.pack("!BxH", _BIND, 0)),
        attribute(_QUEUE_MAXLEN, _NUMBER.pack(max_length)),
        attribute(_MASK, _NUMBER.pack(flags)),
        attribute(_FLAGS, _NUMBER.pack(flags)),
    )
    return _message(_CONFIG, queue, b"".join(attributes), flags=_REQUEST | _ACK)


def set_max_length(queue: bytes, max_length: int) -> bytes:
    """Return the message that sets the maximum length of a bound queue; packets that already wait stay."""
    return _message(_CONFIG, queue, attribute(_QUEUE_MAXLEN, _NUMBER.pack(max_length)))


def set_copy_range(queue: bytes, copy_range: int) -> bytes:
    """Return the message that sets how many bytes of a packet a queue copies; before it a queue drops all packets."""
    return _message(_CONFIG, queue, attribute(_PARAMETERS, struct.pack("!IB", copy_range, _COPY_PACKET)))


def _message(kind: int, queue: bytes, attributes: bytes, *, flags: int = _REQUEST, more: int = 0) -> bytes:
    """Return a message; ``more`` bytes of it follow separately."""
    size = _ATTRIBUTES + len(attributes) + more
    return HEADER.pack(size, kind, flags, 0, 0) + b"\0\0" + queue + attributes


def attribute(kind: int, data: bytes) -> bytes:
    """Return an attribute, padded to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes by type, without its flags; raise MessageError for malformed ones."""
    found, offset, end = {}, 0, len(data)
    while offset + 4 <= end:
        size, kind = ATTRIBUTE.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            raise MessageError("an attribute is longer or shorter than it can be")
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + size]
        offset += size + 3 & ~3
    return found


def _next_attribute(offset: int, size: int) -> int:
    """Return the offset of the attribute behind the one of this size at ``offset``."""
    if size < ATTRIBUTE.size:
        raise MessageError("an attribute is shorter than its own header")
    return offset + (size + 3 & ~3)
