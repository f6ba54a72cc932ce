"""Notification of the service manager, as sd_notify(3) describes it."""

import os
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


@pytest.mark.parametrize(
    ("usec", "pid", "limit"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),  # meant for another process
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        (None, "own", None),
    ],
)
def test_the_watchdog_is_that_of_the_service_manager(
    usec: str | None, pid: str | None, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid()) if pid == "own" else pid}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    assert notify.watchdog_limit() == limit


def test_a_service_manager_that_is_gone_stops_no_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))

    notify.watchdog()
    notify.stopping()
