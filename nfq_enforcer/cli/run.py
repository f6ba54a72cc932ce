"""``nfq-enforcer run``: executes a command as an endpoint of this host, with an identity of its own.

It imports the standard library only, because it delays the command: ``entry`` calls it without the other commands.
"""

import json
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

USAGE = "nfq-enforcer run [OPTIONS] --label KEY=VALUE ... -- COMMAND [ARGUMENT ...]"
HELP = f"""Usage: {USAGE}

Run a command with an identity of its own: an endpoint of this host, with these labels.

The command and all processes that it starts are subject to policy, as every other endpoint.

Options:
  -l, --label KEY=VALUE     a label that enters its identity; repeatable
      --name NAME           name of the endpoint (default: the command's, with the process id)
  -n, --namespace NAMESPACE (default: default)
      --socket PATH         socket of the agent for this command (default: /run/nfq-enforcer/agent-run.sock)
      --help                show this message

Examples:
  nfq-enforcer run --label role=frontend -- curl http://10.0.7.11:8080/
"""
_DEFAULT = "/run/nfq-enforcer/agent-run.sock"  # as ``agent.defaults`` says, without the import of it
_VARIABLE = "NFQ_ENFORCER_PROCESSES__SOCKET"
_API_VARIABLE = "NFQ_ENFORCER_API__SOCKET"
OPTIONS = {  # by the name of their value; ``run_command`` declares them for help of other forms
    **{"--label": "label", "-l": "label", "--name": "name", "--namespace": "namespace", "-n": "namespace"},
    "--socket": "socket",
}
_TIMEOUT = 30.0  # s for the agent's answer
_MAX_ANSWER = 1 << 16  # bytes
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # exit statuses, as those of a shell


class RunError(Exception):
    """Failure: one sentence for the user, and the exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        """Set both."""
        super().__init__(sentence)
        self.status = status


class Order(NamedTuple):
    """Order: the arguments of the command line."""

    command: Sequence[str]
    labels: Mapping[str, str]
    name: str
    namespace: str
    socket: str


def main(arguments: Sequence[str]) -> NoReturn:
    """Become an endpoint and execute the command; an error becomes one sentence, and the exit status."""
    try:
        order = parse(arguments)
        if order is None:
            sys.stdout.write(HELP)
            sys.exit(0)
        _leave_sockets()
        ask(order)
        execute(order.command)
    except RunError as error:
        from nfq_enforcer.text import printable  # only here: a command that is run does not wait for it

        sys.stderr.write(f"nfq-enforcer: {printable(str(error))}\n")
        sys.exit(error.status)


def parse(arguments: Sequence[str]) -> Order | None:
    """Return the arguments of the command line, None for a request of help; raise RunError for others."""
    given: dict[str, list[str]] = {"label": [], "name": [], "namespace": [], "socket": []}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        option, equals, value = rest.pop(0).partition("=")
        if option == "--help":
            return None
        if option not in OPTIONS:
            raise RunError(f"run: no such option: {option}; usage: {USAGE}", 2)
        if not equals:
            if not rest:
                raise RunError(f"run: option {option} needs a value; usage: {USAGE}", 2)
            value = rest.pop(0)
        given[OPTIONS[option]].append(value)
    command = rest[1:] if rest[:1] == ["--"] else rest
    if not command:
        raise RunError(f"run: give the command behind '--'; usage: {USAGE}", 2)
    for option in ("name", "namespace", "socket"):
        if len(given[option]) > 1:
            raise RunError(f"--{option}: it is given {len(given[option])} times; one is allowed", 2)
    name, namespace, path = (next(iter(given[option]), "") for option in ("name", "namespace", "socket"))
    path = path or os.environ.get(_VARIABLE) or _beside(os.environ.get(_API_VARIABLE)) or _DEFAULT
    return Order(command, _labels(given["label"]), name or default_name(command[0]), namespace or "default", path)


def _beside(path: str | None) -> str | None:
    return str(Path(path).with_name(f"{Path(path).stem}-run.sock")) if path else None


def _labels(options: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise RunError(f"--label: '{option}' is not a label; allowed: KEY=VALUE, as in role=batch", 2)
        if labels.setdefault(key, value) != value:
            raise RunError(f"--label: '{key}' has two values, '{labels[key]}' and '{value}'; one is allowed", 2)
    return labels


def default_name(command: str) -> str:
    """Return the name of an endpoint without one on the command line."""
    base = re.sub(r"[^a-z0-9.-]+", "-", Path(command).name.lower())[:100].strip(".-")
    return f"{base or 'process'}-{os.getpid()}"


def _leave_sockets() -> None:
    """Close inherited sockets of IP, which would keep the identity of the process that has made them, and say so."""
    for descriptor in _ip_sockets():
        if descriptor <= sys.__stderr__.fileno() if sys.__stderr__ else descriptor <= 2:
            raise RunError(
                f"descriptor {descriptor} is a network socket of another process, which would keep that process's "
                "identity: give the command another standard input or output"
            )
        os.close(descriptor)
        sys.stderr.write(
            f"nfq-enforcer: closed descriptor {descriptor}: a network socket keeps the identity of its maker\n"
        )


def _ip_sockets() -> Iterator[int]:
    for descriptor in sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as found:
                if found.family in {socket.AF_INET, socket.AF_INET6}:
                    yield descriptor
        except OSError:  # the descriptor of the list itself
            continue


def ask(order: Order) -> None:
    """Have the agent make this process an endpoint; raise RunError with the reason if it does not."""
    request = {"name": order.name, "namespace": order.namespace, "labels": dict(order.labels)}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(order.socket)
            connection.sendall(json.dumps({"method": "run", "params": request}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline(_MAX_ANSWER) or b"null")
    except (FileNotFoundError, ConnectionRefusedError):
        raise RunError(f"no agent is listening on {order.socket}: start it, or name its socket with --socket") from None
    except TimeoutError:
        raise RunError(f"the agent at {order.socket} has not answered within {_TIMEOUT:.0f} seconds") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"the agent at {order.socket} cannot be asked: {reason}") from None
    if not isinstance(answer, dict) or "result" not in answer:
        known = answer if isinstance(answer, dict) else {}
        raise RunError(str(known.get("error", "the agent has closed the connection")), int(known.get("exit_code", 1)))


def execute(command: Sequence[str]) -> NoReturn:
    """Execute the command in place of this process; raise RunError if it cannot be executed."""
    try:
        os.execvp(command[0], list(command))
    except FileNotFoundError:
        raise RunError(f"{command[0]}: command not found", _NOT_FOUND) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"{command[0]} cannot be executed: {reason}", _NOT_EXECUTABLE) from None
