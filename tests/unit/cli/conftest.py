"""Fixtures of the command line's tests: runs of the program, and the API of an agent."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nfq_enforcer.agent import api
from nfq_enforcer.cli.main import main

NOBODY = 65534


class Run(NamedTuple):
    """Run of the program: its exit status and output."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Return the lines of the output, each with single blanks between words."""
        return [" ".join(line.split()) for line in self.out.splitlines()]


RunProgram = Callable[..., Run]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunProgram:
    """Run ``nfq-enforcer`` with these arguments."""
    for name in [name for name in os.environ if name.startswith("NFQ_ENFORCER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "250")  # wide enough for every line of a table

    def running(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["nfq-enforcer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Run(ended.value.code, *capfd.readouterr())

    return running


class In(list[Any]):
    """Answers to one call after another; the last one is repeated."""


class Canned:
    """API of an agent with fixed results; it records the parameters of each call."""

    def __init__(self, socket: Path, answers: Mapping[str, Any]) -> None:
        self.socket = socket
        self.calls: list[Mapping[str, Any]] = []
        self._server = api.ApiServer(socket, {name: self._method(answer) for name, answer in answers.items()})
        self._runner = asyncio.Runner()
        self._thread = threading.Thread(target=self._runner.get_loop().run_forever)

    def _method(self, answer: Any) -> api.Method:
        async def once(params: api.Params) -> Any:
            self.calls.append(params)
            return answer[min(len(self.calls), len(answer)) - 1] if isinstance(answer, In) else answer

        async def one_by_one(params: api.Params) -> AsyncIterator[Any]:
            self.calls.append(params)
            for item in answer:
                yield item

        return one_by_one if isinstance(answer, tuple) else once

    def __enter__(self) -> "Canned":
        self._runner.run(self._server.start())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        loop = self._runner.get_loop()
        asyncio.run_coroutine_threadsafe(self._server.stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        self._runner.close()


Answering = Callable[..., Canned]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    """Start an API with these results by method; a tuple is a stream."""
    with contextlib.ExitStack() as running:
        yield lambda **answers: running.enter_context(Canned(tmp_path / "agent.sock", answers))


@pytest.fixture
def nobody() -> Iterator[None]:
    """Run a test without root's privileges."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(user)
