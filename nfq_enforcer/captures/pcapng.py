"""pcapng: the blocks of a capture file, as bytes (IETF draft-ietf-opsawg-pcapng, sections 3.5 and 4.1 to 4.6). Pure.

scapy's writer has no statistics, no comment on a section or an interface, and writes to named files only.

A file is one section: a header, one interface, packets, and statistics. The byte order is little endian. Times have a
resolution of microseconds, the default (if_tsresol).
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

LINKTYPE_RAW = 101  # packets begin with the IPv4 or IPv6 header; https://www.tcpdump.org/linktypes.html

_SECTION, _INTERFACE, _PACKET, _STATISTICS = 0x0A0D0D0A, 1, 6, 5  # block types
_BYTE_ORDER = 0x1A2B3C4D
_VERSION = 1, 0
_UNKNOWN_LENGTH = -1  # of the section
_END_OF_OPTIONS, _COMMENT = 0, 1  # option codes of every block
_OS, _APPLICATION = 3, 4  # of the section
_NAME, _DESCRIPTION = 2, 3  # of the interface
_RECEIVED, _DROPPED = 4, 5  # of the statistics: isb_ifrecv, isb_ifdrop
_MAX_OPTION = 65535  # bytes: the length of an option is a field of 16 bits
_ONLY_INTERFACE = 0

_BLOCK_HEAD, _BLOCK_TAIL, _OPTION = struct.Struct("<II"), struct.Struct("<I"), struct.Struct("<HH")
_TIME = struct.Struct("<II")  # upper and lower half
_COUNT = struct.Struct("<Q")


class Packet(NamedTuple):
    """Packet: a record of the file."""

    time_us: int  # microseconds since the epoch
    length: int  # bytes on the wire
    data: bytes  # its first bytes
    comment: str  # empty: none


def section(application: str, system: str) -> bytes:
    """Return the Section Header Block, with the names of the writing program and of the operating system."""
    body = struct.pack("<IHHq", _BYTE_ORDER, *_VERSION, _UNKNOWN_LENGTH)
    return _block(_SECTION, body, ((_OS, _text(system)), (_APPLICATION, _text(application))))


def interface(linktype: int, snaplen: int, name: str, description: str) -> bytes:
    """Return the Interface Description Block; ``snaplen``: bytes of a packet at most."""
    options = ((_NAME, _text(name)), (_DESCRIPTION, _text(description)))
    return _block(_INTERFACE, struct.pack("<HHI", linktype, 0, snaplen), options)


def packet(record: Packet) -> bytes:
    """Return the Enhanced Packet Block of a packet."""
    time = _time(record.time_us)
    body = _BLOCK_TAIL.pack(_ONLY_INTERFACE) + time + struct.pack("<II", len(record.data), record.length)
    comment = ((_COMMENT, _text(record.comment)),) if record.comment else ()
    return _block(_PACKET, _padded(body + record.data), comment)


def statistics(time_us: int, received: int, dropped: int, comment: str) -> bytes:
    """Return the Interface Statistics Block: packets seen, and those of them that are not in the file."""
    options = ((_COMMENT, _text(comment)), (_RECEIVED, _COUNT.pack(received)), (_DROPPED, _COUNT.pack(dropped)))
    return _block(_STATISTICS, _BLOCK_TAIL.pack(_ONLY_INTERFACE) + _time(time_us), options)


def _block(kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    for code, value in options:
        body += _OPTION.pack(code, len(value)) + _padded(value)
    body += _OPTION.pack(_END_OF_OPTIONS, 0)
    length = _BLOCK_HEAD.size + len(body) + _BLOCK_TAIL.size
    return _BLOCK_HEAD.pack(kind, length) + body + _BLOCK_TAIL.pack(length)


def _time(time_us: int) -> bytes:
    return _TIME.pack(time_us >> 32, time_us & 0xFFFFFFFF)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(text: str) -> bytes:
    """Return UTF-8 of at most the length of an option; a character is not cut in two."""
    return text.encode(errors="replace")[:_MAX_OPTION].decode(errors="ignore").encode()
