"""Client of the agent's API: sends one request over the Unix socket and reads JSON lines.

It is synchronous and imports none of the agent's modules, so that a command that only calls an agent starts quickly.
"""

import contextlib
import json
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import BadInput, NfqError


class NoAgent(NfqError):
    """No agent: no process is listening on the socket."""


TIMEOUT = 10.0  # s for the result of a call, by default


def call(path: Path, method: str, timeout: float | None = None, **params: Any) -> Any:
    """Call a method of the agent and return its result; raise NfqError on an error or after ``timeout`` seconds."""
    with contextlib.closing(stream(path, method, TIMEOUT if timeout is None else timeout, **params)) as results:
        for result in results:
            return result
    raise _disconnected(path)


def stream(path: Path, method: str, timeout: float | None = None, **params: Any) -> Generator[Any, None, None]:
    """Call a method of the agent and yield each result as it comes; ``timeout`` in seconds for each."""
    request = json.dumps({"method": method, "params": params}).encode() + b"\n"
    with _connect(path) as connection:
        connection.settimeout(timeout)
        try:
            connection.sendall(request)
            with connection.makefile("rb") as lines:
                for line in lines:
                    yield _result(path, line)
        except TimeoutError:
            raise NfqError(f"the agent at {path} does not answer") from None
        except ConnectionError:
            raise _disconnected(path) from None


def _result(path: Path, line: bytes) -> Any:
    try:
        response = json.loads(line)
        if "error" not in response:
            return response["result"]
        error = BadInput if response["exit_code"] == BadInput.exit_code else NfqError
        message = response["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NfqError(f"what came from {path} is not an agent's answer: is it an agent of this version?") from None
    raise error(message)


def _disconnected(path: Path) -> NfqError:
    return NfqError(f"the agent at {path} hung up without an answer; its log says why")


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise NfqError(f"no permission to ask the agent at {path}: run this with sudo") from None
        raise NoAgent(
            f"no agent is listening on {path}: start one with 'nfq-enforcer agent', or name its socket with --socket"
        ) from None
    return connection
