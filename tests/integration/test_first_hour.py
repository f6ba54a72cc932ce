"""First hour with an agent: a missing interface is reported, a trace asks the agent, and no client stops the agent."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.policy.warnings import without_interface
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, FRONT_TO_BACK, HTTP, PATIENT, kill, run_in, start, until

SLOW = """
import resource, socket, sys, time
number = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (number + 100, number + 100))
kept = []
for _ in range(number):
    try:
        connection = socket.create_connection(("127.0.0.1", 9962), timeout=5)
        connection.sendall(b"GET /")
        kept.append(connection)
    except OSError:
        continue
print(len(kept), flush=True)
sys.stdin.read()
"""
DEVICE = "late9"
LATE = f"""
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: late, labels: {{role: late}}}}
spec: {{ips: [10.99.0.1], node: n1, interface: {DEVICE}}}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: bare, labels: {{role: late}}}}
spec: {{ips: [10.99.0.2], node: n1}}
---
"""


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    lab = make_served(memory=True)
    start(lab, "n1", documents=LATE + FRONT_TO_BACK)
    return lab


def program(lab: Lab, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "nfq_enforcer.cli", *arguments, "--socket", str(lab.nodes["n1"].socket)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


async def test_an_interface_that_does_not_exist_is_reported_until_it_does(lab: Lab) -> None:
    node = lab.nodes["n1"]
    sentence = f"endpoint default/late is on interface {DEVICE}, which does not exist on this node"

    bare = without_interface(["default/bare"])

    assert node.status()["problems"] == [sentence, bare]
    shown = " ".join(program(lab, "status").stdout.split())
    assert sentence in shown
    assert bare in shown
    listed = {line.split()[0]: line.rstrip() for line in program(lab, "endpoint", "list").stdout.splitlines()}
    assert listed["default/late"].endswith(f"interface {DEVICE} does not exist")
    assert listed["default/bare"].endswith("no interface: others can send from its addresses")
    assert listed["default/front1"].endswith("ok")

    run_in(lab, "n1", "ip", "link", "add", DEVICE, "type", "veth", "peer", "name", f"{DEVICE}p")
    await until(lambda: node.status()["problems"] == [bare])
    assert node.log.read_text().count(sentence) == 1
    run_in(lab, "n1", "ip", "link", "delete", DEVICE)


def test_a_trace_without_files_asks_the_running_agent(lab: Lab) -> None:
    ends = ("--from", "default/front1", "--to", "default/back1", "-o", "json")
    allowed = program(lab, "policy", "trace", *ends, "--port", str(HTTP))
    denied = program(lab, "policy", "trace", "--from", "default/late", *ends[2:], "--port", str(HTTP))

    assert (allowed.returncode, denied.returncode) == (0, 1)
    assert json.loads(allowed.stdout)["documents_of"].startswith("the running agent of node n1, revision ")


async def test_flows_of_all_workers_are_listed_and_a_flush_cuts_no_allowed_one(lab: Lab) -> None:
    front, back = lab.host("front1"), str(lab.address("back1"))
    assert (await front.connect(lab.address("back1"), HTTP, PATIENT)).ok

    flows = json.loads(program(lab, "conntrack", "list", "--to", "back1", "-o", "json").stdout)["flows"]
    assert {(flow["destination"]["address"], flow["destination"]["port"]) for flow in flows} == {(back, HTTP)}
    assert all(flow["source"]["identity"] and flow["revision"] for flow in flows)
    assert json.loads(program(lab, "conntrack", "list", "--to", "192.0.2.1", "-o", "json").stdout)["flows"] == []
    assert program(lab, "conntrack", "list", "--to", "nobody").returncode == 2

    assert program(lab, "conntrack", "flush").returncode == 0
    assert (await front.connect(lab.address("back1"), HTTP, PATIENT)).ok
    assert not (await lab.host("back1").connect(lab.address("front1"), HTTP, BRIEF)).ok


@contextlib.contextmanager
def slow_scrapers(lab: Lab, number: int) -> Iterator[None]:
    """Keep connections to the metrics open that never send their request."""
    argv = lab.network.command("n1", [sys.executable, "-c", SLOW, str(number)])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as scrapers:
        assert scrapers.stdin is not None
        assert scrapers.stdout is not None
        assert int(scrapers.stdout.readline()) > 0
        yield
        scrapers.stdin.close()


@contextlib.contextmanager
def slow_clients(lab: Lab, number: int, request: bytes) -> Iterator[None]:
    """Keep connections to the API open that send this and never read."""
    with contextlib.ExitStack() as kept:
        for _ in range(number):
            connection = kept.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                connection.connect(str(lab.nodes["n1"].socket))
                connection.sendall(request)
        yield


async def test_no_number_of_slow_clients_stops_the_agent_or_fills_its_log(lab: Lab) -> None:
    node = lab.nodes["n1"]
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    before = len(node.log.read_text().splitlines())
    with (
        slow_scrapers(lab, 2000),
        slow_clients(lab, 300, b'{"method":'),
        slow_clients(lab, 300, b'{"method":"observe","params":{"follow":true}}\n'),
    ):
        assert len(os.listdir(f"/proc/{node.pid}/fd")) < 400  # noqa: PTH208
        (worker, *_) = node.status()["workers"]
        began = time.monotonic()
        kill(worker["pid"])
        await until(lambda: node.status()["workers"][0]["pid"] not in (None, worker["pid"]))
        assert time.monotonic() - began < 5
        assert (await lab.host("front1").connect(lab.address("back1"), HTTP, PATIENT)).ok
        scrape = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9962/metrics', timeout=9).status)"
        assert run_in(lab, "n1", sys.executable, "-c", scrape).strip() == "200"
    lines = node.log.read_text().splitlines()[before:]
    assert len(lines) < 60, lines
    assert client.call(node.socket, "status")["node"] == "n1"
