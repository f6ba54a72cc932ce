"""The client of the API and servers that fail, or go without a word, at each step of a TLS connection."""

import asyncio
import socket
import ssl
import struct
from pathlib import Path

import pytest

from nfq_enforcer.workloads.kubernetes import client as client_module
from nfq_enforcer.workloads.kubernetes.access import Access
from nfq_enforcer.workloads.kubernetes.client import ApiClient, ApiError
from tests.support.redis_servers import Certificates

NOT_TLS, ALERT = b"HTTP/1.0 400 Bad Request\r\n\r\n", bytes((21, 3, 3, 0, 2, 2, 80))  # internal_error
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Return the sockets that the client has made so far."""
    sockets: list[socket.socket] = []
    make = client_module._make_socket

    def record(*arguments: object) -> socket.socket:
        sockets.append(make(*arguments))  # type: ignore[arg-type]
        return sockets[-1]

    monkeypatch.setattr(client_module, "_make_socket", record)
    return sockets


def access(port: int, authority: Path) -> Access:
    return Access(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(authority)))


async def test_the_end_of_a_client_does_not_wait_for_the_servers_farewell(
    certificates: Certificates, made: list[socket.socket]
) -> None:
    """The server sends one event, and reads nothing any more: its half of the TLS shutdown never comes."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.of("server"))
    done = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(ANSWER)
        await done.wait()
        writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        client = ApiClient(access(server.sockets[0].getsockname()[1], certificates.ca))
        seen = asyncio.Event()

        async def watch() -> None:
            async for _ in client.watch("/x", {}, 60):
                seen.set()

        task = asyncio.create_task(watch())
        await asyncio.wait_for(seen.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()
        assert [one.fileno() for one in made] == [-1]
        done.set()


@pytest.mark.parametrize(
    ("reply", "reset", "sentence"),
    [
        (b"", False, "the connection was closed"),
        (b"", True, "Connection reset by peer"),
        (NOT_TLS, False, "TLS: wrong version number"),
        (ALERT, False, "TLS: tlsv1 alert internal error"),
    ],
    ids=["closes", "resets", "no TLS", "alert"],
)
async def test_a_server_that_ends_the_handshake_is_told_in_a_sentence_and_leaves_no_socket(
    certificates: Certificates, made: list[socket.socket], reply: bytes, reset: bool, sentence: str
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(reply)
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = ApiClient(access(port, certificates.ca))
        with pytest.raises(ApiError) as caught:
            await client.get("/x", {})
        await client.close()

    assert str(caught.value) == f"https://127.0.0.1:{port}: it cannot be reached: {sentence}"
    assert [one.fileno() for one in made] == [-1]
