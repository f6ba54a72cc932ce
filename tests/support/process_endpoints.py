"""Processes of lab nodes with an identity of their own, started by ``nfq-enforcer run``, and without one."""

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import IPAddress
from nfq_enforcer.workloads.cgroups import Cgroups, find_root
from tests.support import process_traffic
from tests.support.labs import BRIEF, PATIENT, PROGRAM

TRAFFIC = (sys.executable, str(Path(process_traffic.__file__)))
BACKEND_PORT, OTHER_PORT = 8080, 8081


def run_options(lab: Lab, node: str, role: str, name: str = "") -> list[str]:
    """Return the command line that gives the following command an identity."""
    named = ["--name", name] if name else []
    return [*PROGRAM, "run", "--socket", str(lab.nodes[node].run_socket), "--label", f"role={role}", *named, "--"]


def enter(lab: Lab, node: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs a command in a node's namespace, with the cgroups of this host in sight."""
    return ["nsenter", f"--net=/run/netns/{lab.topology.namespace(node)}", *argv]


def start(lab: Lab, node: str, role: str | None, *arguments: str, name: str = "") -> "subprocess.Popen[str]":
    """Start the traffic program on a node, with this role or (None) as any other process of the host."""
    prefix = run_options(lab, node, role, name) if role is not None else []
    argv = enter(lab, node, [*prefix, *TRAFFIC, *arguments])
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def running(
    lab: Lab, node: str, role: str | None, *arguments: str, name: str = ""
) -> "Iterator[subprocess.Popen[str]]":
    """Run the traffic program until the end of the block, from when it is ready."""
    with start(lab, node, role, *arguments, name=name) as process:
        try:
            line = cast(IO[str], process.stdout).readline()
            if not line.startswith("ready"):
                raise AssertionError(cast(IO[str], process.stderr).read())
            yield process
        finally:
            process.kill()


def order(process: "subprocess.Popen[str]", text: str, *, timeout: float = PATIENT) -> str:
    """Give a process that holds a connection an order; return the status of its message."""
    writer, reader = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    writer.write(f"{text} {timeout}\n")
    writer.flush()
    return reader.readline().strip()


class Attempt(NamedTuple):
    """Attempt of a process to reach an address."""

    protocol: str
    address: IPAddress | str
    port: int = BACKEND_PORT


async def statuses(
    lab: Lab, node: str, role: str | None, attempts: Sequence[Attempt], *, patient: bool, name: str = ""
) -> list[str]:
    """Return the status of each attempt of one process: ok, timeout, or the name of an error."""
    timeout = PATIENT if patient else BRIEF
    texts = [f"{one.protocol},{one.address},{one.port},{timeout}" for one in attempts]
    process = await asyncio.to_thread(start, lab, node, role, "ask", *texts, name=name)
    output, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors
    return output.split()


async def check(
    lab: Lab, node: str, role: str | None, attempts: Iterable[Attempt], expected: str, *, name: str = ""
) -> None:
    """Fail unless each attempt of a process has this outcome."""
    attempts = list(attempts)
    found = await statuses(lab, node, role, attempts, patient=expected == "ok", name=name)
    wrong = {str(one): status for one, status in zip(attempts, found, strict=True) if status != expected}
    assert wrong == {}, f"process of role {role} on {node}: not {expected}, but {wrong}"


def cgroups() -> Cgroups:
    """Return the cgroups of this host."""
    root = find_root()
    assert root is not None
    return Cgroups(root)
