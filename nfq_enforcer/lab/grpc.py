"""Unary gRPC calls over HTTP/2 with prior knowledge (RFC 9113), of the standard library only.

The hosts of a lab send and answer such calls without a package, also on machines that have only Python. The client
sends one call after another on one connection, each with an empty message, and announces a header table of no size: the
blocks of header fields that it gets then need no state from block to block (RFC 7541). It decodes all printable ASCII
but the backslash. The server does not decode header fields: it answers every request with status 0. Neither end sends
enough for flow control to stop it.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

FIRST_LINE, _PREFACE_REST = b"PRI * HTTP/2.0\r\n", b"\r\nSM\r\n\r\n"  # of a connection, before the frames of its client
EMPTY_MESSAGE = bytes(5)  # not compressed, no bytes

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_NO_HEADER_TABLE = struct.pack("!HI", 1, 0)

# Header fields of the static table that have a status (RFC 7541, appendix A).
_STATUS = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}

# The Huffman code is canonical (RFC 7541, appendix B): characters in the order of their codes, by length in bits.
_LENGTHS = {
    **{5: "012aceiost", 6: " %-./3456789=A_bdfghlmnpru", 7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", 8: "&*,;XZ"},
    **{10: '!"()?', 11: "'+|", 12: "#>", 13: "\0$@[]~", 14: "^}", 15: "<`{"},
}


class Frame(NamedTuple):
    """Frame: one frame of HTTP/2, without padding."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Answer(NamedTuple):
    """Answer: to one call; ``status`` is the gRPC status, None in a response without one."""

    code: int  # of HTTP
    status: int | None
    message: str


async def call_methods(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, methods: Iterable[str]
) -> list[Answer]:
    """Call methods (``package.Service/Method``) one after another; return the answers.

    Raises ConnectionResetError if the connection or a stream ends before the answer does.
    """
    writer.write(FIRST_LINE + _PREFACE_REST + _frame(_SETTINGS, 0, 0, _NO_HEADER_TABLE))
    frames = _read_frames(reader, writer)
    answers = []
    for number, method in enumerate(methods):
        stream = 2 * number + 1
        pseudo = ((":method", "POST"), (":scheme", "http"), (":authority", authority), (":path", f"/{method}"))
        block = _block(*pseudo, ("content-type", "application/grpc"), ("te", "trailers"))
        writer.write(_frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, EMPTY_MESSAGE))
        answers.append(await _answer(frames, stream))
    return answers


async def answer_calls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> None:
    """Answer every call with this message and status 0, until the connection ends; its first line has been read."""
    headers = _block((":status", "200"), ("content-type", "application/grpc"))
    data, trailers = struct.pack("!BI", 0, len(message)) + message, _block(("grpc-status", "0"))
    writer.write(_frame(_SETTINGS, 0, 0))
    async for frame in _read_frames(reader, writer, len(_PREFACE_REST)):
        if frame.kind in {_DATA, _HEADERS} and frame.flags & _END_STREAM:
            writer.write(
                _frame(_HEADERS, _END_HEADERS, frame.stream, headers)
                + _frame(_DATA, 0, frame.stream, data)
                + _frame(_HEADERS, _END_HEADERS | _END_STREAM, frame.stream, trailers)
            )


def decode(block: bytes) -> dict[str, str]:
    """Return the header fields of a block for an empty header table; only statuses are known of the static table.

    Raises ValueError for a field that cannot be decoded.
    """
    fields, rest = {}, block
    while rest:
        first = rest[0]
        if first & 0x80:
            index, rest = _integer(rest, 7)
            if index in _STATUS:
                fields[":status"] = _STATUS[index]
        elif first & 0xE0 == 0x20:  # a new size of the header table
            _, rest = _integer(rest, 5)
        else:
            index, rest = _integer(rest, 6 if first & 0x40 else 4)
            name, rest = (":status" if index in _STATUS else "", rest) if index else _string(rest)
            fields[name], rest = _string(rest)
    fields.pop("", None)  # of other names in the static table
    return fields


async def _answer(frames: AsyncIterator[Frame], stream: int) -> Answer:
    """Return the answer on a stream: the fields of headers and trailers, and the message."""
    fields: dict[str, str] = {}
    block, data = b"", b""
    ends = False
    async for frame in frames:
        if frame.kind == _GOAWAY or (frame.stream == stream and frame.kind == _RST_STREAM):
            break
        if frame.stream != stream:
            continue
        ends |= frame.kind in {_DATA, _HEADERS} and bool(frame.flags & _END_STREAM)
        if frame.kind == _DATA:
            data += frame.payload
        elif frame.kind in {_HEADERS, _CONTINUATION}:
            block += frame.payload
            if not frame.flags & _END_HEADERS:
                continue
            fields |= decode(block)
            block = b""
        if ends:
            status = fields.get("grpc-status")
            return Answer(int(fields[":status"]), None if status is None else int(status), data[5:].decode())
    raise ConnectionResetError("the other side ended the call without an answer")


async def _read_frames(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, skipped: int = 0
) -> AsyncIterator[Frame]:
    """Yield the frames behind the skipped bytes until the connection ends, and acknowledge settings and pings."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        await reader.readexactly(skipped)
        while True:
            high, low, kind, flags, stream = struct.unpack("!BHBBI", await reader.readexactly(9))
            payload = await reader.readexactly(high << 16 | low)
            if kind in {_SETTINGS, _PING} and not flags & _ACK:
                writer.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            if kind in {_DATA, _HEADERS} and flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if kind == _HEADERS and flags & _PRIORITY:
                payload = payload[5:]
            yield Frame(kind, flags, stream & 0x7FFFFFFF, payload)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _block(*fields: tuple[str, str]) -> bytes:
    """Encode header fields as literals, which need no table."""
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields)


def _literal(text: str) -> bytes:
    """Encode a string without the Huffman code."""
    length, rest = bytes([min(len(text), 0x7F)]), len(text) - 0x7F
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return length + (bytes([rest]) if rest >= 0 else b"") + text.encode("ascii")


def _integer(data: bytes, bits: int) -> tuple[int, bytes]:
    """Decode an integer whose first byte has this many bits of it; return it and the rest of the data."""
    value = data[0] & (1 << bits) - 1
    if value < (1 << bits) - 1:
        return value, data[1:]
    for position, byte in enumerate(data[1:6]):
        value += (byte & 0x7F) << 7 * position
        if not byte & 0x80:
            return value, data[position + 2 :]
    raise ValueError("a header block has an integer that does not end, or is above 2^35")


def _string(data: bytes) -> tuple[str, bytes]:
    """Decode a string; return it and the rest of the data."""
    if not data:
        raise ValueError("a header block ends before its last string")
    length, rest = _integer(data, 7)
    if length > len(rest):
        raise ValueError("a header block has a string that is longer than the block")
    text = rest[:length]
    return _expanded(text) if data[0] & 0x80 else text.decode(), rest[length:]


def _codes() -> dict[tuple[int, int], str]:
    """Return the characters of the Huffman code by length and code."""
    codes: dict[tuple[int, int], str] = {}
    first = previous = 0
    for length, characters in _LENGTHS.items():
        first <<= length - previous
        codes |= {(length, code): character for code, character in enumerate(characters, first)}
        first, previous = first + len(characters), length
    return codes


_CODES = _codes()


def _expanded(data: bytes) -> str:
    """Decode a string in the Huffman code; the last byte is filled with ones."""
    text, length, code = "", 0, 0
    for bit in (byte >> shift & 1 for byte in data for shift in range(7, -1, -1)):
        length, code = length + 1, code << 1 | bit
        if (length, code) in _CODES:
            text += _CODES[length, code]
            length, code = 0, 0
    if length > 7 or code != (1 << length) - 1:
        raise ValueError("a header field has a character that is not printable ASCII")
    return text
