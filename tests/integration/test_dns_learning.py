"""Addresses learned from DNS answers: known to every worker before the client has the answer, and to policy at once."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from nfq_enforcer.agent import client as api
from nfq_enforcer.dataplane.worker.timings import DEFAULT_TIMINGS
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import find_command
from nfq_enforcer.lab.process import LabProcess
from nfq_enforcer.lab.topology import UPLINK, IPAddress
from tests.integration.conftest import MakeLab
from tests.support.dns import AAAA, A, address, alias, answer, query
from tests.support.dns_server import DnsClient, DnsServer
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    FAMILIES,
    HTTP,
    OTHER_TCP,
    PATIENT,
    DatapathSettings,
    flows_since,
    kill,
    now,
    run_in,
    start,
)
from tests.support.namespaces import within

NAME = "api.example.com"
NO_ERROR = 0

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {matchLabels: {role: frontend}}
  egress:
    - toEntities: [world]
      toPorts: [{ports: [{port: "5353", protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]
    - toFQDNs: [{matchPattern: '*.example.com'}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""
PORT = 5353  # beside the lab's own servers
TWO_WORKERS, ONE_WORKER, PER_FLOW_TWO_WORKERS, PER_FLOW_ONE_WORKER = DATAPATHS


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    return make_served(memory=True)


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[DnsServer]:
    server = DnsServer(lab, "world", lambda _: [], PORT)
    yield server
    server.close()


@pytest.fixture(params=DATAPATHS, ids=str)
def datapath(request: pytest.FixtureRequest) -> DatapathSettings:
    settings: DatapathSettings = request.param
    return settings


@pytest.fixture
def node(lab: Lab, datapath: DatapathSettings) -> Iterator[None]:
    with contextlib.suppress(FileNotFoundError):
        names_file(lab).unlink()
    start(lab, "n1", documents=POLICY, **datapath.settings)
    yield
    lab.nodes["n1"].stop()


def names_file(lab: Lab) -> Path:
    return lab.nodes["n1"].state / "names.json"


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    family: int = request.param
    return family


@pytest.fixture
def client(lab: Lab, node: None, family: int) -> Iterator[DnsClient]:
    client = DnsClient(lab, "front1", "world", family, PORT)
    yield client
    client.close()


def connects(lab: Lab, target: IPAddress, port: int = HTTP, timeout: float = BRIEF) -> bool:
    """Return whether front1 reaches a TCP port."""

    def connect() -> bool:
        try:
            socket.create_connection((str(target), port), timeout=timeout).close()
        except TimeoutError:
            return False
        return True

    return within(lab, "front1", connect)


def named(lab: Lab, name: str, family: int, machine: str = "world", ttl: int = 60) -> bytes:
    """Return the answer that gives a name the address of a machine."""
    return answer(name, address(name, str(lab.address(machine, family)), ttl), kind=A if family == 4 else AAAA)


def ask(client: DnsClient, name: str, family: int) -> int | None:
    return client.rcode(query(name, A if family == 4 else AAAA), PATIENT)


def test_a_learned_address_is_open_when_the_client_has_the_answer(
    lab: Lab, server: DnsServer, client: DnsClient, family: int, datapath: DatapathSettings
) -> None:
    world = lab.address("world", family)
    server.respond = lambda _: [named(lab, NAME, family)]

    assert not connects(lab, world)
    assert ask(client, NAME, family) == NO_ERROR
    assert connects(lab, world, timeout=PATIENT)
    assert not connects(lab, world, OTHER_TCP)
    (listed,) = listed_names(lab)
    assert (listed["name"], listed["endpoint"], listed["selectors"]) == (NAME, "default/front1", ["*.example.com"])
    assert [(one["address"], 60 < one["expires_in"] <= 70) for one in listed["addresses"]] == [(str(world), True)]
    names = lab.nodes["n1"].status()["names"]
    assert names == {"names": 1, "addresses": 1, "evicted": 0, "held": int(datapath.queues == 2)}


def test_many_new_names_one_after_another_are_open_at_once(
    lab: Lab, server: DnsServer, client: DnsClient, family: int
) -> None:
    """With two workers the queries meet one worker, and the connections to many addresses both."""
    names = [f"n{number}.example.com" for number in range(20)]
    addresses = [f"172.31.0.{number}" if family == 4 else f"fd00:31::{number:x}" for number in range(60, 80)]
    given = dict(zip(names, addresses, strict=True))
    server.respond = lambda asked: [
        answer((name := question_of(asked)), address(name, given[name]), kind=A if family == 4 else AAAA)
    ]
    since = now()

    for name in names:
        assert ask(client, name, family) == NO_ERROR
        send_syn(lab, given[name], family)

    def verdicts() -> dict[str, str]:
        return {
            flow["destination"]: flow["verdict"] for flow in flows_since(lab.nodes["n1"], since) if flow["port"] == 80
        }

    deadline = time.monotonic() + PATIENT
    while len(verdicts()) < len(given) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert verdicts() == dict.fromkeys(addresses, "FORWARDED")


def question_of(message: bytes) -> str:
    return dns.message.from_wire(message).question[0].name.to_text(omit_final_dot=True)


def send_syn(lab: Lab, target: str, family: int) -> None:
    """Send the first packet of a connection to an address that nobody has."""

    def begin() -> None:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6) as made:
            made.setblocking(False)
            made.connect_ex((target, HTTP))

    within(lab, "front1", begin)


def listed_names(lab: Lab) -> list[dict[str, Any]]:
    command = [sys.executable, "-P", "-m", "nfq_enforcer.cli", "fqdn", "list", "-o", "json"]
    done = subprocess.run(
        [*command, "--socket", str(lab.nodes["n1"].socket)], capture_output=True, text=True, check=True, timeout=60
    )
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def always(message: bytes) -> Callable[[bytes], list[bytes]]:
    """Return a function that answers every query with the same message."""
    return lambda _: [message]


@pytest.mark.parametrize("datapath", [ONE_WORKER, TWO_WORKERS], ids=str)
def test_other_addresses_are_not_learned(lab: Lab, server: DnsServer, client: DnsClient, family: int) -> None:
    """One agent gets all of these answers: it learns from none."""
    world = str(lab.address("world", family))
    asked, other = A if family == 4 else AAAA, "other.example.org"

    def of(machine: str) -> bytes:
        return answer(NAME, address(NAME, str(lab.address(machine, family))), kind=asked)

    wrong = {
        "another name": (other, answer(other, address(other, world), kind=asked), "world"),
        "an alias of another name": (
            NAME,
            answer(NAME, alias("x.example.com", "b"), address("b", world), kind=asked),
            "world",
        ),
        "an endpoint": (NAME, of("back2"), "back2"),
        "this host": (NAME, of("n1"), "n1"),
        "a truncated answer": (NAME, answer(NAME, address(NAME, world), kind=asked, flags=0x8380), "world"),
        "an error": (NAME, answer(NAME, address(NAME, world), kind=asked, flags=0x8182), "world"),
    }
    for kind, (name, message, machine) in wrong.items():
        server.respond = always(message)
        assert client.ask(query(name, asked), PATIENT) is not None, kind
        assert not connects(lab, lab.address(machine, family)), kind


@pytest.mark.parametrize("datapath", [ONE_WORKER], ids=str)
def test_an_address_is_not_learned_while_this_host_has_it(
    lab: Lab, server: DnsServer, client: DnsClient, family: int
) -> None:
    node, late = lab.nodes["n1"], {4: "172.31.0.66", 6: "fd00:31::66"}[family]
    server.respond = lambda _: [answer(NAME, address(NAME, late), kind=A if family == 4 else AAAA)]

    def learned_after(verb: str) -> int:
        """Add the address to the host, or delete it; return the number of learned addresses after an answer."""
        revision = node.status()["revision"]
        run_in(lab, "n1", "ip", "address", verb, f"{late}/{32 if family == 4 else 128}", "dev", UPLINK)
        while node.status()["revision"] == revision:
            time.sleep(0.01)
        assert ask(client, NAME, family) == NO_ERROR
        return int(node.status()["names"]["addresses"])

    assert (learned_after("add"), learned_after("del")) == (0, 1)


@pytest.mark.parametrize("datapath", [TWO_WORKERS, PER_FLOW_ONE_WORKER], ids=str)
def test_an_open_connection_outlives_its_name_and_a_change_of_policy(
    lab: Lab, server: DnsServer, client: DnsClient, family: int
) -> None:
    world = lab.address("world", family)
    server.respond = lambda _: [named(lab, NAME, family, ttl=0)]
    assert ask(client, NAME, family) == NO_ERROR
    opened = within(lab, "front1", lambda: socket.create_connection((str(world), HTTP), timeout=PATIENT))

    with opened:
        deadline = time.monotonic() + PATIENT
        while connects(lab, world) and time.monotonic() < deadline:  # 5 s after its time to live
            time.sleep(0.2)
        assert not connects(lab, world)
        revision = lab.nodes["n1"].status()["revision"]
        (lab.documents / "policies.yaml").write_text(
            POLICY.replace("metadata: {name: names}", "metadata: {name: more}")
        )
        while lab.nodes["n1"].status()["revision"] == revision:
            time.sleep(0.05)
        opened.sendall(b"?1 still there\n")
        assert opened.recv(100).startswith(b"=1 world")
        assert not connects(lab, world)


@pytest.mark.parametrize("datapath", [ONE_WORKER, PER_FLOW_TWO_WORKERS], ids=str)
def test_names_outlive_a_restart_and_dns_rules_work_at_once(
    lab: Lab, server: DnsServer, client: DnsClient, family: int, datapath: DatapathSettings
) -> None:
    world = lab.address("world", family)
    server.respond = lambda _: [named(lab, NAME, family)]
    assert ask(client, NAME, family) == NO_ERROR

    lab.nodes["n1"].stop()
    start(lab, "n1", documents=POLICY, **datapath.settings)

    assert connects(lab, world, timeout=PATIENT)
    assert client.ask(b"no query", BRIEF) is None
    assert ask(client, NAME, family) == NO_ERROR
    assert not connects(lab, lab.address("back2", family))


@pytest.mark.parametrize("datapath", [TWO_WORKERS], ids=str)
def test_names_outlive_a_handover(lab: Lab, server: DnsServer, client: DnsClient, family: int) -> None:
    server.respond = lambda _: [named(lab, NAME, family)]
    assert ask(client, NAME, family) == NO_ERROR

    lab.nodes["n1"].start_anew()

    assert connects(lab, lab.address("world", family), timeout=PATIENT)
    assert ask(client, NAME, family) == NO_ERROR


@pytest.mark.parametrize("datapath", [TWO_WORKERS], ids=str)
def test_a_worker_that_dies_starts_with_all_names(lab: Lab, server: DnsServer, client: DnsClient, family: int) -> None:
    server.respond = lambda _: [named(lab, NAME, family)]
    assert ask(client, NAME, family) == NO_ERROR

    for worker in lab.nodes["n1"].status()["workers"]:
        kill(worker["pid"])
    deadline = time.monotonic() + PATIENT
    while lab.nodes["n1"].status()["worker"]["restarts"] < 2 and time.monotonic() < deadline:
        time.sleep(0.05)

    assert connects(lab, lab.address("world", family), timeout=PATIENT)


@pytest.mark.parametrize("datapath", [TWO_WORKERS], ids=str, indirect=True)
def test_an_answer_that_is_held_in_vain_is_in_a_capture(
    lab: Lab, server: DnsServer, client: DnsClient, family: int
) -> None:
    server.respond = lambda _: [named(lab, NAME, family)]
    node = lab.nodes["n1"]
    options: dict[str, Any] = {"snaplen": 300, "reasons": ["DNS_NOT_LEARNED"], "count": 1}

    with contextlib.closing(api.stream(node.socket, "capture", PATIENT, **options)) as items:
        assert "begun" in next(items)
        os.kill(node.pid, signal.SIGSTOP)  # so that it does not release the answer
        try:
            answered = client.rcode(query(NAME, A if family == 4 else AAAA), 2 * DEFAULT_TIMINGS.hold)
        finally:
            os.kill(node.pid, signal.SIGCONT)
        packet = next(items)["packet"]

    assert answered is None
    assert packet["flow"]["drop_reason_desc"] == "DNS_NOT_LEARNED"
    assert b"\3api\7example\3com" in base64.b64decode(packet["data"])
    assert (packet["arrived_by"], packet["leaves_by"]) == ("eth0", "veth-front1")


@pytest.mark.parametrize("datapath", [ONE_WORKER, TWO_WORKERS], ids=str)
def test_answers_of_a_real_server_are_learned(lab: Lab, node: None, family: int) -> None:
    """dnsmasq: with an alias, EDNS, and names that do not exist."""
    port, world = 5454, lab.address("world", family)
    file = lab.documents / "policies.yaml"
    file.write_text(POLICY.replace(str(PORT), str(port)))
    dnsmasq = LabProcess(lab.network, "world", "dnsmasq", lab.network.state / "dns.log", lab.network.state / "dns.pid")
    records = ("--cname=www.example.com,real.example.com",)
    dnsmasq.start(
        [
            *(find_command("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-"),
            *("--user=root", f"--port={port}", "--no-resolv", "--no-hosts", "--bind-dynamic", *records),
            *(f"--host-record=real.example.com,{world}", "--local=/example.com/"),
        ],
        {"PATH": "/usr/sbin:/usr/bin"},
    )
    client = DnsClient(lab, "front1", "world", family, port)
    try:
        asked = dns.message.make_query("WWW.example.com", "A" if family == 4 else "AAAA", use_edns=0).to_wire()
        deadline = time.monotonic() + PATIENT
        while (heard := answered(client, asked)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert heard is not None
        assert str(world) in dns.message.from_wire(heard).to_text()
        assert connects(lab, world, timeout=PATIENT)
        assert client.rcode(query("none.example.com"), PATIENT) == dns.rcode.NXDOMAIN
        assert [one["name"] for one in listed_names(lab)] == ["www.example.com"]
    finally:
        client.close()
        dnsmasq.stop()


def answered(client: DnsClient, message: bytes) -> bytes | None:
    """Return the answer to a message, None while the server does not listen, or the policy is not in force."""
    with contextlib.suppress(ConnectionRefusedError):
        return client.ask(message, BRIEF)
    return None
