"""Containers of real daemons in the lab: dockerd or Podman in the network namespace of a node, and their containers.

A daemon has its data, its socket and its rules of iptables for itself; its containers run the programs of Busybox. It
is started by ``nsenter``: ``ip netns exec`` would hide the host's cgroups from it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support.labs import PATIENT, kill, until

_ROOT = Path(__file__).parents[2]
_IMAGE = "box"
_BUSYBOX = Path("/bin/busybox")
_APPLETS = ("sh", "sleep", "nc", "httpd", "ping", "ip", "cat", "printf", "true")
_START = 60.0  # s
PORT = 8080
SERVER = ("httpd", "-f", "-p", str(PORT), "-h", "/www")  # serves as soon as the container runs


FRONTEND, BACKEND, OTHER = ({"role": role} for role in ("frontend", "backend", "other"))


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
        self._launched: list[str] = []  # ids
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
        self._process = self._spawn(self._argv())
        deadline = time.monotonic() + _START
        while self._ask("version").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DaemonFailed(f"{self.program} does not run here: {self.log.read_text()[-500:]}")
            time.sleep(0.05)

    def _spawn(self, argv: list[str]) -> "subprocess.Popen[bytes]":
        argv = ["nsenter", f"--net={self._namespace}", *argv]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True
            )

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
        default = f"CMD {json.dumps(SERVER)}"
        self.run("import", "--change", default, "-", _IMAGE, data=buffer.getvalue())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the daemon; its containers stay, unless the daemon ends them."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.wait(_START)
            self._process = None

    def clear(self) -> None:
        """Remove all containers, and the networks that nobody uses then."""
        if names := self.run("ps", "-aq").split():
            self.run("rm", "-f", *names)
        self.run("network", "prune", "-f")

    def remove(self) -> None:
        """Remove all containers, stop the daemon, and end everything that a daemon which failed has left."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.clear()
        self.stop()
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and self._is_left(process):
                kill(int(process.name))
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed([one for one in mounts if one.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_left(self, process: Path) -> bool:
        """Tell whether a process belongs to one of the containers."""
        try:
            text = (process / "cgroup").read_text() + (process / "cmdline").read_text(errors="replace")
        except OSError:
            return False
        return any(one in text for one in self._launched)

    def run(self, *arguments: str, data: bytes | None = None) -> str:
        """Run a command of the client, and return its output."""
        done = self._ask(*arguments, data=data)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def _ask(self, *arguments: str, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        argv = ["docker", "--host", self.address, *arguments]
        return subprocess.run(argv, input=data, capture_output=True, check=False, timeout=_START)

    def shell(self, script: str, agent: str) -> "subprocess.CompletedProcess[str]":
        """Run the lines of a user, with this daemon and with the agent on a socket, in the folder of the project."""
        environment = {
            **os.environ,
            "DOCKER_HOST": self.address,
            "NFQ_ENFORCER_API__SOCKET": agent,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return subprocess.run(
            ["sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_START,
            env=environment,
            cwd=_ROOT,
        )

    def succeeds(self, *arguments: str) -> bool:
        """Run a command of the client, and return whether it succeeds."""
        return self._ask(*arguments).returncode == 0

    def exit_status(self, name: str) -> int:
        """Return the exit status of a container once its program has ended."""
        return int(self.run("wait", name))

    def launch(
        self, name: str, *options: str, labels: Mapping[str, str] | None = None, command: tuple[str, ...] = SERVER
    ) -> None:
        """Run a container in the background, by default a server."""
        given = [f"--label={key}={value}" for key, value in (labels or {}).items()]
        self._launched.append(self.run("run", "--detach", "--name", name, *given, *options, _IMAGE, *command).strip())

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
    """Docker: dockerd with a containerd of its own, which outlives it as on any host."""

    program = "dockerd"

    def __init__(self, lab: Lab, node: str, folder: Path, *options: str, subnet: int) -> None:
        """Choose the addresses of the daemon's networks by a number."""
        super().__init__(lab, node, folder)
        self._options = options
        self._number = subnet
        self.subnet = f"10.{subnet}.0.0/24"  # of its first network
        self._containerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start containerd, unless it runs, and dockerd; raise DaemonFailed."""
        if self._containerd is None:
            settings = self.folder / "containerd.toml"
            settings.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
            folders = (f"--root={self.folder}/containerd", f"--state={self.folder}/containerd-state")
            self._containerd = self._spawn(
                ["containerd", f"--config={settings}", f"--address={self._containerd_socket}", *folders]
            )
        super().start()

    def remove(self) -> None:
        """Remove everything, containerd as well."""
        super().remove()
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait(_START)

    @property
    def _containerd_socket(self) -> Path:
        return self.folder / "containerd.sock"

    def _argv(self) -> list[str]:
        base = f"10.{self._number}.0.0/16"
        folders = (f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid")
        networks = (f"--bip=10.{self._number}.0.1/24", f"--default-address-pool=base={base},size=24")
        general = (f"--host={self.address}", f"--containerd={self._containerd_socket}", "--log-level=warn")
        return [self.program, *general, *folders, *networks, *self._options]


class Podman(ContainerDaemon):
    """Podman: its service, which speaks Docker's API, with networks by netavark; containers run without it."""

    program = "podman"

    def _argv(self) -> list[str]:
        return [self.program, "system", "service", "--time=0", self.address]

    def native(self, *arguments: str) -> str:
        """Run a command of Podman that Docker's API lacks, and return its output."""
        argv = ["nsenter", f"--net={self._namespace}", self.program, *arguments]
        done = subprocess.run(
            argv, env=self._environment(), capture_output=True, text=True, check=False, timeout=_START
        )
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def pod(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a pod with these labels."""
        given = [f"--label={key}={value}" for key, value in labels.items()]
        infra = (f"--infra-image={_IMAGE}", "--infra-command=/bin/sleep 1000")
        self.native("pod", "create", "--name", name, *infra, *given)

    def launch(
        self, name: str, *options: str, labels: Mapping[str, str] | None = None, command: tuple[str, ...] = SERVER
    ) -> None:
        """Run a container in the background; one of a pod by Podman's own command."""
        if "--pod" not in options:
            super().launch(name, *options, labels=labels, command=command)
            return
        given = [f"--label={key}={value}" for key, value in (labels or {}).items()]
        self.native("run", "--detach", "--name", name, *given, *options, _IMAGE, *command)

    def clear(self) -> None:
        """Remove pods first: the infra container of a pod cannot be removed alone."""
        self.native("pod", "rm", "--all", "--force", "--time", "0")
        super().clear()

    def _environment(self) -> dict[str, str]:
        """Return an environment by which this service shares nothing with a Podman of the host."""
        settings, storage = self.folder / "containers.conf", self.folder / "storage.conf"
        # the limits of a container are at most those of the test
        limits = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        network = f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{self.folder}/networks"\n'
        engine = (
            f'tmp_dir = "{self.folder}/tmp"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
        )
        settings.write_text(f"{limits}{network}[engine]\n{engine}")
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/graph"\nrunroot = "{self.folder}/run"\n'
        )
        own = {"CONTAINERS_CONF": str(settings), "CONTAINERS_STORAGE_CONF": str(storage)}
        return {**super()._environment(), **own}


DaemonT = TypeVar("DaemonT", bound=ContainerDaemon)


@contextmanager
def running(daemon: DaemonT) -> Iterator[DaemonT]:
    """Give a daemon that runs, with its image; skip the test where it cannot run; remove everything at the end."""
    if missing := daemon_missing(daemon.program):
        pytest.skip(missing)
    try:
        try:
            daemon.start()
        except DaemonFailed as error:
            pytest.skip(str(error))
        daemon.load_image()
        yield daemon
    finally:
        daemon.remove()


def ping_as_first_action(daemon: ContainerDaemon) -> tuple[int, int]:
    """Start a backend, then two containers that ping it at once; return their exit codes.

    A frontend pings until an answer arrives, a container of another role three times.
    """
    daemon.launch("web", labels=BACKEND)
    address = daemon.address_of("web")
    until_answered = ("sh", "-c", f"until ping -c 1 -W 1 {address}; do true; done")
    daemon.launch("front", labels=FRONTEND, command=until_answered)
    daemon.launch("other", labels=OTHER, command=("ping", "-c", "3", "-W", "1", address))
    return daemon.exit_status("front"), daemon.exit_status("other")


def daemon_missing(program: str) -> str | None:
    """Return the reason for which tests with a daemon are skipped, None if it is installed."""
    missing = [name for name in (program, "docker") if shutil.which(name) is None]
    missing += [] if _BUSYBOX.exists() else ["a static Busybox"]
    return f"{' and '.join(missing)} not installed (make setup)" if missing else None


def endpoints(node: LabNode) -> dict[str, dict[str, Any]]:
    """Return the endpoints that a node knows, by full name."""
    return {f"{one['namespace']}/{one['name']}": one for one in client.call(node.socket, "endpoints")}


async def known(node: LabNode, *names: str) -> dict[str, dict[str, Any]]:
    """Return the endpoints once the node knows just these, each with its interface."""
    await until(lambda: endpoints(node).keys() == set(names) and all(e["interface"] for e in endpoints(node).values()))
    return endpoints(node)
