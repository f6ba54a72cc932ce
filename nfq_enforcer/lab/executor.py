"""What it takes to make traffic on machines, and to capture it there, wherever they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nfq_enforcer.lab.topology import Address


class Executor(Protocol):
    """Machines that commands can be run on, as root."""

    @property
    def state(self) -> Path:
        """Return the folder here for logs and captures."""

    @property
    def python(self) -> str:
        """Return the interpreter that the machines have, for programs of the standard library alone."""

    def address(self, machine: str, family: int = 4) -> Address:
        """Return a machine's own address of IP version 4 or 6; raise BadInput with the names there are."""

    def command(self, machine: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command on a machine, with standard input and output of it here."""

    def find(self, name: str) -> str:
        """Return what a command is called there; raise NfqError, where that can be seen from here, if it is not."""
