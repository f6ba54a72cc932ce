"""Evasions of HTTP rules, through a real Envoy to a real nginx: each has the result that docs/http.md states."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.evasions import EVASIONS, RULES, Evasion
from tests.support.proxies import PATIENCE, SERVER_PORT, ProxyLab, rule_set

DOCUMENT = Path(__file__).parents[2] / "docs/http.md"
SLOTS = range(20, 24)  # each with a server and a log of its own, so that evasions can run side by side
QUIET = 0.6  # s without bytes after which a response counts as complete

_NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 200; }}
http {{
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    large_client_header_buffers 8 128k;
    log_format seen '$request_method $request_uri|$uri|$host|$http_x_token|$http_x_a';
    {servers}
}}
"""
_SERVER = """
server {{
    listen 0.0.0.0:{port}; listen [::]:{port}; access_log {directory}/{port}.log seen;
    location / {{ return 200 "ok"; }}
}}
"""


class Result(NamedTuple):
    """Result: the statuses of the responses, and the requests that the server has logged."""

    statuses: tuple[str, ...]
    seen: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' '.join(self.statuses) or 'closed'} | {', '.join(_shown(line) for line in self.seen)}"


def _shown(line: str) -> str:
    request = line.partition("|")[0]
    return f"`{request if len(request) < 60 else request[:30] + '…'}`"


@pytest.fixture(scope="module")
def lab(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyLab]:
    lab = ProxyLab(tmp_path_factory.mktemp("proxy"))
    for slot in SLOTS:
        lab.open(slot, rule_set(*RULES))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def logs(lab: ProxyLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """Run nginx on the server; return the log of each slot."""
    directory = tmp_path_factory.mktemp("nginx")
    servers = "".join(_SERVER.format(port=SERVER_PORT + slot, directory=directory) for slot in SLOTS)
    (directory / "nginx.conf").write_text(_NGINX.format(directory=directory, servers=servers))
    argv = ["ip", "netns", "exec", lab.network.server, "nginx", "-p", str(directory), "-c", "nginx.conf"]
    with subprocess.Popen(argv) as nginx:
        lab.await_state((directory / "nginx.pid").exists)
        yield {slot: directory / f"{SERVER_PORT + slot}.log" for slot in SLOTS}
        nginx.terminate()


@pytest.fixture(scope="module")
def results(lab: ProxyLab, logs: dict[int, Path]) -> dict[str, Result]:
    with ThreadPoolExecutor(len(SLOTS)) as threads:
        parts = threads.map(lambda slot: _run(lab, slot, logs[slot], EVASIONS[slot - SLOTS[0] :: len(SLOTS)]), SLOTS)
        return {name: result for part in parts for name, result in part.items()}


def _run(lab: ProxyLab, slot: int, log: Path, evasions: tuple[Evasion, ...]) -> dict[str, Result]:
    found = {}
    for evasion in evasions:
        with lab.connect(slot) as connection:
            response = _exchange(connection, evasion)
        statuses = tuple(status.decode() for status in re.findall(rb"HTTP/1\.[01] (\d\d\d)", response))
        seen = _taken(log, sum(status.startswith("2") for status in statuses))
        found[evasion.name] = Result(statuses, tuple(seen))
    return found


def _taken(log: Path, answered: int) -> list[str]:
    """Take the lines of a log, of which nginx writes each after its response."""
    deadline = time.monotonic() + PATIENCE
    while len(lines := log.read_text("utf-8", "replace").splitlines()) < answered:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.write_text("")
    return lines


def _exchange(connection: socket.socket, evasion: Evasion) -> bytes:
    """Send the bytes of an evasion; return what arrives until nothing more does."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    response = b""
    try:
        for part in [evasion.data[i : i + 1] for i in range(len(evasion.data))] if evasion.in_bytes else [evasion.data]:
            connection.sendall(part)
        connection.settimeout(PATIENCE)
        while data := connection.recv(1 << 16):
            response += data
            connection.settimeout(QUIET)
    except (TimeoutError, ConnectionError):
        pass
    return response


def documented() -> dict[str, str]:
    """Return the documented results by the name of the evasion."""
    lines = [line.strip("|").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line] for line in lines if len(line) == 3]
    return {name.strip("`"): f"{statuses} | {seen}".strip() for name, statuses, seen in rows}


def test_each_evasion_has_its_documented_result(results: dict[str, Result]) -> None:
    expected = documented()

    assert {name: str(result).strip() for name, result in results.items()} == {
        evasion.name: expected.get(evasion.name) for evasion in EVASIONS
    }


def test_no_server_gets_a_request_for_a_refused_path(results: dict[str, Result]) -> None:
    understood = [line.split("|")[1] for result in results.values() for line in result.seen]

    assert len(understood) > 20
    assert [path for path in understood if path.startswith("/secret")] == []
