"""Executor over ssh: one connection to each host carries all commands, as root on that host.

A process on the host, which ends at the end of its standard input, keeps the connection open: when this process ends
in any way, its commands on the host end too. A machine without ``ssh`` in the inventory is on this host.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.lab.inventory import ROLES, Inventory, RemoteMachine
from nfq_enforcer.lab.topology import IPAddress

_TIMEOUT = 30.0
_ROOT = "0"
# The PATH of a plain user, and of a command over ssh, lacks these folders.
_WITH_PATH = 'PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin; exec "$@"'
_KEEP_OPEN = "id -u && exec cat"


class SshExecutor:
    """SshExecutor: runs commands on the machines of an inventory."""

    python = "python3"

    def __init__(self, inventory: Inventory, state: Path) -> None:
        """Keep the machines, and a local folder for the connections' files and logs; do not connect yet."""
        self.state = state
        self._machines = {machine.name: machine for machine in inventory.machines}
        self._connections: dict[str | None, _SshConnection] = {}

    def connect(self) -> None:
        """Connect to every host; raise NfqError for the first that is unreachable or does not give root."""
        for machine in self._machines.values():
            if machine.ssh not in self._connections:
                connection = self._connections[machine.ssh] = _SshConnection(machine.ssh, self.state)
                connection.open()

    def close(self) -> None:
        """Close all connections; the commands that still run over them end."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def address(self, machine: str, family: int = 4) -> IPAddress:
        """Return a machine's own address of IP version 4 or 6; raise BadInput with the known names."""
        return next(address for address in self._machine(machine).ips if address.version == family)

    def command(self, machine: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command on a machine, with its standard input and output here."""
        remote = self._machine(machine)
        inside = ["ip", "netns", "exec", remote.namespace, *argv] if remote.namespace else list(argv)
        return self._connections[remote.ssh].command(inside)

    def find(self, name: str) -> str:
        """Return the name itself; the machine's PATH resolves it."""
        return name

    def run(self, machine: str, *argv: str, text: str = "") -> str:
        """Run a command on a machine to its end; return its output, raise NfqError with its last error line."""
        return _run(self.command(machine, argv), machine, text)

    def _machine(self, name: str) -> RemoteMachine:
        if name not in self._machines:
            raise BadInput(f"there is no machine {name!r}; there are {', '.join(ROLES)}")
        return self._machines[name]


class _SshConnection:
    """Connection to one host, over ssh or, for this host, as a local shell."""

    def __init__(self, destination: str | None, state: Path) -> None:
        self._destination = destination
        self._control = state / f"{destination}.ssh"
        self._log = state / f"{destination}.log"
        self._master: subprocess.Popen[bytes] | None = None
        self._as_root: list[str] = []

    def open(self) -> None:
        """Connect, and determine how commands get root on the host."""
        user = str(os.geteuid()) if self._destination is None else self._connect(self._destination)
        if user != _ROOT:
            self._as_root = ["sudo", "-n"]
            _run(self.command(["true"]), f"no root on {self._destination or 'this host'} without a password")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command on the host as root."""
        full = ["sh", "-c", _WITH_PATH, "sh", *self._as_root, *argv]
        if self._destination is None:
            return full
        return ["ssh", *self._options("no"), self._destination, shlex.join(full)]

    def close(self) -> None:
        """Close the connection, also for commands that still use it; on the host their standard input ends."""
        if self._master is not None:
            self._master.terminate()
            self._master.communicate()

    def _connect(self, destination: str) -> str:
        """Connect by ssh; return the user id on the host."""
        # In a session of its own: an interrupt from the keyboard must not close a connection that the clean-up needs.
        with self._log.open("wb") as log:
            self._master = subprocess.Popen(
                ["ssh", *self._options("yes"), destination, _KEEP_OPEN],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._master.stdout is not None
        user = self._master.stdout.readline().decode().strip()
        if not user:
            raise NfqError(f"{destination} cannot be reached by ssh: {_last_line(self._log.read_text())}")
        return user

    def _options(self, master: str) -> list[str]:
        settings = {
            "BatchMode": "yes",  # a password prompt would wait forever
            "ConnectTimeout": "10",
            "ServerAliveInterval": "10",
            "ControlMaster": master,
            "ControlPath": str(self._control),
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _run(command: Sequence[str], subject: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False, start_new_session=True
        )
    except FileNotFoundError as error:
        raise NfqError(f"{subject}: {error.filename} is not there") from None
    except subprocess.TimeoutExpired:
        raise NfqError(f"{subject}: no answer in {_TIMEOUT:.0f} seconds") from None
    if done.returncode != 0:
        raise NfqError(f"{subject}: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(stderr: str) -> str:
    return next(filter(None, reversed(stderr.splitlines())), "no error output")
