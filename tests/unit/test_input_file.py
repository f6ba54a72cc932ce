"""Files that a user names: each door reads a regular file of limited size, and refuses all else without waiting."""

import ast
import errno
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer import input_file
from nfq_enforcer.agent import config
from nfq_enforcer.cli.main import main
from nfq_enforcer.errors import DocumentError, NfqError
from nfq_enforcer.input_file import DOCUMENTS_SIZE, EXPORT_SIZE, SETTINGS_SIZE
from nfq_enforcer.lab import inventory
from nfq_enforcer.policy import loader
from nfq_enforcer.store import address
from nfq_enforcer.store.redis.connection import Connection

PACKAGE = Path(input_file.__file__).parent
NOBODY = 65534
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """Fail a test that waits for a file."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits for a file")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sparse(path: Path, size: int) -> Path:
    """Make a file of this size that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def bound_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket"))
    return folder / "socket"


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def folder_of(folder: Path) -> Path:
    (folder / "folder").mkdir()
    return folder / "folder"


NO_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "fifo": (fifo, "it is a FIFO; allowed: a regular file"),
    "zero": (lambda _: Path("/dev/zero"), "it is a device; allowed: a regular file"),
    "folder": (folder_of, "it is a folder; allowed: a regular file"),
    "socket": (bound_socket, "it is a socket; allowed: a regular file"),
    "loop": (loop, os.strerror(errno.ELOOP)),
    "missing": (lambda folder: folder / "none", os.strerror(errno.ENOENT)),
    "huge": (lambda folder: sparse(folder / "huge", EXPORT_SIZE + 1), "it has more than the allowed "),
}


def read_password(path: Path) -> object:
    return Connection(address.parse(f"redis://h?password_file={path}")).client("h", 1, timeout=1)


def read_certificate(option: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        options = "&".join(f"{name}={path}" for name in ("cert_file", "key_file")) if option != "ca_file" else ""
        return Connection(address.parse(f"rediss://h?{options or f'ca_file={path}'}")).client("h", 1, timeout=1)

    return read


def command(*arguments: str) -> Callable[[Path], object]:
    """Return the door of a command with the file as its last argument."""

    def run(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["nfq-enforcer", *arguments, str(path)])
            patched.setattr("nfq_enforcer.cli.main._end", _raise)
            main()

    return run


def _raise(sentence: str, _: int) -> None:
    raise NfqError(sentence)


POLICIES = str(PACKAGE.parent / "policies")
DOORS: dict[str, Callable[[Path], object]] = {
    "configuration": lambda path: config.load(path, {}),
    "documents": lambda path: loader.read([path]),
    "documents of the agent": lambda path: loader.load([path]),
    "inventory": inventory.read,
    "password": read_password,
    "authorities": read_certificate("ca_file"),
    "certificate": read_certificate("cert_file"),
    "export": command("store", "import"),
    "agent": command("agent", "--config"),
    "probes": command(
        "policy", "matrix", "--endpoints", f"{POLICIES}/endpoints.yaml", "--policies", POLICIES, "--probes"
    ),
    "demo": command("lab", "demo", "--hosts"),
}


@pytest.mark.parametrize(
    "door, kind",
    [(door, kind) for door in DOORS for kind in NO_FILES if kind != "folder" or not door.startswith("documents")],
)
def test_no_door_waits_or_reads_without_end(door: str, kind: str, tmp_path: Path) -> None:
    make, reason = NO_FILES[kind]
    path = make(tmp_path)

    with pytest.raises(NfqError) as refused:
        DOORS[door](path)

    said = str(refused.value)
    assert str(path) in said
    assert said.count("\n") <= 1  # 'validate' and the like count the refused documents in a second line
    assert reason in said or (kind == "missing" and f"{path}: no such file" in said)


@pytest.mark.parametrize("limit", [SETTINGS_SIZE, DOCUMENTS_SIZE])
def test_a_file_has_the_size_that_its_limit_allows(limit: int, tmp_path: Path) -> None:
    assert input_file.read(sparse(tmp_path / "full", limit), limit) == bytes(limit)
    with pytest.raises(DocumentError, match=rf"/over: cannot be read: it has more than the allowed {limit // MIB} MiB"):
        input_file.read(sparse(tmp_path / "over", limit + 1), limit)


def test_a_file_that_grows_while_it_is_read_has_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse(tmp_path / "log", 1)
    real = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        sparse(path, MIB + 1)
        return status

    monkeypatch.setattr(os, "fstat", grow)

    with pytest.raises(DocumentError, match="it has more than the allowed 1 MiB"):
        input_file.read(path, MIB)


def test_a_fifo_that_takes_the_files_name_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fifo(tmp_path)
    regular = Path(__file__).stat()
    monkeypatch.setattr(Path, "stat", lambda _: regular)

    with pytest.raises(DocumentError, match="it is a FIFO"):
        input_file.read(path, MIB)


def test_files_of_the_kernel_have_no_size_and_are_read() -> None:
    assert input_file.read(Path("/proc/self/status"), MIB).startswith(b"Name:")
    assert input_file.read(Path("/dev/null"), MIB) == b""


def test_a_file_of_someone_else_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(DocumentError, match=f"cannot be read: {os.strerror(errno.EACCES)}"):
            input_file.read(path, MIB)
    finally:
        os.seteuid(user)


def test_the_standard_input_is_read_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def give(stream: Any) -> None:
        monkeypatch.setattr(sys, "stdin", stream)

    give(io.TextIOWrapper(io.BytesIO(b"kind")))
    assert input_file.read(Path("-"), MIB, standard_input=True) == b"kind"

    with Path("/dev/zero").open() as endless:
        give(endless)
        with pytest.raises(DocumentError, match="standard input: cannot be read: it has more than the allowed 1 MiB"):
            input_file.read(Path("-"), MIB, standard_input=True)
    give(None)
    with pytest.raises(DocumentError, match="standard input: cannot be read: it is closed"):
        input_file.read(Path("-"), MIB, standard_input=True)

    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a file")
    assert input_file.read(Path("-"), MIB) == b"a file"


OWN_FILES = {  # modules that open files which no user names, or open without reading
    "agent/containers.py",  # /proc
    "agent/name_learner.py",  # its own state, replaced whole
    "agent/run_server.py",  # /proc
    "agent/slot_keeper.py",  # its own state, replaced whole
    "agent/node_labels.py",  # its own labels
    "agent/health_watch.py",  # /proc
    "agent/watch.py",  # /proc
    "cli/capture.py",  # its own output, O_EXCL; part of the package
    "cli/completion.py",  # part of the package
    "cli/main.py",  # /dev/null, to write
    "dataplane/ipvs.py",  # /proc
    "dataplane/namespace_links.py",  # /proc
    "dataplane/queue/protocol.py",  # /proc
    "dataplane/rules/iptables.py",  # /proc
    "dataplane/worker/heartbeat.py",  # /proc
    "dataplane/worker/sandbox.py",  # O_PATH
    "input_file.py",
    "lab/capture.py",  # its own captures
    "lab/demo.py",  # part of the package
    "lab/lab.py",  # its own configuration
    "lab/network.py",  # its own state
    "lab/node.py",  # its own logs
    "lab/process.py",  # its own logs
    "lab/ssh.py",  # its own logs
    "lab/traffic_host.py",  # its own log; part of the package
    "proxy/envoy.py",  # its own pipes and process; O_PATH
    "proxy/proxy.py",  # its own slots
    "state_file.py",
    "store/redis/commands.py",  # part of the package
    "store/redis/last_state.py",  # O_CREAT
    "store/redis/session.py",  # opens a feed
    "workloads/cgroups.py",  # /proc, and files of cgroups
    "workloads/processes.py",  # its own state, replaced whole
    "ui/static.py",  # part of the package
}


def test_no_other_module_opens_files() -> None:
    opening = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _opens(node.func)
    }

    assert opening == OWN_FILES


def _opens(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        on_itself = isinstance(function.value, ast.Name) and function.value.id == "self"  # as FlowLog.open
        return function.attr in {"read_text", "read_bytes", "open"} and not on_itself
    return isinstance(function, ast.Name) and function.id == "open"
