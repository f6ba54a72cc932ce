"""Client of the agent's API: sends one request over the Unix socket and reads JSON lines.

It is synchronous and imports none of the agent's modules, so that a command that only calls an agent starts quickly.

An answer about a change is true: done, not done, or unknown. A change whose answer is missing may still take effect, so
its error names the command that finds out.
"""

import contextlib
import json
import socket
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from nfq_enforcer.agent.defaults import MAX_REQUEST
from nfq_enforcer.errors import BadInput, NfqError, OutcomeUnknown


class NoAgent(NfqError):
    """No agent: no process is listening on the socket."""


_CHUNK = 1 << 18  # bytes
TIMEOUT = 10.0  # s for the result of a call, by default
STATUS_TIMEOUT = 2.0  # s for the status, after a call without a result

_STATUS = "'nfq-enforcer status'"
_CHECKS = {  # the methods that change something, and the commands that show whether they have
    "apply": f"'nfq-enforcer policy list' or 'nfq-enforcer endpoint list'; {_STATUS} shows work that is under way",
    "delete": f"'nfq-enforcer policy list'; {_STATUS} shows work that is under way",
    "delete_endpoints": f"'nfq-enforcer endpoint list'; {_STATUS} shows work that is under way",
    "conntrack_flush": "'nfq-enforcer conntrack list', or flush again",
    "store_import": "'nfq-enforcer store status', or import again: entries that the store has are left as they are",
    "store_gc": "'nfq-enforcer store status', or collect again",
}

_SMALLER = {  # the alternatives to a request that is too long
    "apply": "load fewer documents at a time (each command takes effect as a whole or not at all), or, without a "
    "shared store, save them in a folder of the agent's 'documents', where a file has up to 128 MiB and "
    "3,000,000 values (scalars, lists, mappings)",
}


def call(path: Path, method: str, timeout: float | None = None, **params: Any) -> Any:
    """Call a method of the agent and return its result; raise NfqError on an error or after ``timeout`` seconds."""
    with contextlib.closing(stream(path, method, TIMEOUT if timeout is None else timeout, **params)) as results:
        for result in results:
            return result
    raise _disconnected(path, method)


def stream(path: Path, method: str, timeout: float | None = None, **params: Any) -> Generator[Any, None, None]:
    """Call a method of the agent and yield each result as it comes; ``timeout`` in seconds for each."""
    with contextlib.closing(batches(path, method, timeout, **params)) as several:
        for results in several:
            yield from results


def batches(path: Path, method: str, timeout: float | None = None, **params: Any) -> Generator[list[Any], None, None]:
    """Call a method of the agent and yield its results as they come, those that come together at once."""
    request = json.dumps({"method": method, "params": params}).encode() + b"\n"
    if len(request) > MAX_REQUEST:
        raise BadInput(_too_long(len(request), method))
    with _connect(path) as connection:
        connection.settimeout(timeout)
        try:
            connection.sendall(request)
            for lines in _received(connection):
                results, error = _read_results(path, lines, method)
                if results:
                    yield results
                if error is not None:
                    raise error
        except TimeoutError:
            raise _unanswered(f"the agent at {path} does not answer{_work(path, method)}", method) from None
        except ConnectionError:
            raise _disconnected(path, method) from None


def _read_results(path: Path, lines: Iterable[bytes], method: str) -> tuple[list[Any], NfqError | None]:
    """Return the results in lines of an answer, and the error that ends it if one of them has one."""
    results: list[Any] = []
    try:
        for line in lines:
            results.append(read_result(path, line, method))
    except NfqError as error:
        return results, error
    return results, None


def _received(connection: socket.socket) -> Iterator[list[bytes]]:
    """Yield the complete lines that have come, each time that any have."""
    rest = b""
    while data := connection.recv(_CHUNK):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _too_long(size: int, method: str) -> str:
    mib = 1 << 20
    limit = f"the request has {size / mib:.1f} MiB; allowed: at most {MAX_REQUEST // mib}"
    return f"{limit}; {_SMALLER[method]}" if method in _SMALLER else limit


def _work(path: Path, method: str) -> str:
    """Return the work that is under way in an agent, which may be the reason why a change is not answered."""
    if method not in _CHECKS:
        return ""
    try:
        works = [str(work["text"]) for work in call(path, "status", STATUS_TIMEOUT)["working"]]
    except (NfqError, LookupError, TypeError):
        return ""
    return f", and is at work: {', '.join(works)}" if works else ""


def _unanswered(reason: str, method: str) -> NfqError:
    """Return the error of a call without an answer: of one that changes something, the outcome is unknown."""
    check = _CHECKS.get(method)
    return OutcomeUnknown(f"{reason}; {_unknown(check)}") if check else NfqError(reason)


def _unknown(check: str) -> str:
    return f"the outcome is unknown, and the change may still take effect: check with {check}"


def read_result(path: Path, line: bytes, method: str) -> Any:
    """Return the result in a line of the agent's answer to a call of a method; raise NfqError for an error."""
    try:
        response = json.loads(line)
        if "error" not in response:
            return response["result"]
        code, message = response["exit_code"], response["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NfqError(f"what came from {path} is not an agent's answer: is it an agent of this version?") from None
    if code == OutcomeUnknown.exit_code and method in _CHECKS:
        raise OutcomeUnknown(f"{message}; {_unknown(_CHECKS[method])}")
    raise (BadInput if code == BadInput.exit_code else NfqError)(message)


def _disconnected(path: Path, method: str) -> NfqError:
    return _unanswered(f"the agent at {path} hung up without an answer; its log says why", method)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise refusal(path, error) from None
    return connection


def refusal(path: Path, error: OSError) -> NfqError:
    """Return the error of a socket that cannot be opened."""
    if isinstance(error, PermissionError):
        return NfqError(f"no permission to ask the agent at {path}: run this with sudo")
    return NoAgent(
        f"no agent is listening on {path}: start one with 'nfq-enforcer agent', or name its socket with --socket"
    )
