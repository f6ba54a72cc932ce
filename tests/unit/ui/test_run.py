"""Run of the map: the address that it prints, and the sentence for one that it cannot use."""

import os
import signal
import socket
from pathlib import Path

import pytest

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.ui.run import run

TOKEN = "t" * 40


class Printed(list[str]):
    """Lines that the server prints; a signal ends it once it has printed one."""

    def __call__(self, line: str) -> None:
        self.append(line)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_loopback_address_is_printed_without_a_token(tmp_path: Path) -> None:
    printed = Printed()

    run(tmp_path / "agent.sock", "127.0.0.1:0", None, printed)

    assert len(printed) == 1
    assert printed[0].startswith("service map: http://127.0.0.1:")
    assert printed[0].endswith("/")


def test_another_address_is_printed_with_a_new_token(tmp_path: Path) -> None:
    printed = Printed()

    run(tmp_path / "agent.sock", "0.0.0.0:0", None, printed)

    address, _, token = printed[0].partition("#token=")
    assert address.startswith("service map: http://0.0.0.0:")
    assert len(token) == 43


def test_the_token_of_a_file_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    printed = Printed()

    run(tmp_path / "agent.sock", "127.0.0.1:0", tmp_path / "token", printed)

    assert TOKEN not in "".join(printed)
    assert printed[1] == "the page asks for the token in the file"


def test_a_weak_token_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")

    with pytest.raises(BadInput, match=f"--token-file {tmp_path}/token: a token is one word"):
        run(tmp_path / "agent.sock", "127.0.0.1:0", tmp_path / "token", print)


def test_an_address_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(NfqError, match=f"^cannot listen on 127.0.0.1 port {port}: .*; choose another --listen$"):
            run(tmp_path / "agent.sock", f"127.0.0.1:{port}", None, print)
