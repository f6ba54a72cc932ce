"""Client of a daemon: an invalid answer becomes a sentence. A server on a socket sends the answers of a test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from nfq_enforcer.workloads.containers import daemon
from nfq_enforcer.workloads.containers.daemon import Daemon, DaemonError, connected


def answer(body: bytes, status: str = "200 OK", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nContent-Type: application/json\r\n\r\n".encode() + body


def stream(*chunks: bytes, ends: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + (b"0\r\n\r\n" if ends else b"")


Handler = Callable[[asyncio.StreamReader], Coroutine[Any, Any, bytes]]


@asynccontextmanager
async def serving(socket: Path, handler: Handler) -> AsyncIterator[Daemon]:
    """Give a client of a server; its handler returns the answer to a connection; all connections end."""
    ended: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(writer)
        writer.write(await handler(reader))
        writer.close()

    async with await asyncio.start_unix_server(serve, socket):
        try:
            async with connected(str(socket)) as client:
                yield client
        finally:
            for writer in ended:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
            socket.unlink()


def ask(folder: Path, written: bytes, question: Callable[[Daemon], Coroutine[Any, Any, Any]]) -> tuple[Any, bytes]:
    """Return the result of a question, and the request that the server has received."""
    received = []

    async def handler(reader: asyncio.StreamReader) -> bytes:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        return written

    async def run() -> Any:
        async with serving(folder / "d.sock", handler) as client:
            return await question(client)

    return asyncio.run(run()), b"".join(received)


async def events(client: Daemon) -> list[Any]:
    async with client.events(1795827215.5) as found:
        return [event async for event in found]


def sentence(folder: Path, written: bytes, question: Callable[[Daemon], Coroutine[Any, Any, Any]]) -> str:
    with pytest.raises(DaemonError) as raised:
        ask(folder, written, question)
    return str(raised.value).replace(str(folder), "")


def test_an_answer_is_read(tmp_path: Path) -> None:
    found, request = ask(tmp_path, answer(b'[{"Id": "a"}]'), Daemon.running)

    assert found == [{"Id": "a"}]
    assert request.startswith(b"GET /containers/json HTTP/1.1\r\n")


def test_a_container_that_does_not_exist_has_no_answer(tmp_path: Path) -> None:
    found, request = ask(tmp_path, answer(b"{}", "404 Not Found"), lambda client: client.inspect("a"))

    assert found is None
    assert request.startswith(b"GET /containers/a/json HTTP/1.1\r\n")


def test_one_container_is_asked_for_in_any_state(tmp_path: Path) -> None:
    _, request = ask(tmp_path, answer(b"[]"), lambda client: client.summary("a"))

    _, target, _ = request.decode().split(" ", 2)
    path, _, query = target.partition("?")
    assert (path, parse_qs(query)) == ("/containers/json", {"all": ["1"], "filters": ['{"id": ["a"]}']})


def test_events_are_read_line_by_line_whatever_their_chunks(tmp_path: Path) -> None:
    found, request = ask(tmp_path, stream(b'{"Action": "die"}\n{"Act', b'ion": "start"}\n', b"[1]\n\n"), events)

    assert found == [{"Action": "die"}, {"Action": "start"}]
    assert request.startswith(b"GET /events?since=1795827215.500000000&filters=")


@pytest.mark.parametrize("question", [Daemon.running, events])
def test_a_failure_of_the_daemon_is_a_sentence(
    question: Callable[[Daemon], Coroutine[Any, Any, Any]], tmp_path: Path
) -> None:
    failed = answer(b'{"message": "\x1b[2Jfull"}', "500 Internal Server Error")

    text = sentence(tmp_path, failed, question)

    assert text == r"""/d.sock: the daemon answers 500: {"message": "\x1b[2Jfull"}"""


@pytest.mark.parametrize(
    ("written", "question", "reason"),
    [
        (answer(b"{"), Daemon.running, "the answer of the daemon cannot be read: it is not JSON"),
        (stream(b"nonsense\n"), events, "the answer of the daemon cannot be read: it is not JSON"),
        (answer(b"[", length=9), Daemon.running, "the daemon has ended the connection"),
        (stream(b'{"Action": "die"}\n', ends=False), events, "the daemon has ended the connection"),
        (b"", Daemon.running, "the daemon has ended the connection"),
    ],
)
def test_another_answer_is_a_sentence(
    written: bytes, question: Callable[[Daemon], Coroutine[Any, Any, Any]], reason: str, tmp_path: Path
) -> None:
    assert sentence(tmp_path, written, question) == f"/d.sock: {reason}"


def test_an_answer_of_another_protocol_is_a_sentence(tmp_path: Path) -> None:
    assert sentence(tmp_path, b"220 smtp\r\n\r\n", Daemon.running).startswith("/d.sock: ")


def test_the_sizes_of_answers_and_events_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_MAX_ANSWER", 10)
    monkeypatch.setattr(daemon, "_MAX_EVENT", 10)

    assert sentence(tmp_path, answer(b"[" + b" " * 10), Daemon.running) == "/d.sock: an answer has more than 10 bytes"
    assert sentence(tmp_path, stream(b"x" * 11), events) == "/d.sock: an event has more than 10 bytes"


def test_a_missing_socket_is_a_sentence(tmp_path: Path) -> None:
    async def run() -> None:
        async with connected(str(tmp_path / "none")) as client:
            await client.running()

    with pytest.raises(DaemonError) as raised:
        asyncio.run(run())

    assert str(raised.value) == f"{tmp_path}/none: No such file or directory"


def test_a_daemon_that_does_not_answer_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_ANSWER", 0.01)

    async def hang(reader: asyncio.StreamReader) -> bytes:
        return await reader.read()

    async def run() -> None:
        async with serving(tmp_path / "d.sock", hang) as client:
            await client.running()

    with pytest.raises(DaemonError, match=r"d\.sock: no answer in time"):
        asyncio.run(run())
