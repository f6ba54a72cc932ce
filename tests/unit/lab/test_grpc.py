"""gRPC calls of the lab's hosts: client and server meet those of ``h2``, and header fields are those of ``hpack``."""

import asyncio
import socket
import string
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.lab.grpc import FIRST_LINE, Answer, answer_calls, call_methods, decode
from tests.support.http2 import EMPTY_MESSAGE, Http2Client, Http2Server

METHODS = ("shop.Orders/Get", "shop.Orders/List", "a" * 300 + "/B")
READABLE = string.printable[:95].replace("\\", "")
Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
Event = Callable[[H2Connection, int], None]


def answers_of(server: Server, *methods: str) -> list[Answer]:
    """Return the answers of a server to the client's calls."""

    async def meet() -> list[Answer]:
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(server(*await asyncio.open_connection(sock=theirs)))
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            return await call_methods(reader, writer, "h", methods)
        finally:
            writer.close()
            await serving

    return asyncio.run(meet())


def server_of(*answers: Event) -> Server:
    """Return a server on ``h2`` that answers each request with the next of these functions."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        left = iter(answers)
        while data := await reader.read(1 << 16):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    next(left)(connection, event.stream_id)
            writer.write(connection.data_to_send())
        writer.close()

    return serve


def refuse(connection: H2Connection, stream: int) -> None:
    """Refuse a call as a proxy does: headers only."""
    fields = [(":status", "200"), ("grpc-status", "7"), ("grpc-message", "Access denied"), ("server", "envoy")]
    connection.send_headers(stream, fields, end_stream=True)


def pad(connection: H2Connection, stream: int) -> None:
    """Answer a ping before the call, with padded data, and without a gRPC status."""
    connection.ping(b"12345678")
    connection.send_headers(stream, [(":status", "404")])
    connection.send_data(stream, EMPTY_MESSAGE + b"none", end_stream=True, pad_length=9)


def split(connection: H2Connection, stream: int) -> None:
    """Answer with a block of header fields in several frames."""
    fields = [(":status", "503"), ("grpc-status", "14"), *((f"x-{number}", "v" * 2000) for number in range(30))]
    connection.send_headers(stream, fields, end_stream=True)


def test_each_call_has_its_answer_on_one_connection() -> None:
    server = Http2Server()

    assert answers_of(server.serve, *METHODS) == [Answer(200, 0, "")] * 3
    assert [seen[":path"] for seen in server.seen] == [f"/{method}" for method in METHODS]
    assert [seen["te"] for seen in server.seen] == ["trailers"] * 3


def test_answers_of_any_form_are_read() -> None:
    assert answers_of(server_of(refuse, pad, split), *METHODS) == [
        Answer(200, 7, ""),
        Answer(404, None, "none"),
        Answer(503, 14, ""),
    ]


@pytest.mark.parametrize("end", [H2Connection.reset_stream, lambda connection, _: connection.close_connection()])
def test_a_call_without_an_answer_is_an_error(end: Event) -> None:
    with pytest.raises(ConnectionResetError):
        answers_of(server_of(refuse, end), *METHODS)


def test_the_server_answers_calls_and_says_so_with_its_message() -> None:
    fields = (("content-type", "application/grpc"), ("te", "trailers"))

    async def serve(end: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=end)
        assert await reader.readline() == FIRST_LINE
        await answer_calls(reader, writer, b"back1 10.0.0.1")
        writer.close()

    def call(end: socket.socket) -> list[tuple[str, bytes]]:
        with end:
            client = Http2Client(end)
            responses = [client.request(f"/{method}", "POST", *fields, body=EMPTY_MESSAGE) for method in METHODS]
        return [(response.headers["grpc-status"], response.body) for response in responses]

    async def meet() -> list[tuple[str, bytes]]:
        ours, theirs = socket.socketpair()
        return (await asyncio.gather(asyncio.to_thread(call, ours), serve(theirs)))[0]

    assert asyncio.run(meet()) == [("0", b"\0\0\0\0\x0eback1 10.0.0.1")] * 3


@given(st.lists(st.tuples(st.text(READABLE, min_size=1), st.text(READABLE))), st.booleans())
def test_header_fields_are_those_that_were_encoded(fields: list[tuple[str, str]], huffman: bool) -> None:
    encoder = Encoder()
    encoder.header_table_size = 0
    block = encoder.encode([(":status", "204"), *((f"x-{name}", value) for name, value in fields)], huffman=huffman)

    assert decode(block) == {":status": "204", **{f"x-{name}": value for name, value in fields}}


@given(st.binary())
def test_any_bytes_are_header_fields_or_a_value_error(block: bytes) -> None:
    with suppress(ValueError):
        decode(block)
