"""The messages of NFQUEUE, as bytes: what the kernel says of a packet is read, verdicts and settings are written.

A message is a netlink header (linux/netlink.h), a netfilter header with the queue's number (linux/netfilter/
nfnetlink.h), and attributes: length, type, data, filled up to four bytes (linux/netfilter/nfnetlink_queue.h). Headers
are in the host's byte order, numbers in netfilter's attributes in the network's. Ids of packets and numbers of queues
are only handed back to the kernel, so they stay the bytes that they are.
"""

import struct
import sys
from functools import lru_cache
from typing import NamedTuple

from nfq_enforcer.dataplane.rules import connmark

NETLINK_NETFILTER = 12  # linux/netlink.h
LONGEST_MESSAGE = 0xFFFF + 512  # with all attributes that may come before the payload

DROP, ACCEPT, QUEUE, _REPEAT = 0, 1, 3, 4  # NF_DROP, NF_ACCEPT, NF_QUEUE, NF_REPEAT (linux/netfilter.h)
_BYPASS = 0x8000  # NF_VERDICT_FLAG_QUEUE_BYPASS
FAIL_OPEN, GSO = 1, 4  # NFQA_CFG_F_FAIL_OPEN, NFQA_CFG_F_GSO

_SUBSYSTEM = 3  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG, _BATCH = (_SUBSYSTEM << 8 | kind for kind in range(4))
_ERROR = 2  # NLMSG_ERROR
_REQUEST, _ACK = 1, 4  # NLM_F_REQUEST, NLM_F_ACK

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_START = _HEADER.size + 4  # behind the netfilter header: family, version, number of the queue
_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type
_ERRNO = struct.Struct("=i")
_NUMBER = struct.Struct("!I")

# of a packet (enum nfqnl_attr_type)
_PACKET_HEADER, _VERDICT_HEADER, _INDEV, _OUTDEV, _PHYSINDEV, _PHYSOUTDEV, _PAYLOAD = 1, 2, 5, 6, 7, 8, 10
_MARK, _HARDWARE_ADDRESS, _SKB_INFO = 3, 9, 14
_ALIKE = frozenset((_MARK, _HARDWARE_ADDRESS, _INDEV, _OUTDEV, _PHYSINDEV, _PHYSOUTDEV))
# of a configuration (enum nfqnl_attr_config)
_COMMAND, _PARAMETERS, _LONGEST_QUEUE, _MASK, _FLAGS = 1, 2, 3, 4, 5
_BIND, _COPY_PACKET = 1, 2

# Where things stand in the message of a packet, whose header is its first attribute: id, protocol, hook.
OF_QUEUE = slice(18, 20)  # the number of the queue, as ``queue_number`` writes it
_TYPE, _ID = slice(4, 6), slice(24, 28)
_PROTOCOL, _HOOK, _FIRST = 28, 30, 32
_LOW_BYTE = _ATTRIBUTE.size - 2 if sys.byteorder == "little" else _ATTRIBUTE.size - 1  # of an attribute's type
_PACKET_TYPE, _ERROR_TYPE = struct.pack("=H", _PACKET), struct.pack("=H", _ERROR)
MOST_KNOWN = 4096  # kinds of messages: interfaces, and the neighbours behind them


class MessageError(Exception):
    """Bytes that are no message of the kernel's."""


class Again(NamedTuple):
    """The verdict by which a packet goes through the rules of its hook once more."""

    mark: int  # with which it does


class Packets:
    """Reads the messages of packets.

    Those that come by the same interfaces through the same hook are alike up to what is said of the single packet. So
    these bytes are looked up, and what they say is worked out only once.
    """

    def __init__(self) -> None:
        """Know no message yet."""
        self._known: dict[bytes, tuple[int, int, int, int]] = {}
        self._ends = [_FIRST] * 256  # by hook: where what is alike ends

    @property
    def known(self) -> int:
        """Return how many kinds of messages are known."""
        return len(self._known)

    def read(self, message: bytes) -> tuple[bytes, int, int, int, bytes]:
        """Return id, interfaces (in, out; 0: none), ``skb`` flags and bytes of a packet; raise MessageError for others.

        The flags are those of NFQA_SKB_INFO, and what the packet's mark tells (see ``marks``). A port of a bridge
        counts as the interface. The payload is the last attribute, and the message ends with it.
        """
        try:
            found = self._known.get(message[_PROTOCOL : self._ends[message[_HOOK]]])
            indev, outdev, skb, place = found or self._learn(message)
            while message[place + _LOW_BYTE] != _PAYLOAD:
                size, kind = _ATTRIBUTE.unpack_from(message, place)
                if kind == _SKB_INFO:
                    skb |= _NUMBER.unpack_from(message, place + 4)[0]
                elif kind in _ALIKE:  # it begins like a known one, and says more
                    indev, outdev, skb, place = self._learn(message)
                    continue
                place = _behind(place, size)
        except (IndexError, struct.error):
            raise MessageError("the message of a packet breaks off") from None
        return message[_ID], indev, outdev, skb, message[place + 4 :]

    def _learn(self, message: bytes) -> tuple[int, int, int, int]:
        """Return the interfaces, what the mark tells, and where what is said of the single packet begins."""
        if message[_TYPE] != _PACKET_TYPE or _ATTRIBUTE.unpack_from(message, _START)[1] != _PACKET_HEADER:
            raise MessageError("not the message of a packet")
        end, seen = _FIRST, dict.fromkeys(_ALIKE, 0)
        place, (size, kind) = _FIRST, _ATTRIBUTE.unpack_from(message, _FIRST)
        while kind != _PAYLOAD:
            behind = _behind(place, size)
            if kind in _ALIKE:
                (seen[kind],) = _NUMBER.unpack_from(message, place + 4)
                end = behind
            place, (size, kind) = behind, _ATTRIBUTE.unpack_from(message, behind)
        interfaces = seen[_PHYSINDEV] or seen[_INDEV], seen[_PHYSOUTDEV] or seen[_OUTDEV]
        found = *interfaces, connmark.told(seen[_MARK]), end
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._ends[message[_HOOK]] = end
        self._known[message[_PROTOCOL:end]] = found
        return found


class VerdictBatch:
    """Collects answers to packets until they are sent: each queue's in the order in which its packets came.

    What is accepted as it is gets no message of its own: one verdict accepts all that wait up to a packet. So whatever
    is answered otherwise is told behind those before it, and by then waits no more.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.accepted: dict[bytes, bytes] = {}  # queue: the last packet that is accepted as it is; to be written to
        self.size = 0  # bytes of the messages so far
        self._messages: list[bytes] = []
        self._heads: dict[bytes, bytes] = {}  # queue: its verdicts_up_to, but for the packet

    def add(self, queue: bytes, packet: bytes, what: int | Again | bytes) -> None:
        """Add the verdict on a packet, or the bytes with which it is accepted."""
        before = self.accepted.pop(queue, None)
        messages = [] if before is None else [self._up_to(queue, before)]
        messages += accept_as(queue, packet, what) if isinstance(what, bytes) else [verdict(queue, packet, what)]
        self._messages += messages
        self.size += sum(map(len, messages))

    def take(self) -> list[bytes]:
        """Return all messages, in parts; they are not kept."""
        messages = self._messages
        if self.accepted:
            messages += [self._up_to(queue, packet) for queue, packet in self.accepted.items()]
            self.accepted.clear()
        self._messages, self.size = [], 0
        return messages

    def _up_to(self, queue: bytes, packet: bytes) -> bytes:
        head = self._heads.get(queue)
        if head is None:
            self._heads[queue] = head = verdicts_up_to(queue, b"")
        return head + packet


def error(message: bytes) -> int:
    """Return the error number by which the kernel answers a message of ours, 0 for done; raise MessageError for others.

    It answers what asks for an answer, and what it cannot obey.
    """
    if len(message) < _HEADER.size + _ERRNO.size or message[_TYPE] != _ERROR_TYPE:
        raise MessageError("neither the message of a packet nor the answer to one of ours")
    number: int = _ERRNO.unpack_from(message, _HEADER.size)[0]
    return -number


def queue_number(number: int) -> bytes:
    """Return a queue's number as it stands in messages."""
    return struct.pack("!H", number)


def mark(message: bytes) -> int:
    """Return the mark of a packet, from its message."""
    place = _FIRST
    while message[place + _LOW_BYTE] != _PAYLOAD:
        size, kind = _ATTRIBUTE.unpack_from(message, place)
        if kind == _MARK:
            number: int = _NUMBER.unpack_from(message, place + 4)[0]
            return number
        place = _behind(place, size)
    return 0


def verdict(queue: bytes, packet: bytes, what: int | Again) -> bytes:
    """Return the verdict on one packet; to hand it on: ``hand_on(number)``."""
    head, tail = _around_packet(queue, what)
    return head + packet + tail


@lru_cache(maxsize=256)
def _around_packet(queue: bytes, what: int | Again) -> tuple[bytes, bytes]:
    """Return what is before and behind the packet's id in the verdict on it."""
    word, tail = (_REPEAT, attribute(_MARK, _NUMBER.pack(what.mark))) if isinstance(what, Again) else (what, b"")
    header = attribute(_VERDICT_HEADER, _NUMBER.pack(word) + bytes(4))
    message = _message(_VERDICT, queue, header + tail)
    place = len(message) - len(tail)
    return message[: place - 4], message[place:]


def verdicts_up_to(queue: bytes, packet: bytes) -> bytes:
    """Return the message that accepts all packets that wait in the queue up to this one, with which it ends."""
    return _message(_BATCH, queue, attribute(_VERDICT_HEADER, _NUMBER.pack(ACCEPT) + bytes(4)))[:-4] + packet


def accept_as(queue: bytes, packet: bytes, payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return, in three parts so that a long payload need not be copied, the verdict that puts bytes in its place."""
    attributes = attribute(_VERDICT_HEADER, _NUMBER.pack(ACCEPT) + packet)
    attributes += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), _PAYLOAD)
    fill = bytes(-len(payload) % 4)
    return _message(_VERDICT, queue, attributes, more=len(payload) + len(fill)), payload, fill


def hand_on(number: int, *, bypass: bool = False) -> int:
    """Return the verdict that sends a packet to another queue (NF_QUEUE_NR).

    ``bypass``: it passes if nobody is bound to that one; else it is dropped.
    """
    return number << 16 | QUEUE | (_BYPASS if bypass else 0)


def bind(queue: bytes, most_waiting: int, flags: int) -> bytes:
    """Return the message that binds a queue, with these flags; it asks for an answer."""
    attributes = (
        attribute(_COMMAND, struct.pack("!BxH", _BIND, 0)),
        attribute(_LONGEST_QUEUE, _NUMBER.pack(most_waiting)),
        attribute(_MASK, _NUMBER.pack(flags)),
        attribute(_FLAGS, _NUMBER.pack(flags)),
    )
    return _message(_CONFIG, queue, b"".join(attributes), flags=_REQUEST | _ACK)


def copy(queue: bytes, longest: int) -> bytes:
    """Return the message that has the queue send packets, with at most so many bytes of each; until then it drops."""
    return _message(_CONFIG, queue, attribute(_PARAMETERS, struct.pack("!IB", longest, _COPY_PACKET)))


def _message(kind: int, queue: bytes, attributes: bytes, *, flags: int = _REQUEST, more: int = 0) -> bytes:
    """Return a message; ``more`` bytes of it follow separately."""
    size = _START + len(attributes) + more
    return _HEADER.pack(size, kind, flags, 0, 0) + b"\0\0" + queue + attributes


def attribute(kind: int, data: bytes) -> bytes:
    """Return an attribute, filled up to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _behind(place: int, size: int) -> int:
    """Return where the attribute after the one at ``place`` begins."""
    if size < _ATTRIBUTE.size:
        raise MessageError("an attribute is shorter than its own header")
    return place + (size + 3 & ~3)
