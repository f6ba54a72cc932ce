"""API over a Unix socket: one line in, lines out, and one sentence for each error of either side."""

import asyncio
import contextlib
import errno
import grp
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.agent import api, client, defaults
from nfq_enforcer.agent.api import ApiServer, Params
from nfq_enforcer.errors import BadInput, NfqError, OutcomeUnknown
from nfq_enforcer.input_file import DOCUMENTS_SIZE
from nfq_enforcer.policy.yaml_source import MAX_VALUES
from nfq_enforcer.web.server import Limits

NOBODY = 65534


class Agent:
    """Agent with a few methods, and an event that is set when a stream ends."""

    def __init__(self) -> None:
        self.left = threading.Event()

    async def echo(self, params: Params) -> Any:
        return dict(params)

    async def refuse(self, params: Params) -> Any:
        raise BadInput("no such endpoint") if params.get("bad_input") else NfqError("not now")

    async def fail(self, _params: Params) -> Any:
        return object()  # not serializable as JSON: a bug

    async def count(self, params: Params) -> AsyncIterator[Any]:
        for number in range(params["to"]):
            yield number

    async def refuse_stream(self, _params: Params) -> AsyncIterator[Any]:
        yield "the first"
        raise BadInput("no such verdict")

    async def follow(self, _params: Params) -> AsyncIterator[Any]:
        try:
            yield "the first"
            await asyncio.Event().wait()
        finally:
            self.left.set()

    @property
    def methods(self) -> dict[str, api.Method]:
        return {
            "echo": self.echo,
            "refuse": self.refuse,
            "fail": self.fail,
            "count": self.count,
            "refuse_stream": self.refuse_stream,
            "follow": self.follow,
        }


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def serve(agent: Agent, path: Path) -> Callable[[Callable[[], Any]], Any]:
    """Return a function that runs a client in a thread while the agent listens."""
    return lambda ask: asyncio.run(serving(ApiServer(path, agent.methods), ask))


async def serving(server: ApiServer, ask: Callable[[], Any]) -> Any:
    """Run a client in a thread while the server listens."""
    await server.start()
    try:
        return await asyncio.to_thread(ask)
    finally:
        await server.stop()


Serve = Callable[[Callable[[], Any]], Any]


def raw(path: Path, line: bytes) -> Any:
    """Send a raw line and return the response."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as lines:
            return json.loads(lines.readline())


def error(ask: Callable[[], Any]) -> tuple[type[NfqError], str]:
    with pytest.raises(NfqError) as caught:
        ask()
    return caught.type, str(caught.value)


def test_a_call_gives_its_result(serve: Serve, path: Path) -> None:
    assert serve(lambda: client.call(path, "echo", verdict="DROPPED", last=3)) == {"verdict": "DROPPED", "last": 3}


def test_a_stream_gives_each_item_and_ends(serve: Serve, path: Path) -> None:
    assert serve(lambda: list(client.stream(path, "count", to=3))) == [0, 1, 2]


def test_an_item_comes_when_it_is_there_and_the_agent_learns_that_a_client_has_left(
    serve: Serve, path: Path, agent: Agent
) -> None:
    def ask() -> tuple[Any, bool]:
        with contextlib.closing(client.stream(path, "follow")) as items:
            first = next(items)
        return first, agent.left.wait(timeout=10)

    assert serve(ask) == ("the first", True)


def test_clients_are_served_side_by_side(serve: Serve, path: Path) -> None:
    def ask() -> Any:
        with contextlib.closing(client.stream(path, "follow")) as items:
            next(items)
            return client.call(path, "echo", still="here")

    assert serve(ask) == {"still": "here"}


@pytest.mark.parametrize(
    ("params", "expected"),
    [({"bad_input": True}, (BadInput, "no such endpoint")), ({}, (NfqError, "not now"))],
)
def test_a_refusal_reaches_the_client_as_the_error_that_it_is(
    params: dict[str, Any], expected: tuple[type[NfqError], str], serve: Serve, path: Path
) -> None:
    assert serve(lambda: error(lambda: client.call(path, "refuse", **params))) == expected


def test_a_refusal_in_the_midst_of_a_stream_reaches_the_client(serve: Serve, path: Path) -> None:
    def ask() -> Any:
        items = client.stream(path, "refuse_stream")
        return next(items), error(lambda: next(items))

    assert serve(ask) == ("the first", (BadInput, "no such verdict"))


def test_results_that_come_together_with_a_refusal_are_not_lost(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent.sock"))
        server.listen()
        asked = threading.Thread(target=_answer_at_once, args=(server,))
        asked.start()
        items = client.stream(tmp_path / "agent.sock", "observe")
        found = next(items), next(items), error(lambda: next(items))
        asked.join()

    assert found == (1, 2, (BadInput, "no"))


def _answer_at_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b'{"result": 1}\n{"result": 2}\n{"error": "no", "exit_code": 2}\n')


def test_an_unknown_method_is_refused_with_those_that_there_are(serve: Serve, path: Path) -> None:
    assert serve(lambda: error(lambda: client.call(path, "frobnicate"))) == (
        BadInput,
        "unknown method 'frobnicate'; allowed: count, echo, fail, follow, refuse, refuse_stream",
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense\n", "it is not JSON; "),
        (b"\xff\n", "it is not valid Unicode (UTF-8); "),
        (b"\n", "it is not JSON; "),
        (b"[]\n", ""),
        (b"null\n", ""),
        (b"{}\n", ""),
        (b'{"method": []}\n', ""),
        (b'{"method": "echo", "params": 3}\n', ""),
        (b'{"method": "echo"', "it is not JSON; "),
        (b"[" * 1_000_000 + b"\n", "it is nested too deeply; "),
        (b'{"method": "echo", "params": {"a": NaN}}\n', "NaN is not a number; "),
        (b'{"method": "echo", "params": {"a": ' + b"9" * 5000 + b"}}\n", f"the number {'9' * 20}… is too large; "),
        (b'{"method": "echo", "params": {"a": 1e999}}\n', "the number 1e999 is too large; "),
        (b'{"method": "\\ud800"}\n', "it is not valid Unicode (UTF-8); "),
        (b'{"method": "echo", "params": {"a": ' + b'{"a":' * 100_000 + b"\n", "it is nested too deeply; "),
    ],
    ids=range(15),
)
def test_what_is_no_request_is_refused_with_what_one_is(
    line: bytes, reason: str, serve: Serve, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert serve(lambda: raw(path, line)) == {
        "error": f'{reason}a request is one line of JSON: {{"method": "…", "params": {{…}}}}',
        "exit_code": 2,
    }
    assert caplog.records == []


def test_a_request_without_params_has_none(serve: Serve, path: Path) -> None:
    assert serve(lambda: raw(path, b'{"method": "echo"}\n')) == {"result": {}}


def test_a_request_beyond_measure_is_refused(agent: Agent, path: Path) -> None:
    server = ApiServer(path, agent.methods, Limits(request=1000))

    assert asyncio.run(serving(server, lambda: raw(path, b'{"method": "' + b"x" * 1000 + b"\n"))) == {
        "error": "a request has at most 1000 bytes",
        "exit_code": 2,
    }


def test_a_request_of_17_megabytes_is_answered(serve: Serve, path: Path) -> None:
    def ask() -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"x" * (17 << 20) + b"\n")
            with connection.makefile("rb") as lines:
                return json.loads(lines.readline())

    assert serve(ask) == {"error": f"a request has at most {1 << 24} bytes", "exit_code": 2}


def test_a_large_request_is_read(serve: Serve, path: Path) -> None:
    text = "x" * (4 << 20)

    assert serve(lambda: client.call(path, "echo", text=text)) == {"text": text}


def test_an_unknown_method_is_shown_in_part(serve: Serve, path: Path) -> None:
    _, message = serve(lambda: error(lambda: client.call(path, "\x1b" + "x" * 100_000)))

    assert message.startswith(r"unknown method '\x1bxxx")
    assert len(message) < 300


def test_a_request_that_does_not_end_is_refused_after_a_while(agent: Agent, path: Path) -> None:
    def ask() -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"method":')
            with connection.makefile("rb") as lines:
                return json.loads(lines.readline())

    server = ApiServer(path, agent.methods, Limits(request=1000, request_time=0.05))

    assert asyncio.run(serving(server, ask))["error"] == "a request has at most 0.05 seconds to arrive as a whole"


def test_clients_that_wait_do_not_lock_others_out(agent: Agent, path: Path) -> None:
    def ask() -> list[Any]:
        with contextlib.ExitStack() as waiting:
            for _ in range(40):
                connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(path))
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(b'{"method":')
            return [client.call(path, "echo", number=number) for number in range(10)]

    server = ApiServer(path, agent.methods, Limits(request=1000, clients=4))

    assert asyncio.run(serving(server, ask)) == [{"number": number} for number in range(10)]


def test_followers_leave_room_for_single_results(agent: Agent, path: Path) -> None:
    def ask() -> tuple[Any, Any]:
        with contextlib.ExitStack() as following:
            for _ in range(4):
                next(following.enter_context(contextlib.closing(client.stream(path, "follow"))))
            return error(lambda: next(client.stream(path, "follow"))), client.call(path, "echo", still="here")

    server = ApiServer(path, agent.methods, Limits(request=1000, clients=8))

    assert asyncio.run(serving(server, ask)) == (
        (NfqError, "too many clients: 4 already follow this agent; try again later"),
        {"still": "here"},
    )


def test_a_follower_that_does_not_read_is_disconnected(path: Path) -> None:
    left = threading.Event()

    async def flood(_params: Params) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 100_000
        finally:
            left.set()

    def ask() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"method": "flood"}\n')
            return left.wait(timeout=10)

    server = ApiServer(path, {"flood": flood}, Limits(request=1000, send_time=0.05, flush=0.05))

    assert asyncio.run(serving(server, ask))


def test_who_asks_nothing_gets_nothing(serve: Serve, path: Path) -> None:
    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1)

    assert serve(ask) == b""


def test_a_bug_of_the_agent_is_a_sentence_for_the_client_and_a_line_in_the_log(
    serve: Serve, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert serve(lambda: error(lambda: client.call(path, "fail"))) == (
        NfqError,
        "the agent failed at this request; its log has the reason",
    )
    assert "TypeError" in caplog.text


def test_the_socket_is_roots_alone_and_goes_with_the_agent(serve: Serve, path: Path) -> None:
    before = os.umask(0o022)
    os.umask(before)

    server = ApiServer(path, {}, group="")
    assert stat.S_IMODE(asyncio.run(serving(server, lambda: path.stat().st_mode))) == 0o600
    assert not path.exists()
    assert os.umask(before) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_socket_is_open_to_the_members_of_its_group(path: Path) -> None:
    group = grp.getgrgid(NOBODY)
    found = asyncio.run(serving(ApiServer(path, {}, group=group.gr_name), path.stat))

    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)


def test_a_group_that_the_host_does_not_have_is_refused(path: Path) -> None:
    assert error(lambda: asyncio.run(serving(ApiServer(path, {}, group="nobody-at-all"), path.stat))) == (
        NfqError,
        "api.group: this host has no group 'nobody-at-all': create it, or choose another, or \"\" for root alone",
    )
    assert not path.exists()


def test_a_follower_does_not_keep_the_agent_from_its_end(agent: Agent, path: Path) -> None:
    async def stopping() -> bytes:
        server = ApiServer(path, agent.methods)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"method": "follow"}\n')
        await reader.readline()
        await server.stop()
        rest = await reader.read()
        writer.close()
        return rest

    assert asyncio.run(stopping()) == b""
    assert agent.left.is_set()


def test_a_server_that_never_started_can_be_stopped(path: Path) -> None:
    asyncio.run(ApiServer(path, {}).stop())


def start(path: Path) -> None:
    async def starting() -> None:
        server = ApiServer(path, {})
        await server.start()
        await server.stop()

    asyncio.run(starting())


def test_a_second_agent_does_not_take_the_socket_of_the_first(serve: Serve, path: Path) -> None:
    message = f"another agent is listening on {path}: stop it, or choose another api.socket"

    assert serve(lambda: (error(lambda: start(path)), client.call(path, "echo", still="here"))) == (
        (NfqError, message),
        {"still": "here"},
    )


def test_a_socket_that_a_killed_agent_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    start(path)


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")

    assert error(lambda: start(path)) == (NfqError, f"cannot listen on {path}: it is there and is not a socket")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)

    assert error(lambda: start(path)) == (
        NfqError,
        f"cannot listen on {path}: it is {len(str(path))} bytes long; allowed: at most 107",
    )


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "run" / "agent.sock"

    assert error(lambda: start(path)) == (NfqError, f"cannot listen on {path}: {os.strerror(errno.ENOTDIR)}")


def test_without_an_agent_a_client_is_told_how_to_start_one(path: Path) -> None:
    assert error(lambda: client.call(path, "status")) == (
        client.NoAgent,
        f"no agent is listening on {path}: start one with 'nfq-enforcer agent', or name its socket with --socket",
    )


def test_a_client_that_may_not_ask_is_told_to_use_sudo(serve: Serve, path: Path) -> None:
    def ask() -> Any:
        with as_nobody(path.parent):
            return error(lambda: client.call(path, "echo"))

    assert serve(ask) == (NfqError, f"no permission to ask the agent at {path}: run this with sudo")


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Deny this process access to a folder; root becomes another user, because modes do not bind root."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


@contextlib.contextmanager
def stranger(path: Path, *, answer: bytes | None) -> Iterator[None]:
    """Listen, and disconnect the client after this answer, or within its request (b""). None: do nothing."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answering() -> None:
            if answer is not None:
                with listening.accept()[0] as connection:
                    connection.recv(1000 if answer else 1)
                    connection.sendall(answer)

        thread = threading.Thread(target=answering)
        thread.start()
        yield
        thread.join()


def test_an_agent_that_hangs_up_on_a_question_is_told(path: Path) -> None:
    with stranger(path, answer=b""):  # most of the request is unread, so the kernel resets the client's socket
        kind, message = error(lambda: client.call(path, "status"))

    assert (kind, message) == (NfqError, f"the agent at {path} hung up without an answer; its log says why")


@pytest.mark.parametrize("answer", [b"220 ready\r\n", b'{"result": tr', b"3\n", b"{}\n"])
def test_what_is_no_answer_is_told(answer: bytes, path: Path) -> None:
    with stranger(path, answer=answer):
        assert error(lambda: list(client.stream(path, "status"))) == (
            NfqError,
            f"what came from {path} is not an agent's answer: is it an agent of this version?",
        )


def test_an_agent_that_does_not_answer_is_not_waited_for_forever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.01)

    with stranger(path, answer=None):
        assert error(lambda: client.call(path, "status")) == (NfqError, f"the agent at {path} does not answer")


def test_a_call_may_be_given_a_time_of_its_own(path: Path) -> None:
    with stranger(path, answer=None):
        assert error(lambda: client.call(path, "status", timeout=0.01)) == (
            NfqError,
            f"the agent at {path} does not answer",
        )


WRITES = ("apply", "delete", "delete_endpoints", "conntrack_flush", "store_import", "store_gc")


@pytest.mark.parametrize("method", WRITES)
def test_a_change_without_an_answer_has_an_unknown_outcome(
    method: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STATUS_TIMEOUT", 0.01)
    with stranger(path, answer=None):
        kind, message = error(lambda: client.call(path, method, timeout=0.01))

    assert kind is OutcomeUnknown
    assert message.startswith(f"the agent at {path} does not answer; the outcome is unknown, and the change may still")
    assert "check with 'nfq-enforcer " in message


def test_a_change_that_takes_long_has_an_unknown_outcome_with_the_work_at_it(path: Path) -> None:
    async def apply(_: Params) -> None:
        await asyncio.Event().wait()

    async def status(_: Params) -> dict[str, Any]:
        return {"working": [{"text": "compiling policy"}]}

    server = ApiServer(path, {"apply": apply, "status": status})
    kind, message = asyncio.run(serving(server, lambda: error(lambda: client.call(path, "apply", timeout=0.01))))

    assert kind is OutcomeUnknown
    assert message.startswith(f"the agent at {path} does not answer, and is at work: compiling policy; the outcome is")


@pytest.mark.parametrize(("method", "advice"), [("apply", "; load fewer documents at a time"), ("observe", "")])
def test_a_request_that_is_too_long_is_not_sent_and_has_advice(method: str, advice: str, path: Path) -> None:
    kind, message = error(lambda: client.call(path, method, files=[("many", "x" * defaults.MAX_REQUEST)]))

    assert kind is BadInput
    assert message.startswith(f"the request has 16.0 MiB; allowed: at most 16{advice}")


def test_the_advice_names_each_limit_of_a_file(path: Path) -> None:
    _, message = error(lambda: client.call(path, "apply", files=[("many", "x" * defaults.MAX_REQUEST)]))

    assert f"where a file has up to {DOCUMENTS_SIZE >> 20} MiB and {MAX_VALUES:,} values" in message


def test_a_change_at_an_agent_that_hangs_up_has_an_unknown_outcome(path: Path) -> None:
    with stranger(path, answer=b""):
        kind, message = error(lambda: client.call(path, "apply"))

    assert kind is OutcomeUnknown
    assert "hung up without an answer; its log says why; the outcome is unknown" in message


@pytest.mark.parametrize("method", WRITES)
def test_an_unknown_outcome_at_the_agent_is_one_at_the_command(method: str, path: Path) -> None:
    with stranger(path, answer=b'{"error": "the store has not answered", "exit_code": 3}\n'):
        kind, message = error(lambda: client.call(path, method))

    assert kind is OutcomeUnknown
    assert message.startswith("the store has not answered; the outcome is unknown, and the change may still")


def test_an_answer_needs_no_particular_size(serve: Serve, path: Path) -> None:
    text = "x" * 1_000_000

    assert serve(lambda: client.call(path, "echo", text=text)) == {"text": text}
