"""Notification of the service manager, as sd_notify(3) describes it."""

import socket
from pathlib import Path

import pytest

from nfq_enforcer.agent import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_receives_ready(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{'@' if abstract else ''}{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)

        notify.ready()

        assert manager.recv(100) == b"READY=1"
    assert capsys.readouterr().out == "ready\n"


def test_without_a_service_manager_only_the_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    notify.ready()

    assert capsys.readouterr().out == "ready\n"
