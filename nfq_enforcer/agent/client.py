"""Client of the agent's API: one request over the Unix socket, JSON lines back.

Synchronous and free of the agent's own modules, so that a command that only asks an agent starts quickly.
"""

import contextlib
import json
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import BadInput, NfqError

TIMEOUT = 10.0  # seconds that a call waits for its answer, unless it says otherwise


def call(path: Path, method: str, timeout: float | None = None, **params: Any) -> Any:
    """Ask an agent and return its result; raise NfqError if there is none within the time, or it refuses."""
    patience = TIMEOUT if timeout is None else timeout
    with contextlib.closing(stream(path, method, timeout=patience, **params)) as answers:
        for answer in answers:
            return answer
    raise _hung_up(path)


def stream(path: Path, method: str, timeout: float | None = None, **params: Any) -> Generator[Any, None, None]:
    """Ask an agent and yield each result as it comes; ``timeout`` in seconds, for each."""
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
            raise _hung_up(path) from None


def _result(path: Path, line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if "error" not in answer:
            return answer["result"]
        error = BadInput if answer["exit_code"] == BadInput.exit_code else NfqError
        message = answer["error"]
    except (ValueError, TypeError, KeyError):
        raise NfqError(f"what came from {path} is not an agent's answer: is it an agent of this version?") from None
    raise error(message)


def _hung_up(path: Path) -> NfqError:
    return NfqError(f"the agent at {path} hung up without an answer; its log says why")


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise NfqError(f"no permission to ask the agent at {path}: run this with sudo") from None
        raise NfqError(
            f"no agent is listening on {path}: start one with 'nfq-enforcer agent', or name its socket with --socket"
        ) from None
    return connection
