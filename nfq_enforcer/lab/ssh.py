"""Machines over ssh: one connection to each host carries all commands, as root there.

The connection is held open by a process that ends when its standard input does: whatever becomes of us, nothing of
ours goes on there. A host of which the file says nothing about ssh is this one.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.lab.inventory import PARTS, Inventory, Machine
from nfq_enforcer.lab.topology import Address

_TIMEOUT = 30.0
_ROOT = "0"
# What a plain user's PATH, and that of a command over ssh, leave out.
_WITH_PATH = 'PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin; exec "$@"'
_HOLD = "id -u && exec cat"


class SshExecutor:
    """The machines of a site."""

    python = "python3"

    def __init__(self, hosts: Inventory, state: Path) -> None:
        """Take the machines, and a folder here for what belongs to the connections; nothing is asked yet."""
        self.state = state
        self._machines = {machine.name: machine for machine in hosts.machines}
        self._links: dict[str | None, _Link] = {}

    def connect(self) -> None:
        """Connect to every host; raise NfqError for the first that cannot be had, or where we cannot be root."""
        for machine in self._machines.values():
            if machine.ssh not in self._links:
                link = self._links[machine.ssh] = _Link(machine.ssh, self.state)
                link.open()

    def close(self) -> None:
        """Hang up; what still runs there over these connections ends."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def address(self, machine: str, family: int = 4) -> Address:
        """Return a machine's own address of IP version 4 or 6; raise BadInput with the names there are."""
        return next(address for address in self._machine(machine).ips if address.version == family)

    def command(self, machine: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command on a machine, with standard input and output of it here."""
        place = self._machine(machine)
        inside = ["ip", "netns", "exec", place.namespace, *argv] if place.namespace else list(argv)
        return self._links[place.ssh].command(inside)

    def find(self, name: str) -> str:
        """Return the name itself: where it is, the machine knows."""
        return name

    def run(self, machine: str, *argv: str, text: str = "") -> str:
        """Run a command on a machine to its end; return what it prints, raise NfqError with its complaint."""
        return _run(self.command(machine, argv), machine, text)

    def _machine(self, name: str) -> Machine:
        if name not in self._machines:
            raise BadInput(f"there is no machine {name!r}; there are {', '.join(PARTS)}")
        return self._machines[name]


class _Link:
    """The way to one host."""

    def __init__(self, destination: str | None, state: Path) -> None:
        self._destination = destination
        self._control = state / f"{destination}.ssh"
        self._log = state / f"{destination}.log"
        self._holder: subprocess.Popen[bytes] | None = None
        self._as_root: list[str] = []

    def open(self) -> None:
        """Connect, and see how to be root there."""
        user = str(os.geteuid()) if self._destination is None else self._connect(self._destination)
        if user != _ROOT:
            self._as_root = ["sudo", "-n"]
            _run(self.command(["true"]), f"no root on {self._destination or 'this host'} without a password")

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command there as root."""
        full = ["sh", "-c", _WITH_PATH, "sh", *self._as_root, *argv]
        if self._destination is None:
            return full
        return ["ssh", *self._options("no"), self._destination, shlex.join(full)]

    def close(self) -> None:
        """Cut the connection, whatever still uses it; at the other end that is a closed standard input."""
        if self._holder is not None:
            self._holder.terminate()
            self._holder.communicate()

    def _connect(self, destination: str) -> str:
        """Return the number of the user that we are there."""
        # It is not in our session: an interrupt from the keyboard must not cut what still has to be tidied up.
        with self._log.open("wb") as log:
            self._holder = subprocess.Popen(
                ["ssh", *self._options("yes"), destination, _HOLD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._holder.stdout is not None
        user = self._holder.stdout.readline().decode().strip()
        if not user:
            raise NfqError(f"{destination} cannot be reached by ssh: {_last_line(self._log.read_text())}")
        return user

    def _options(self, master: str) -> list[str]:
        settings = {
            "BatchMode": "yes",  # a question for a password could only wait
            "ConnectTimeout": "10",
            "ServerAliveInterval": "10",
            "ControlMaster": master,
            "ControlPath": str(self._control),
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _run(command: Sequence[str], what: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False, start_new_session=True
        )
    except FileNotFoundError as error:
        raise NfqError(f"{what}: {error.filename} is not there") from None
    except subprocess.TimeoutExpired:
        raise NfqError(f"{what}: no answer in {_TIMEOUT:.0f} seconds") from None
    if done.returncode != 0:
        raise NfqError(f"{what}: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(said: str) -> str:
    return next(filter(None, reversed(said.splitlines())), "it did not say why")
