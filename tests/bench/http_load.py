"""HTTP load: nginx as the server and wrk as the client, each in a network namespace by its name."""

import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nfq_enforcer.errors import NfqError
from tests.bench.load import Load, run_in_namespace
from tests.bench.processes import tree_cpu

PATH = "/userdata/42"
CONCURRENT = 16  # connections of wrk
_CLOSE = "Connection: close"
_TIMEOUT, _POLL_INTERVAL = 10.0, 0.01
_GRACE = 60.0
_MAX_CLOSED = 0.001  # of the connections that wrk may close by itself: it takes an event of one for the next one's
_NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    server {{ {listen} location / {{ return 200 "ok"; }} }}
}}
"""


@dataclass(frozen=True)
class Client:
    """Client: wrk with one thread, in a namespace, and the processes whose CPU time its requests cost."""

    namespace: str
    server: str
    port: int
    pids: tuple[int, ...]  # their descendants count, too

    def requests(self, seconds: float) -> Load:
        """Send requests over connections that stay open."""
        return self._run(seconds)

    def connections(self, seconds: float) -> Load:
        """Open a connection for each request."""
        return self._run(seconds, "-H", _CLOSE)

    def _run(self, seconds: float, *options: str) -> Load:
        duration = max(1, round(seconds))  # wrk has whole seconds only
        url = f"http://{self.server}:{self.port}{PATH}"
        argv = ["wrk", "-t1", f"-c{CONCURRENT}", f"-d{duration}s", *options, url]
        # The client's own ports are free a second after their connections, not a minute (TIME_WAIT).
        run_in_namespace(self.namespace, ["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"], _GRACE)
        before = self._cpu()
        done = run_in_namespace(self.namespace, argv, duration + _GRACE)
        spent = self._cpu() - before
        return _load(done.stdout, spent, f"{' '.join(argv)}: {done.stdout}{done.stderr}")

    def _cpu(self) -> float:
        return sum(map(tree_cpu, self.pids))


def _load(output: str, cpu: float, description: str) -> Load:
    number, rate = re.search(r"(\d+) requests in", output), re.search(r"Requests/sec: +([\d.]+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    connect, read, write, timeout = map(int, errors.groups()) if errors else (0, 0, 0, 0)
    served = int(number[1]) if number else 0
    failed = connect or write or timeout or read > served * _MAX_CLOSED or "Non-2xx" in output
    if not served or not rate or failed:
        raise NfqError(f"requests failed: {description}")
    return Load(float(rate[1]), cpu / served * 1e6)


@contextmanager
def serving(namespace: str, ports: Iterable[int], directory: Path) -> Iterator[None]:
    """Run nginx with one process, which answers every request on these ports."""
    directory.mkdir()
    listen = " ".join(f"listen {port} backlog=4096;" for port in ports)
    (directory / "nginx.conf").write_text(_NGINX.format(directory=directory, listen=listen))
    argv = ["ip", "netns", "exec", namespace, "nginx", "-p", str(directory), "-c", "nginx.conf"]
    with subprocess.Popen(argv) as nginx:
        try:
            _await_file(directory / "nginx.pid")
            yield
        finally:
            nginx.terminate()


def _await_file(file: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not file.exists():
        if time.monotonic() > deadline:
            raise NfqError("nginx does not start; see the output above")
        time.sleep(_POLL_INTERVAL)
