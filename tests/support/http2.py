"""HTTP/2 with prior knowledge, and gRPC on it: a server in an event loop, and a client that may break the rules."""

import asyncio
import socket
from collections.abc import Iterable
from typing import NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from nfq_enforcer.lab.grpc import EMPTY_MESSAGE

__all__ = ["EMPTY_MESSAGE", "Fields", "Http2Client", "Http2Response", "Http2Server"]

Fields = Iterable[tuple[str, str]]


class Http2Server:
    """HTTP/2 server: answers each request, as gRPC where it is gRPC, and keeps the headers that it received."""

    def __init__(self) -> None:
        """Start without requests."""
        self.seen: list[dict[str, str]] = []
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> None:
        """Listen on a port."""
        self._server = await asyncio.start_server(self.serve, ["0.0.0.0", "::"], port)

    async def close(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until it ends."""
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        try:
            while True:
                writer.write(connection.data_to_send())
                await writer.drain()
                data = await reader.read(1 << 16)
                if not data:
                    return
                for event in connection.receive_data(data):
                    self._handle(connection, event)
        except (OSError, ProtocolError):
            pass
        finally:
            writer.close()

    def _handle(self, connection: H2Connection, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.seen.append({str(name): str(value) for name, value in event.headers})
        if isinstance(event, DataReceived):
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if isinstance(event, StreamEnded):
            is_grpc = self.seen[-1].get("content-type") == "application/grpc"
            content = "application/grpc" if is_grpc else "text/plain"
            connection.send_headers(event.stream_id, [(":status", "200"), ("content-type", content)])
            connection.send_data(event.stream_id, EMPTY_MESSAGE if is_grpc else b"ok", end_stream=not is_grpc)
            if is_grpc:
                connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)


class Http2Response(NamedTuple):
    """HTTP/2 response: headers with trailers, and body; ``reset`` if the stream or the connection ended without one."""

    headers: dict[str, str]
    body: bytes
    reset: ErrorCodes | int | None = None

    @property
    def status(self) -> int:
        """Return the status, 0 without one."""
        return int(self.headers.get(":status", 0))


class Http2Client:
    """HTTP/2 client: sends requests one after another, without checks of their headers."""

    def __init__(self, connection: socket.socket) -> None:
        """Start HTTP/2 on a connection."""
        self.socket = connection
        self.http = H2Connection(
            H2Configuration(header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.http.initiate_connection()

    def request(self, path: str, method: str = "GET", *fields: tuple[str, str], body: bytes = b"") -> Http2Response:
        """Send a request with correct pseudo-headers; return its response."""
        pseudo = ((":method", method), (":scheme", "http"), (":authority", "h"), (":path", path))
        return self.send((*pseudo, *fields), body)

    def send(self, fields: Fields, body: bytes = b"") -> Http2Response:
        """Send a request with these headers; return its response."""
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, fields, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.socket.sendall(self.http.data_to_send())
        return self._receive(stream)

    def _receive(self, stream: int) -> Http2Response:
        """Return the response of a stream; a peer that breaks off the connection leaves it without the rest."""
        response = Http2Response({}, b"")
        while data := self._read():
            try:
                events = self.http.receive_data(data)
            except ProtocolError:
                return response._replace(reset=ErrorCodes.PROTOCOL_ERROR)
            for event in events:
                response = _extended(response, event, stream)
                if response.reset is not None or (isinstance(event, StreamEnded) and event.stream_id == stream):
                    return response
            self.socket.sendall(self.http.data_to_send())
        return response._replace(reset=ErrorCodes.CANCEL)

    def _read(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionError:
            return b""


def _extended(response: Http2Response, event: Event, stream: int) -> Http2Response:
    """Return the response with what an event adds to it."""
    match event:
        case ConnectionTerminated():
            return response._replace(reset=event.error_code)
        case ResponseReceived() | TrailersReceived() if event.stream_id == stream:
            added = {str(name): str(value) for name, value in event.headers or ()}
            return response._replace(headers=response.headers | added)
        case DataReceived() if event.stream_id == stream:
            return response._replace(body=response.body + event.data)
        case StreamReset() if event.stream_id == stream:
            return response._replace(reset=event.error_code)
    return response
