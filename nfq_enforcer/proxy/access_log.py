"""Access log: Envoy's JSON lines, from the pipe to records.

Envoy writes to a pipe of limited size and does not wait: while nobody reads, further lines are lost, and a line may be
cut.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nfq_enforcer.proxy.envoy import open_pipe

_SIZE = 1 << 20  # bytes of the pipe
_CHUNK = 1 << 16
_START = b'{"client":'  # of a line; within a text, the quotes would be escaped
_LONGEST = 1 << 16  # bytes of a line


class LoggedRequest(NamedTuple):
    """LoggedRequest: one request, as Envoy evaluated it, and its response."""

    time: float  # s, Unix time at which the request arrived
    slot: int
    client: tuple[str, int]
    server: tuple[str, int]
    method: str
    path: str  # normalised, with the query; the first 2,048 bytes
    host: str
    protocol: str  # HTTP/1.0, HTTP/1.1 or HTTP/2
    code: int  # 0: no response
    details: str  # Envoy's response code details
    flags: str  # Envoy's response flags; empty without any
    duration: int  # ms
    grpc: int | None  # gRPC status
    headers: tuple[tuple[str, str], ...]  # those that rules name, in lower case, as the client sent them


class LoggedHello(NamedTuple):
    """LoggedHello: the beginning of one connection, as Envoy evaluated it."""

    time: float  # s, Unix time at which the connection began
    slot: int
    client: tuple[str, int]
    server: tuple[str, int]
    name: str  # server name, with ASCII letters in lower case; empty: none
    details: str  # Envoy's connection termination details; empty without any
    has_hello: bool  # the connection begins with a complete ClientHello


class PipeReader:
    """PipeReader: passes each line of a pipe to a function."""

    def __init__(self, path: Path, on_line: Callable[[bytes], None]) -> None:
        """Open the pipe and read it in the running event loop."""
        self._descriptor = open_pipe(path)
        self._on_line = on_line
        self._rest = b""
        with suppress(OSError):  # beyond the limit of all pipes of a user (pipe(7)); a smaller pipe loses lines earlier
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _SIZE)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Stop reading and close the pipe."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        *lines, rest = (self._rest + os.read(self._descriptor, _CHUNK)).split(b"\n")
        self._rest = rest if len(rest) <= _LONGEST else b""
        for line in lines:
            self._on_line(line)


def parse(line: bytes) -> LoggedRequest | LoggedHello | None:
    """Return the record of a line, which may follow a part of a lost one; None for a line without a record."""
    start = max(0, line.rfind(_START))
    try:
        fields = json.loads(line[start:].decode("utf-8", "replace"))
        return _hello(fields) if "hello" in fields else _record(fields)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _hello(fields: dict[str, Any]) -> LoggedHello:
    return LoggedHello(
        float(fields["time"]),
        int(fields["slot"]),
        _address(fields["client"]),
        _address(fields["server"]),
        _text(fields["name"]),
        _text(fields["details"]),
        _text(fields["hello"]) != "",
    )


def _record(fields: dict[str, Any]) -> LoggedRequest:
    flags, grpc = _text(fields["flags"]), fields["grpc"]
    return LoggedRequest(
        float(fields["time"]),
        int(fields["slot"]),
        _address(fields["client"]),
        _address(fields["server"]),
        _text(fields["method"]),
        _text(fields["path"]),
        _text(fields["host"]),
        _text(fields["protocol"]),
        int(fields["code"] or 0),
        _text(fields["details"]),
        flags,
        int(fields["duration"] or 0),
        None if grpc in {None, "-"} else int(grpc),
        tuple((name, str(value)) for name, value in (fields["headers"] or {}).items()),
    )


def _text(value: str | None) -> str:
    return "" if value in {None, "-"} else str(value)


def _address(text: str) -> tuple[str, int]:
    """Return address and port of ``10.0.0.1:80`` or ``[fd00::1]:80``."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)
