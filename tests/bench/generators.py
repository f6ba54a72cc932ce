"""Traffic generators that are not the bottleneck: small C programs, compiled at the start of a run.

Each is one process with its two ends in two namespaces of a lab, bounded in time, and ends with its parent process.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from tests.bench.places import Place

BULK, CONNECTIONS, DATAGRAMS = "bulk", "connections", "datagrams"
ACCEPT_ALL, ACCEPT_BATCHES = "accept_all", "accept_batches"
SIZE = 64  # bytes of a datagram

_SOURCES = Path(__file__).parent / "programs"
_COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
_LIBRARIES = dict.fromkeys((ACCEPT_ALL, ACCEPT_BATCHES), ("-lnetfilter_queue", "-lnfnetlink"))
_PROGRAMS = (BULK, CONNECTIONS, DATAGRAMS, ACCEPT_ALL, ACCEPT_BATCHES)
_PORT = 7000
_WINDOW = 256  # datagrams in flight
_UNLIMITED = 0
_GRACE = 60.0


class Programs:
    """Programs: the compiled programs, in a folder."""

    def __init__(self, folder: Path) -> None:
        """Compile all programs; a warning is an error."""
        self._folder = folder
        for name in _PROGRAMS:
            source = _SOURCES / f"{name}.c"
            _compile([*_COMPILER, "-o", str(folder / name), str(source), *_LIBRARIES.get(name, ())])

    def path(self, name: str) -> str:
        """Return a program's path."""
        return str(self._folder / name)

    def bulk(self, lab: Lab, place: Place, seconds: float) -> dict[str, float]:
        """Send at full rate over one TCP connection."""
        return self._run(lab, place, BULK, seconds)

    def connections(
        self, lab: Lab, place: Place, seconds: float, concurrent: int, port: int = _PORT, family: int = 4
    ) -> dict[str, float]:
        """Open TCP connections, so many concurrently, to ports from this one on; raise NfqError if one fails."""
        return self._run(lab, place, CONNECTIONS, seconds, concurrent, port=port, family=family)

    def datagrams(self, lab: Lab, place: Place, seconds: float) -> dict[str, float]:
        """Send datagrams at full rate."""
        return self._run(lab, place, DATAGRAMS, seconds, SIZE, _WINDOW, _UNLIMITED)

    def _run(
        self, lab: Lab, place: Place, name: str, seconds: float, *more: int, port: int = _PORT, family: int = 4
    ) -> dict[str, float]:
        namespace = f"/run/netns/{lab.topology.namespace(place.target)}"
        address = str(lab.address(place.target, family))
        argv = [self.path(name), namespace, address, str(port), str(seconds), *map(str, more)]
        done = subprocess.run(
            lab.network.command(place.source, argv),
            capture_output=True,
            text=True,
            timeout=seconds + _GRACE,
            check=False,
        )
        if done.returncode != 0:
            reason = done.stderr.strip() or f"exit status {done.returncode}"
            raise NfqError(f"{name} from {place.source} to {place.target}: {reason}")
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures


def _compile(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NfqError("the programs that make traffic need a compiler: install build-essential") from None
    if done.returncode != 0:
        raise NfqError(f"`{' '.join(argv)}` failed: {done.stderr}")
