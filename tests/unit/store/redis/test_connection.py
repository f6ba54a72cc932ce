"""Error sentences for failures of a server that are hard to cause, and for its answer to INFO."""

import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions as redis_errors

from nfq_enforcer.store.redis import commands as store
from nfq_enforcer.store.redis.connection import (
    PERMISSIONS,
    HandshakeError,
    ServerInfo,
    StoreError,
    may_be_executed,
    read_info,
    sentence,
)

CLUSTER = "it runs in cluster mode, which is not supported: one ordered stream and steps that change several keys at "
GOOD = {"redis_version": "7.0.15", "redis_mode": "standalone", "role": "master", "run_id": "abc", "loading": 0}


def caused(error: BaseException) -> BaseException:
    """Return redis-py's exception for an error of the system."""
    try:
        try:
            raise error
        except OSError as first:
            made = redis_errors.ConnectionError(f"Error connecting to h:1. {first}")
            raise made  # noqa: B904 as redis-py does
    except redis_errors.ConnectionError as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (caused(ConnectionRefusedError(111, "…")), f"it cannot be reached: {os.strerror(errno.ECONNREFUSED)}"),
        (caused(OSError(113, "…")), f"it cannot be reached: {os.strerror(errno.EHOSTUNREACH)}"),
        (
            caused(OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 101] Connect call failed")),
            f"it cannot be reached: {os.strerror(errno.ECONNREFUSED)}",
        ),
        (caused(socket.gaierror(-3, "Temporary failure")), "its name is not known: Temporary failure"),
        (ConnectionResetError(104, "…"), "it closed the connection"),
        (BrokenPipeError(32, "…"), "it closed the connection"),
        (TimeoutError(), "it did not answer in time"),
        (redis_errors.TimeoutError("Timeout reading from h:1"), "it did not answer in time"),
        (redis_errors.ConnectionError("Connection closed by server."), "it closed the connection"),
        (
            redis_errors.ConnectionError("max number of clients reached"),
            "it has as many clients as it takes (maxclients)",
        ),
        (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), "it is still loading its data"),
        (redis_errors.OutOfMemoryError("command not allowed when used memory"), "its memory is full (maxmemory)"),
        (redis_errors.MasterDownError("Link with MASTER is down"), "it is a replica, which takes no writes"),
        (redis_errors.MovedError("1 h:2"), CLUSTER),
        (redis_errors.ClusterDownError("Hash slot not served"), CLUSTER),
        (redis_errors.ClusterCrossSlotError("Keys in request"), CLUSTER),
        (redis_errors.NoPermissionError("No permissions to access a key"), "the user may not do all that is needed: "),
        (
            redis_errors.ResponseError("MISCONF Redis is configured to save. Commands that may modify are disabled."),
            "it refused a command: MISCONF Redis is configured to save",
        ),
        (
            redis_errors.ResponseError("unknown command 'AUTH', with args beginning with: 'geheim'"),
            "it refused a command: unknown command 'AUTH'",
        ),
        (redis_errors.InvalidResponse("Protocol Error: b'geheim'"), "it does not answer as a Redis server does"),
        (HandshakeError("it is as it is"), "it is as it is"),
        (StoreError("it is as it is"), "it is as it is"),
    ],
)
def test_each_failure_is_one_sentence(error: BaseException, expected: str) -> None:
    assert sentence(error).startswith(expected)
    assert "geheim" not in sentence(error)
    assert not sentence(error).endswith(".")


def test_a_server_may_not_talk_without_end() -> None:
    assert len(sentence(redis_errors.ResponseError("x" * 100_000))) < 300


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (GOOD, ServerInfo("Redis", "7.0.15", "abc")),
        (GOOD | {"redis_version": "6.2.0"}, ServerInfo("Redis", "6.2.0", "abc")),
        (GOOD | {"redis_version": "10.0.1"}, ServerInfo("Redis", "10.0.1", "abc")),
        (GOOD | {"redis_version": "7.2.4", "valkey_version": "8.1.0"}, ServerInfo("Valkey", "8.1.0", "abc")),
    ],
)
def test_a_server_that_can_hold_a_cluster_is_known_by_what_it_says(info: dict[str, Any], expected: ServerInfo) -> None:
    assert read_info(info) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"redis_version": "6.0.16"}, "it is Redis 6.0.16; needed is 6.2 or newer"),
        ({"redis_version": "5.9"}, "it is Redis 5.9; needed is 6.2 or newer"),
        ({"redis_mode": "cluster"}, CLUSTER),
        ({"cluster_enabled": 1}, CLUSTER),
        ({"redis_mode": "sentinel"}, "it is a Sentinel; as one it is named redis+sentinel://host/service"),
        ({"loading": 1}, "it is still loading its data"),
        (
            {"role": "slave", "master_host": "fd00::1", "master_port": 7},
            "it is a replica, which takes no writes; its primary is [fd00::1]:7",
        ),
    ],
)
def test_a_server_that_can_hold_no_cluster_is_refused(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(StoreError) as caught:
        read_info(GOOD | changed)

    assert str(caught.value).startswith(expected)


def test_what_says_nothing_of_itself_is_no_redis() -> None:
    with pytest.raises(StoreError, match="it does not answer as a Redis server does"):
        read_info({})


def test_a_user_may_do_what_the_store_does_and_no_more() -> None:
    folder = Path(store.__file__).parent
    scripts = "".join(script.read_text() for script in (folder / "lua").glob("*.lua"))
    called = re.findall(r"redis\.call\('(\w+)'", scripts) + re.findall(r"local arguments = { '(\w+)'", scripts)
    asked = re.findall(r"self\._(?:client|reader)\.(\w+)\(", (folder / "commands.py").read_text())
    sent = re.findall(r"(?:client|subscription)\.(\w+)\(", (folder / "mail.py").read_text())
    own = {name.lower() for name in (*called, *asked, *sent)} - {"register_script", "aclose", "get_message"}
    connecting = {"ping", "info", "select", "client|setname", "evalsha", "script|load"}

    assert own >= {"time", "xadd", "hincrby", "hscan", "xread"}
    assert {name.partition("|")[0] if name.startswith("xinfo") else name for name in allowed()} == own | connecting


def allowed() -> set[str]:
    return {permission.removeprefix("+") for permission in PERMISSIONS.split()}


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (redis_errors.TimeoutError("Timeout reading from socket"), True),
        (redis_errors.ConnectionError("Connection closed by server."), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (redis_errors.ResponseError("wrong"), False),
        (redis_errors.BusyLoadingError("loading"), False),
        (redis_errors.AuthenticationError("wrong"), False),
        (redis_errors.ReadOnlyError("replica"), False),
        (HandshakeError("it closed the connection"), False),
        (None, False),
    ],
)
def test_a_command_without_an_answer_may_have_been_executed(error: Exception | None, unknown: bool) -> None:
    assert may_be_executed(error) is unknown
