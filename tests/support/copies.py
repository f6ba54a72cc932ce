"""A copy of this host that tests may change.

The copy is an overlay over all of this host's files, in a mount namespace of its own, with network namespaces that
exist in this mount namespace only. The kernel removes all of it after the namespace's last process.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

PATIENCE = 60.0

_COPY = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for folder in proc sys dev; do mount --rbind /$folder /mnt/root/$folder; done
mount -t tmpfs tmpfs /mnt/root/run
echo made
read -r _ || true
"""


class Copy:
    """Copy: a copy of this host, with its own files and network namespaces."""

    def __enter__(self) -> Self:
        """Create the copy."""
        command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", _COPY]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._started: list[subprocess.Popen[str]] = []
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "made\n"
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the processes started in the copy, which removes it."""
        for process in self._started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()  # not read to its end: a child that still runs may hold the other end
        self._holder.communicate("\n")

    def command(self, *argv: str, at: str | None = None) -> list[str]:
        """Return the command line that runs a command in the copy, in one of its network namespaces or the host's."""
        namespaces = [f"--mount=/proc/{self._holder.pid}/ns/mnt"]
        namespaces += [f"--net={self.file(f'/run/netns/{at}')}"] if at else []
        return ["nsenter", *namespaces, "chroot", "/mnt/root", *argv]

    def attempt(self, *argv: str, at: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("NFQ_ENFORCER_")}
        return subprocess.run(
            self.command(*argv, at=at), capture_output=True, text=True, cwd="/", check=False, env=environment
        )

    def run(self, *argv: str, at: str | None = None) -> str:
        """Run a command that must succeed; return its standard output."""
        done = self.attempt(*argv, at=at)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *argv: str, at: str) -> "subprocess.Popen[str]":
        """Start a command that ends with the copy at the latest."""
        process = subprocess.Popen(
            self.command(*argv, at=at), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )
        self._started.append(process)
        return process

    def start_agent(self, *options: str, at: str) -> "subprocess.Popen[str]":
        """Start an agent; return when it prints that it is ready."""
        agent = self.start("nfq-enforcer", "agent", *options, at=at)
        assert agent.stdout is not None
        lines = []
        while "ready\n" not in lines:
            lines.append(agent.stdout.readline())
            assert lines[-1], lines  # the agent has ended
        return agent

    def file(self, path: str) -> Path:
        """Return the path of a file of the copy outside of it."""
        return Path(f"/proc/{self._holder.pid}/root/mnt/root{path}")

    def mode(self, path: str) -> tuple[str, str, str]:
        """Return a file's mode, owner and group."""
        file = self.file(path)
        return f"{file.stat().st_mode & 0o7777:o}", file.owner(), file.group()

    def processes(self) -> list[str]:
        """Return the command lines of all processes in the copy."""
        device = self.file("/").stat().st_dev
        lines = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended
                if (process / "root").stat().st_dev == device:
                    lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return lines

    def build_segment(self, addresses: Mapping[str, str], hub: str) -> None:
        """Create a network namespace for each of these machines, on one segment; the hub has the bridge."""
        for name in addresses:
            self.run("ip", "netns", "add", name)
        self.run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
        for name in addresses.keys() - {hub}:
            self.run("ip", "-n", name, "link", "add", "eth1", "type", "veth", "peer", "name", name, "netns", hub)
            self.run("ip", "-n", hub, "link", "set", name, "master", "br0", "up")
        for name, address in addresses.items():
            device = "br0" if name == hub else "eth1"
            self.run("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            self.run("ip", "-n", name, "link", "set", device, "up")
            self.run("ip", "-n", name, "link", "set", "lo", "up")


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; fail after ``PATIENCE`` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
