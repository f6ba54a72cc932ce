"""DNS messages (RFC 1035, RFC 6891): any bytes give a ``Query`` or an ``Answer``, or a PacketError (DNS_MALFORMED).

The parser is bounded: exactly one question, labels of at most 63 bytes, names of at most 255, and compression pointers
that only lead backwards, at most 20 in a name. A message has at most 500 records. Each is walked to its end, and
nothing may follow the last one. Of an answer only the answer section is read: addresses elsewhere in it are none that
was asked for.

A name is a string in lower case without the trailing dot, empty for the root. Bytes that are no letter, digit, hyphen
or underscore are escaped as in a zone file (RFC 1035 section 5.1), so each name has one form, and a dot always
separates labels.
"""

import struct
from struct import Struct
from typing import NamedTuple

from nfq_enforcer.core.verdict import DropReason, PacketError

A, CNAME, AAAA, OPT = 1, 5, 28, 41  # record types
INTERNET = 1  # the class of records on the Internet
NO_ERROR, REFUSED = 0, 5  # response codes

_HEADER = Struct("!HHHHHH")  # id, flags, and the number of records in each section
_QUESTION = Struct("!HH")  # type, class
_RECORD = Struct("!HHIH")  # type, class, TTL, length of the data
_POINTER = 0xC0
_OF_QUESTION = bytes((_POINTER, _HEADER.size))  # the pointer to the name of the question
_MAX_LABEL, _MAX_NAME, _MAX_POINTERS = 63, 255, 20
_MAX_RECORDS = 500  # the 8,000 bytes of as many addresses are twice what servers send by UDP
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSION, _CHECKING_DISABLED, _RCODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x0010, 0x000F
_NOT_IN_QUERY = _RESPONSE | _OPCODE | _TRUNCATED | _RCODE
_DNSSEC_OK = 0x8000  # in the flags of OPT, which stand in its TTL (RFC 3225)
_UDP_SIZE = 1232  # bytes of an answer that fit into one packet on every path
_NO_EDNS = -1
_PLAIN = b"-_0123456789abcdefghijklmnopqrstuvwxyz"
_QUOTED = b'"().;\\@$'  # escaped by a backslash alone
_LENGTHS = {A: 4, AAAA: 16}  # bytes of an address


Question = tuple[int, str, int, int]
"""The fields of a query that its answer repeats: id, name, type and class."""


class Query(NamedTuple):
    """Query: the question of a client."""

    id: int
    name: str
    type: int
    klass: int
    flags: int
    end: int  # offset behind the question
    edns: int  # flags of OPT, -1 without one

    @property
    def question(self) -> Question:
        """Return the fields that an answer repeats."""
        return self[:4]


class Address(NamedTuple):
    """Address record, A or AAAA."""

    address: bytes
    ttl: int  # seconds


class Answer(NamedTuple):
    """Answer: the answer of a server, with the records that answer its question."""

    id: int
    name: str  # of the question
    type: int
    klass: int
    rcode: int
    truncated: bool  # has no records then
    aliases: tuple[str, ...]  # the names to which CNAME records lead from the question's name, in their order
    addresses: tuple[Address, ...]  # of the name at the end of this chain

    @property
    def question(self) -> Question:
        """Return the fields that it repeats of its query."""
        return self[:4]

    @property
    def ttl(self) -> int:
        """Return the shortest TTL of its addresses in seconds, 0 without any."""
        return min((address.ttl for address in self.addresses), default=0)


def parse_query(message: bytes) -> Query:
    """Parse a query; raise PacketError for any other message."""
    try:
        identifier, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
        if flags & _NOT_IN_QUERY or questions != 1 or answers or authorities or additional > _MAX_RECORDS:
            raise PacketError(DropReason.DNS_MALFORMED)
        name, end = _read_name(message, _HEADER.size)
        kind, klass = _QUESTION.unpack_from(message, end)
        end += _QUESTION.size
        edns = _NO_EDNS
        if additional or end != len(message):
            edns = _read_additional(message, end, additional)
    except (IndexError, struct.error):
        raise PacketError(DropReason.DNS_MALFORMED) from None
    return Query(identifier, name, kind, klass, flags, end, edns)


def parse_answer(message: bytes) -> Answer:
    """Parse an answer; raise PacketError for any other message.

    A truncated answer (TC) has to be asked for again, over TCP, so its records are not read.
    """
    try:
        identifier, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
        too_many = answers + authorities + additional > _MAX_RECORDS
        if not flags & _RESPONSE or flags & _OPCODE or questions != 1 or too_many:
            raise PacketError(DropReason.DNS_MALFORMED)
        name, at = _read_name(message, _HEADER.size)
        kind, klass = _QUESTION.unpack_from(message, at)
        at += _QUESTION.size
        if flags & _TRUNCATED:
            return Answer(identifier, name, kind, klass, flags & _RCODE, True, (), ())
        aliases, addresses, at = _read_answers(message, at, answers, name)
        for _ in range(authorities):
            at = _skip_record(message, at)
        edns = _read_additional(message, at, additional)
    except (IndexError, struct.error):
        raise PacketError(DropReason.DNS_MALFORMED) from None
    rcode = flags & _RCODE | (max(edns, 0) >> 24) << 4  # RFC 6891 section 6.1.3
    return Answer(identifier, name, kind, klass, rcode, False, aliases, addresses)


def refusal(message: bytes, query: Query) -> bytes:
    """Return the answer REFUSED to a query, with its question and, if it has EDNS, an OPT record."""
    flags = _RESPONSE | query.flags & (_RECURSION | _CHECKING_DISABLED) | REFUSED
    question = message[_HEADER.size : query.end]
    if query.edns == _NO_EDNS:
        return _HEADER.pack(query.id, flags, 1, 0, 0, 0) + question
    option = b"\0" + _RECORD.pack(OPT, _UDP_SIZE, query.edns & _DNSSEC_OK, 0)
    return _HEADER.pack(query.id, flags, 1, 0, 0, 1) + question + option


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at an offset, and the offset behind it; raise PacketError, or IndexError beyond the message.

    A pointer leads to a name that begins before the one that contains it, so no name contains itself.
    """
    labels, size, pointers, begin, behind = [], 1, 0, at, 0
    while length := message[at]:
        if length <= _MAX_LABEL:
            labels.append(message[at + 1 : at + 1 + length])
            at += length + 1
            size += length + 1
        else:
            target = (length & ~_POINTER) << 8 | message[at + 1]
            pointers += 1
            if length < _POINTER or target >= begin or target < _HEADER.size or pointers > _MAX_POINTERS:
                raise PacketError(DropReason.DNS_MALFORMED)
            behind = behind or at + 2
            at = begin = target
        if size > _MAX_NAME:
            raise PacketError(DropReason.DNS_MALFORMED)
    name = b".".join(labels).lower()
    dots = len(labels) - 1 if labels else 0
    if len(name.translate(None, _PLAIN)) != dots:
        name = b".".join(map(_escaped, labels))
    return name.decode(), behind or at + 1


def _escaped(label: bytes) -> bytes:
    """Return a label in lower case with its special bytes escaped."""
    return b"".join(map(_escaped_byte, label.lower()))


def _escaped_byte(byte: int) -> bytes:
    if byte in _QUOTED:
        return b"\\%c" % byte
    return b"%c" % byte if 0x20 < byte < 0x7F else b"\\%03d" % byte


def _read_answers(message: bytes, at: int, number: int, name: str) -> tuple[tuple[str, ...], tuple[Address, ...], int]:
    """Return the chain of aliases from a name, the addresses at its end, and the offset behind the section."""
    targets: dict[str, str] = {}
    addresses: dict[str, list[Address]] = {}
    for _ in range(number):
        owner, at = (name, at + 2) if message[at : at + 2] == _OF_QUESTION else _read_name(message, at)
        kind, klass, ttl, size = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        end = at + size
        if klass == INTERNET and kind in _LENGTHS:
            if size != _LENGTHS[kind] or end > len(message):
                raise PacketError(DropReason.DNS_MALFORMED)
            addresses.setdefault(owner, []).append(Address(message[at:end], ttl if ttl < 1 << 31 else 0))
        elif klass == INTERNET and kind == CNAME:
            target, behind = _read_name(message, at)
            if behind != end:
                raise PacketError(DropReason.DNS_MALFORMED)
            targets.setdefault(owner, target)
        at = end
    chain = [name]
    while chain[-1] in targets:
        chain.append(targets.pop(chain[-1]))
    return tuple(chain[1:]), tuple(addresses.get(chain[-1], ())), at


def _skip_record(message: bytes, at: int) -> int:
    """Return the offset behind a record."""
    _, at = _read_name(message, at)
    size: int = _RECORD.unpack_from(message, at)[3]
    return at + _RECORD.size + size


def _read_additional(message: bytes, at: int, number: int) -> int:
    """Return the flags of OPT in the last section, -1 without one; raise PacketError if the message does not end there.

    The owner of OPT is the root, and a message has at most one (RFC 6891 section 6.1.1).
    """
    edns = _NO_EDNS
    for _ in range(number):
        owner, behind = _read_name(message, at)
        kind, _, ttl, size = _RECORD.unpack_from(message, behind)
        if kind == OPT:
            if owner or edns != _NO_EDNS:
                raise PacketError(DropReason.DNS_MALFORMED)
            edns = ttl
        at = behind + _RECORD.size + size
    if at != len(message):
        raise PacketError(DropReason.DNS_MALFORMED)
    return edns
