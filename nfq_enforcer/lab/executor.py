"""Protocol of an executor: runs commands on machines, for traffic and captures, wherever the machines are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nfq_enforcer.lab.topology import IPAddress


class Executor(Protocol):
    """Executor: builds the command lines that run commands on machines as root."""

    @property
    def state(self) -> Path:
        """Return the local folder for logs and captures."""

    @property
    def python(self) -> str:
        """Return the Python interpreter on the machines, for programs that import the standard library only."""

    def address(self, machine: str, family: int = 4) -> IPAddress:
        """Return a machine's own address of IP version 4 or 6; raise BadInput with the known names."""

    def command(self, machine: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command on a machine, with its standard input and output here."""

    def find(self, name: str) -> str:
        """Return the path or name of a command on the machines; raise NfqError if it is known to be missing."""
