"""Traffic that is not the bottleneck: small C programs, compiled when a run begins.

Each is one process with its two ends in two namespaces of a lab, bounded in time, and ends with whoever started it.
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
_WINDOW = 256  # datagrams on the way at a time
_AT_ANY_RATE = 0
_GRACE = 60.0


class Programs:
    """The compiled programs, in a folder."""

    def __init__(self, folder: Path) -> None:
        """Compile all of them; a warning is an error."""
        self._folder = folder
        for name in _PROGRAMS:
            source = _SOURCES / f"{name}.c"
            _compile([*_COMPILER, "-o", str(folder / name), str(source), *_LIBRARIES.get(name, ())])

    def path(self, name: str) -> str:
        """Return where a program is."""
        return str(self._folder / name)

    def bulk(self, lab: Lab, place: Place, seconds: float) -> dict[str, float]:
        """Send over one TCP connection as much as goes."""
        return self._run(lab, place, BULK, seconds)

    def connections(self, lab: Lab, place: Place, seconds: float, at_once: int) -> dict[str, float]:
        """Open TCP connections, so many at a time."""
        return self._run(lab, place, CONNECTIONS, seconds, at_once)

    def datagrams(self, lab: Lab, place: Place, seconds: float) -> dict[str, float]:
        """Send as many datagrams as the way carries."""
        return self._run(lab, place, DATAGRAMS, seconds, SIZE, _WINDOW, _AT_ANY_RATE)

    def _run(self, lab: Lab, place: Place, name: str, seconds: float, *more: int) -> dict[str, float]:
        namespace = f"/run/netns/{lab.topology.namespace(place.target)}"
        argv = [self.path(name), namespace, str(lab.address(place.target)), str(_PORT), str(seconds), *map(str, more)]
        done = subprocess.run(
            lab.network.command(place.source, argv),
            capture_output=True,
            text=True,
            timeout=seconds + _GRACE,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip() or f"it ended with {done.returncode}"
            raise NfqError(f"{name} from {place.source} to {place.target}: {said}")
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures


def _compile(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NfqError("the programs that make traffic need a compiler: install build-essential") from None
    if done.returncode != 0:
        raise NfqError(f"`{' '.join(argv)}` failed: {done.stderr}")
