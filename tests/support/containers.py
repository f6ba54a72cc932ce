"""Containers of real daemons in the lab: dockerd or Podman in the network namespace of a node, and their containers.

A daemon has its data, its socket and its rules of iptables for itself; its containers run the programs of Busybox. It
is started by ``nsenter``: ``ip netns exec`` would hide the host's cgroups from it.
"""

import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from tests.support.labs import BRIEF, PATIENT

_IMAGE = "box"
_BUSYBOX = Path("/bin/busybox")
_APPLETS = ("sh", "sleep", "nc", "httpd", "ping", "ip", "cat", "printf", "true")
_START = 60.0  # s
PORT = 8080
SERVER = ("httpd", "-f", "-p", str(PORT), "-h", "/www")  # serves as soon as the container runs


class DaemonFailed(Exception):
    """Daemon failed: it does not run on this host; the text is the reason."""


class ContainerDaemon:
    """Container daemon: one daemon on one node, with the commands of its users."""

    program = ""

    def __init__(self, lab: Lab, node: str, folder: Path) -> None:
        self.node, self.folder = node, folder
        self.socket = folder / "api.sock"
        self.log = folder / "daemon.log"
        self._namespace = f"/run/netns/{lab.topology.namespace(node)}"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """Return the value of the configuration key."""
        return f"unix://{self.socket}"

    def _argv(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Start the daemon, and return once it answers; raise DaemonFailed if it does not."""
        argv = ["nsenter", f"--net={self._namespace}", *self._argv()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True
            )
        deadline = time.monotonic() + _START
        while self._ask("version").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DaemonFailed(f"{self.program} does not run here: {self.log.read_text()[-500:]}")
            time.sleep(0.05)

    def load_image(self) -> None:
        """Make the image of the containers: Busybox alone."""
        files = {"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "www/index.html": b"hello\n"}
        buffer = BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, BytesIO(content))
            archive.add(_BUSYBOX, "bin/busybox")
            for applet in _APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        self.run("import", "-", _IMAGE, data=buffer.getvalue())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the daemon; its containers stay, unless the daemon ends them."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.wait(_START)
            self._process = None

    def remove(self) -> None:
        """Remove all containers, then stop the daemon."""
        with suppress(subprocess.CalledProcessError):
            if names := self.run("ps", "-aq").split():
                self.run("rm", "-f", *names)
        self.stop()

    def run(self, *arguments: str, data: bytes | None = None) -> str:
        """Run a command of the client, and return its output."""
        done = self._ask(*arguments, data=data)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def _ask(self, *arguments: str, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        argv = ["docker", "--host", self.address, *arguments]
        return subprocess.run(argv, input=data, capture_output=True, check=False, timeout=_START)

    def launch(
        self, name: str, *options: str, labels: Mapping[str, str] | None = None, command: tuple[str, ...] = SERVER
    ) -> str:
        """Run a container in the background, by default a server; return its id."""
        given = [f"--label={key}={value}" for key, value in (labels or {}).items()]
        return self.run("run", "--detach", "--name", name, *given, *options, _IMAGE, *command).strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """Return the description of a container."""
        (found,) = json.loads(self.run("inspect", name))
        return dict(found)

    def addresses(self, name: str) -> dict[str, str]:
        """Return the IPv4 address of a container in each of its networks."""
        networks = self.inspect(name)["NetworkSettings"]["Networks"]
        return {network: one["IPAddress"] for network, one in networks.items()}

    def address_of(self, name: str) -> str:
        """Return the IPv4 address of a container with one network."""
        (address,) = self.addresses(name).values()
        return address

    def fetch(self, name: str, address: str, *, port: int = PORT, expected: bool) -> bool:
        """Return whether a process of a container gets an answer of a server; ``expected`` sets the patience."""
        patience = str(int(PATIENT) if expected else 1)
        request = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w {patience} {address} {port}"
        return b"hello" in self._ask("exec", name, "sh", "-c", request).stdout


class Docker(ContainerDaemon):
    """Docker: dockerd, with containerd and runc."""

    program = "dockerd"

    def __init__(self, lab: Lab, node: str, folder: Path, *options: str, subnet: int) -> None:
        """Choose the addresses of the daemon's networks by a number."""
        super().__init__(lab, node, folder)
        self._options = options
        self._subnet = subnet

    def _argv(self) -> list[str]:
        base = f"10.{self._subnet}.0.0/16"
        folders = (f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid")
        networks = (f"--bip=10.{self._subnet}.0.1/24", f"--default-address-pool=base={base},size=24")
        return [self.program, f"--host={self.address}", *folders, *networks, "--log-level=warn", *self._options]


def daemon_missing(program: str) -> str | None:
    """Return the reason for which tests with a daemon are skipped, None if it is installed."""
    missing = [name for name in (program, "docker") if shutil.which(name) is None]
    missing += [] if _BUSYBOX.exists() else ["a static Busybox"]
    return f"{' and '.join(missing)} not installed (make setup)" if missing else None
