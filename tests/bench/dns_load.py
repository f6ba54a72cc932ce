"""DNS load: a server that has its answers ready, and dnsperf as the client, each in a network namespace by its name.

A name server for production would be slower than the agent, and the measurement one of it.
"""

import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.errors import NfqError
from tests.bench.load import Load, run_in_namespace
from tests.bench.processes import tree_cpu
from tests.support import dns

ZONE = "bench.example"
_FIRST = IPv4Address("198.18.0.1")  # of the addresses in answers: RFC 2544 has 131,072 of them for benchmarks
_OUTSTANDING = 64  # queries without an answer
_SOCKETS = 8  # of dnsperf: ports of the client
_GRACE = 60.0
_TTL = 3600
_HEADER = 12  # bytes before the question
_POINTER = b"\xc0\x0c"  # to the name of the question (RFC 1035, section 4.1.4)
_READY = "ready\n"


class Names(NamedTuple):
    """Names: a range of names, each with as many addresses, and no address of another name."""

    first: int  # number of the first one
    size: int
    addresses: int  # of each

    def answers(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each question, as in a query, with the answer, both from behind the header's identifier on."""
        for number in range(self.first, self.first + self.size):
            first, name = _FIRST + number * self.addresses, _name(number)
            records = (_POINTER + dns.address("", str(first + place), _TTL)[1:] for place in range(self.addresses))
            yield dns.question(name), dns.answer(name, *records)[2:]

    def queries(self) -> str:
        """Return the lines of dnsperf's data file."""
        return "".join(f"{_name(number)} A\n" for number in range(self.first, self.first + self.size))


def _name(number: int) -> str:
    return f"n{number}.{ZONE}"


@dataclass(frozen=True)
class Client:
    """Client: dnsperf with one thread, in a namespace, and the process whose CPU time its queries cost."""

    namespace: str
    server: str
    queries: Path
    pid: int  # its descendants count, too

    def repeat(self, seconds: float) -> Load:
        """Send the queries again and again."""
        return self._run("-l", f"{seconds:g}")

    def once(self) -> Load:
        """Send each query once."""
        return self._run("-n", "1", "-l", f"{_GRACE:g}")

    def _run(self, *options: str) -> Load:
        argv = ["dnsperf", "-s", self.server, "-d", str(self.queries)]
        argv += ["-e", "-T", "1", "-c", str(_SOCKETS), "-q", str(_OUTSTANDING), "-t", "2", *options]
        before = tree_cpu(self.pid)
        done = run_in_namespace(self.namespace, argv, 2 * _GRACE)
        return _load(done.stdout, tree_cpu(self.pid) - before, f"{' '.join(argv)}: {done.stdout}{done.stderr}")


def _load(output: str, cpu: float, description: str) -> Load:
    rate, completed = re.search(r"Queries per second: +([\d.]+)", output), re.search(r"completed: +(\d+)", output)
    if not (rate and completed and re.search(r"lost: +0 ", output) and re.search(r"codes: +NOERROR \d+ \(100", output)):
        raise NfqError(f"queries failed: {description}")
    return Load(float(rate[1]), cpu / int(completed[1]) * 1e6)


@contextmanager
def serving(namespace: str, names: Iterable[Names]) -> Iterator[None]:
    """Run a server that knows these names, and does not answer other queries."""
    argv = ["ip", "netns", "exec", namespace, sys.executable, "-m", __name__]
    argv += [str(number) for part in names for number in part]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None or server.stdout.readline() != _READY:
                raise NfqError("the DNS server of the measurement does not start; see the output above")
            yield
        finally:
            server.terminate()


def _serve(names: Iterable[Names]) -> None:
    """Answer queries until terminated."""
    answers = {question: answer for part in names for question, answer in part.answers()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 53))
        print(_READY, end="", flush=True)
        while True:
            query, client = server.recvfrom(512)
            end = query.index(0, _HEADER) + 5  # behind the name's last byte, type and class
            if answer := answers.get(query[_HEADER:end]):
                server.sendto(query[:2] + answer, client)


if __name__ == "__main__":
    numbers = list(map(int, sys.argv[1:]))
    _serve(Names(*numbers[start : start + 3]) for start in range(0, len(numbers), 3))
