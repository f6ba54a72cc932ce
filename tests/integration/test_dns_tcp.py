"""DNS rules over TCP on real traffic: a real server (dnsmasq), and the TCP of the kernel at both ends."""

import contextlib
import socket
import time
from collections.abc import Iterator

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import find_command
from nfq_enforcer.lab.process import LabProcess
from tests.integration.conftest import MakeLab
from tests.support.dns import query
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    FAMILIES,
    HTTP,
    PATIENT,
    DatapathSettings,
    await_flow,
    now,
    start_all,
    stop_agents,
)
from tests.support.namespaces import within

PORT = 5353  # beside the lab's own servers
LARGE, OPEN, OTHER = "large.example.com", "open.example.com", "www.example.org"
MANY = 200  # addresses of the large name: more than a datagram has
SERVERS = ("world", "back2")  # outside of the cluster, and an endpoint of another node

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {matchLabels: {role: frontend}}
  egress:
    - toEntities: [world, cluster]
      toPorts: [{ports: [{port: "5353", protocol: ANY}], rules: {dns: [{matchPattern: '*.example.com'}]}}]
    - toFQDNs: [{matchPattern: '*.example.com'}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Iterator[Lab]:
    lab = make_served(memory=True)
    hosts = lab.network.state / "names"
    lines = [f"198.18.{number // 250}.{number % 250 + 1} {LARGE}" for number in range(MANY)]
    hosts.write_text("\n".join([*lines, f"{lab.address('world', 4)} {OPEN}", f"192.0.2.1 {OTHER}", ""]))
    servers = [
        LabProcess(lab.network, name, "dnsmasq", hosts.with_name(f"{name}.log"), hosts.with_name(f"{name}.pid"))
        for name in SERVERS
    ]
    for server in servers:
        server.start(
            [
                *(find_command("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-"),
                *("--no-resolv", "--no-hosts", f"--addn-hosts={hosts}", f"--port={PORT}", "--user=root", "--pid-file="),
                *("--bind-dynamic", "--local=/com/org/"),
            ],
            {"PATH": "/usr/sbin:/usr/bin"},
        )
    for name in SERVERS:
        within(lab, name, lambda: _await_answer("127.0.0.1"))
    yield lab
    for server in servers:
        server.stop()


def _await_answer(server: str) -> None:
    deadline = time.monotonic() + PATIENT
    while time.monotonic() < deadline:
        with contextlib.suppress(dns.exception.Timeout, ConnectionRefusedError):
            dns.query.udp(dns.message.make_query(OPEN, "A"), server, timeout=BRIEF, port=PORT)
            return


@pytest.fixture(scope="module", params=DATAPATHS, ids=str)
def agents(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    settings: DatapathSettings = request.param
    start_all(lab, POLICY, **settings.settings)
    yield
    stop_agents(lab)


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    family: int = request.param
    return family


def connection(lab: Lab, server: str, family: int) -> socket.socket:
    """Return a connection of front1 to a name server."""
    return within(
        lab, "front1", lambda: socket.create_connection((str(lab.address(server, family)), PORT), timeout=PATIENT)
    )


def ask(sock: socket.socket, *names: str) -> list[dns.message.Message]:
    """Return the answers to queries that are sent at once."""
    queries = [dns.message.make_query(name, "A") for name in names]
    sock.sendall(b"".join(len(one.to_wire()).to_bytes(2, "big") + one.to_wire() for one in queries))
    answers = [dns.query.receive_tcp(sock, time.time() + PATIENT)[0] for _ in queries]
    assert {one.id for one in queries} == {one.id for one in answers}
    return answers


@pytest.mark.parametrize("server", SERVERS)
def test_a_truncated_answer_is_asked_for_by_tcp(lab: Lab, agents: None, server: str, family: int) -> None:
    asked = dns.message.make_query(LARGE, "A")
    target = str(lab.address(server, family))

    heard, by_tcp = within(
        lab, "front1", lambda: dns.query.udp_with_fallback(asked, target, timeout=PATIENT, port=PORT)
    )

    assert by_tcp
    assert len(heard.answer[0]) == MANY
    names = {one["name"]: one for one in client.call(lab.nodes["n1"].socket, "fqdn")}
    assert len(names[LARGE]["addresses"]) == MANY


def test_several_queries_on_one_connection_are_answered(lab: Lab, agents: None, family: int) -> None:
    since = now()
    with connection(lab, "back2", family) as sock:
        answers = [*ask(sock, OPEN), *ask(sock, OPEN, LARGE), *ask(sock, LARGE)]

    assert [len(one.answer[0]) for one in answers] == [1, 1, MANY, MANY]
    flow = await_flow(lab.nodes["n1"], since, verdict="FORWARDED")
    assert flow["verdict"] == "FORWARDED"


def test_a_refused_name_is_answered_at_once(lab: Lab, agents: None, family: int) -> None:
    since = now()
    for server in SERVERS:
        with connection(lab, server, family) as sock:
            assert ask(sock, OPEN)[0].rcode() == dns.rcode.NOERROR
            (refused,) = ask(sock, OTHER)
            assert refused.rcode() == dns.rcode.REFUSED
            assert sock.recv(1) == b""  # no more from this server
        with connection(lab, server, family) as sock:
            assert ask(sock, OPEN)[0].rcode() == dns.rcode.NOERROR

    await_flow(lab.nodes["n1"], since, reason="DNS_REFUSED")


def test_a_learned_address_is_open_when_the_client_has_the_answer(lab: Lab, agents: None) -> None:
    with connection(lab, "back2", 4) as sock:
        assert ask(sock, OPEN)[0].rcode() == dns.rcode.NOERROR
    target = str(lab.address("world", 4))
    within(lab, "front1", lambda: socket.create_connection((target, HTTP), timeout=PATIENT).close())


def test_a_query_in_two_segments_is_not_passed_on(lab: Lab, agents: None, family: int) -> None:
    since, asked = now(), query(OTHER)
    with connection(lab, "back2", family) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(len(asked).to_bytes(2, "big") + asked[:20])
        await_flow(lab.nodes["n1"], since, reason="DNS_SEGMENT")
        sock.settimeout(BRIEF)
        with pytest.raises(TimeoutError):
            sock.recv(1)
