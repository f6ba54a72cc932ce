"""HTTP rules and server names with real traffic: the agent redirects connections to Envoy, which checks them.

All tests share one lab for each data path (``guarded``), and apply policies of their own.
"""

import asyncio
import configparser
import contextlib
import itertools
import json
import re
import signal
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from nfq_enforcer.agent import client
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support.http import HttpConnection
from tests.support.labs import (
    BACKENDS,
    BRIEF,
    DATAPATHS,
    FAMILIES,
    FRONTENDS,
    HTTP,
    OTHER_TCP,
    PATIENT,
    DatapathSettings,
    Policies,
    await_flow,
    ends,
    enforces_all,
    from_role,
    identities,
    kill,
    now,
    policy,
    relabelled,
    run_in,
    stamps_on,
    to_role,
    until,
)
from tests.support.migration import NAME as MOVED
from tests.support.migration import migrate
from tests.support.namespaces import within
from tests.support.processes import is_running
from tests.support.tls import TlsServer, listen, start_tls

DATAPATH_SETTINGS = DATAPATHS
_LINES = 12  # of a log
LAST_ACK = 30  # s for which conntrack keeps a connection whose last ACK it has not seen
EXAMPLES = Path(__file__).parents[2] / "policies"
USERDATA = {"method": "GET", "path": "/userdata/[0-9]+"}


def with_http(entry: dict[str, Any], *rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with these HTTP rules on its ports."""
    return {**entry, "toPorts": [{**port, "rules": {"http": list(rules)}} for port in entry["toPorts"]]}


FRONT = from_role("frontend", (HTTP, "TCP"))
BACK_ONLY = from_role("backend", (HTTP, "TCP"))
BACK = to_role("backend", (HTTP, "TCP"))
INGRESS = policy("userdata", "backend", ingress=[with_http(FRONT, USERDATA)])
EGRESS = policy("userdata-out", "frontend", egress=[with_http(BACK, USERDATA)])


class Request(NamedTuple):
    """Request: both hosts, and what is asked."""

    source: str
    target: str
    family: int
    method: str = "GET"
    path: str = "/userdata/42"


class Answer(NamedTuple):
    """Answer: the status code, or how the attempt failed, and the client's address as the server sees it."""

    status: str
    seen_as: str = ""


def requests(sources: Iterable[str], targets: Iterable[str], *asked: tuple[str, str]) -> Iterable[Request]:
    """Return requests of each source to each other target, over both families."""
    return [
        Request(source, target, family, method, path)
        for source in sources
        for target in targets
        if source != target
        for family in FAMILIES
        for method, path in asked
    ]


async def answers(lab: Lab, wanted: Mapping[Request, str]) -> dict[Request, Answer]:
    """Send all requests at once; return their answers."""

    async def send(request: Request) -> Answer:
        address = lab.address(request.target, request.family)
        timeout = BRIEF if wanted[request] == "timeout" else PATIENT
        result = await lab.host(request.source).request(address, HTTP, request.method, request.path, timeout)
        return Answer(str(result.code) if result.ok else result.status, result.seen_as)

    return dict(zip(wanted, await asyncio.gather(*map(send, wanted)), strict=True))


async def check(lab: Lab, wanted: Mapping[Request, str]) -> None:
    """Check the answers; a server sees the client's address."""
    expected = {
        request: Answer(status, str(lab.address(request.source, request.family)) if status == "200" else "")
        for request, status in wanted.items()
    }
    assert await answers(lab, wanted) == expected, evidence(lab)


def evidence(lab: Lab) -> str:
    """Return the state of the proxies, and the end of the agents' logs."""
    logs = {name: node.log.read_text().splitlines()[-_LINES:] for name, node in lab.nodes.items()}
    states = {name: node.status()["proxy"] for name, node in lab.nodes.items()}
    return "\n".join(line for name in lab.nodes for line in (f"{name}: {states[name]}", *logs[name]))


ALLOWED = ("GET", "/userdata/42")
PUBLIC = ("GET", "/public")
REFUSED = (("GET", "/secret"), ("POST", "/userdata/42"), ("GET", "/userdata/4x"))


def reference(sources: Iterable[str] = FRONTENDS, targets: Iterable[str] = BACKENDS) -> dict[Request, str]:
    """Return the requests of the reference sentence: frontends may only GET /userdata/NUMBER of backends."""
    return dict.fromkeys(requests(sources, targets, ALLOWED), "200") | dict.fromkeys(
        requests(sources, targets, *REFUSED), "403"
    )


class TestRequests:
    async def test_ingress_rules_at_the_servers_node(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", INGRESS)
        others = dict.fromkeys(requests(("db3", "n3", "world"), BACKENDS, ALLOWED), "timeout")

        await check(guarded, reference() | others)

    async def test_egress_rules_at_the_clients_node(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", EGRESS)
        closed = dict.fromkeys(requests(FRONTENDS, ("db3",), ALLOWED), "timeout")

        await check(guarded, reference() | closed)

    async def test_both_sides_have_to_allow_a_request(self, guarded: Lab, policies: Policies) -> None:
        out = policy("out", "frontend", egress=[with_http(BACK, {"path": "/(userdata|public)/.*"})])
        await policies.apply("http", INGRESS, out)

        await check(guarded, reference() | dict.fromkeys(requests(FRONTENDS, BACKENDS, ("GET", "/public/1")), "403"))

    async def test_a_connection_without_http_rules_is_not_redirected(self, guarded: Lab, policies: Policies) -> None:
        whole = policy(
            "db", "backend", ingress=[from_role("db", (HTTP, "TCP")), from_role("frontend", (OTHER_TCP, "TCP"))]
        )
        await policies.apply("http", INGRESS, whole)

        for family in FAMILIES:
            address = guarded.address("back1", family)
            assert (await guarded.host("db3").connect(address, HTTP, PATIENT)).ok
            assert (await guarded.host("front1").connect(address, OTHER_TCP, PATIENT)).ok
            assert not (await guarded.host("front1").connect(address, HTTP, PATIENT)).ok

    async def test_a_host_is_a_server(self, guarded: Lab, policies: Policies) -> None:
        """n3 is an endpoint with the address of its node."""
        await policies.apply("http", policy("to-host", "monitor", ingress=[with_http(FRONT, USERDATA)]))

        await check(guarded, reference(FRONTENDS, ("n3",)))

    async def test_a_host_is_a_client(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", policy("from-host", "monitor", egress=[with_http(BACK, USERDATA)]))

        await check(guarded, reference(("n3",), BACKENDS))


class TestExamples:
    @pytest.mark.parametrize("name", ["backend-userdata", "backend-admin-header"])
    async def test_the_probes_of_an_example_meet_the_same_answers(
        self, guarded: Lab, policies: Policies, name: str
    ) -> None:
        await policies.apply(name, (EXAMPLES / f"{name}.yaml").read_text())
        hosts = {"default/front": "front1", "default/back": "back2", "default/batch": "db3"}
        probes = [probe for probe in json.loads((EXAMPLES / f"{name}.probes.json").read_text()) if "http" in probe]
        assert len(probes) >= 5

        for probe, family in itertools.product(probes, FAMILIES):
            source, http = hosts[probe["from"]], probe["http"]
            address = guarded.address(hosts[probe["to"]], family)
            headers = http.get("headers", {})
            pairs = headers.items() if isinstance(headers, dict) else (line.split(": ", 1) for line in headers)
            timeout = BRIEF if source == "db3" else PATIENT
            result = await guarded.host(source).request(
                address, probe["port"], http["method"], http["path"], timeout, headers=pairs
            )
            assert (probe["expect"], result.code) in {("allow", 200), ("deny", 403), ("deny", 400), ("deny", 0)}, probe


class TestWire:
    async def test_packets_of_the_proxy_bear_the_stamp_of_its_client(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", EGRESS)
        known = identities(guarded)
        async with guarded.capture() as capture:
            await check(guarded, reference(["front1"], ["back2"]))
        packets = [packet.data for packet in capture.packets()]
        for family in FAMILIES:
            front, back = (guarded.address(name, family) for name in ("front1", "back2"))
            for name, way in (("front1", (front, back)), ("back2", (back, front))):
                stamps = [stamps_on(packet) for packet in packets if ends(packet) == way]
                assert [known[name]] in stamps
                assert all(stamp in ([known[name]], []) for stamp in stamps)


class TestPorts:
    async def test_proxies_of_two_nodes_share_few_ports(self, guarded: Lab, policies: Policies) -> None:
        """Each chooses one for the same client and server; one that a connection of the other has is of no use."""
        await policies.apply("http", INGRESS, EGRESS)
        wanted = dict.fromkeys(requests(["front1"], ["back2"], ALLOWED), "200")
        await check(guarded, wanted)
        with few_ports(guarded, "n1", "n2"):
            for _ in range(5):
                await check(guarded, wanted)

    async def test_connections_whose_client_has_gone_leave_nothing(self, guarded: Lab, policies: Policies) -> None:
        """Otherwise a proxy that chooses the port of one of them would wait for the server in vain."""
        await policies.apply("http", INGRESS, EGRESS)
        earlier = {node: connections(guarded, node) for node in ("n1", "n2")}  # ends that other tests have cut
        await check(guarded, reference(["front1"], ["back2"]))

        for node, known in earlier.items():
            await until(lambda node=node, known=known: connections(guarded, node) <= known, LAST_ACK + PATIENT)


@contextlib.contextmanager
def few_ports(lab: Lab, *nodes: str) -> Iterator[None]:
    """Let nodes choose ports of connections among few."""
    name = "net.ipv4.ip_local_port_range"
    usual = run_in(lab, nodes[0], "sysctl", "-n", name).strip()
    for node in nodes:
        run_in(lab, node, "sysctl", "-qw", f"{name}=40000 40031")
    try:
        yield
    finally:
        for node in nodes:
            run_in(lab, node, "sysctl", "-qw", f"{name}={usual}")


def connections(lab: Lab, node: str) -> set[tuple[str, ...]]:
    """Return the addresses and ports of redirected connections, and of the proxy's, that conntrack knows on a node."""
    marks = [f"{mark:#x}/{mark:#x}" for mark in (connmark.REDIRECTED, connmark.FROM_PROXY)]
    commands = itertools.product(("ipv4", "ipv6"), marks)
    known = [
        run_in(lab, node, "conntrack", "-L", "-f", family, "-p", "tcp", "--mark", mark) for family, mark in commands
    ]
    return {tuple(re.findall(r"(?:src|dst|sport|dport)=(\S+)", line)[:4]) for line in "".join(known).splitlines()}


class TestMasquerade:
    async def test_identities_behind_one_address_have_rules_of_their_own(
        self, guarded: Lab, policies: Policies
    ) -> None:
        """The router translates the sources of front3 and db3 to its own address."""
        of_db = from_role("db", (HTTP, "TCP"))
        public = policy("public", "backend", ingress=[with_http(of_db, {"path": "/public"})])
        await policies.apply("http", INGRESS, public)
        asked = [*requests(["front3", "db3"], BACKENDS, ALLOWED), *requests(["front3", "db3"], BACKENDS, PUBLIC)]
        guarded.masquerade(True)
        try:
            found = await answers(guarded, dict.fromkeys(asked, "200"))
        finally:
            guarded.masquerade(False)

        for request, answer in found.items():
            allowed = (request.source == "front3") is (request.path == "/userdata/42")
            router = str(guarded.address("rtr", request.family))
            assert answer == (Answer("200", router) if allowed else Answer("403"))


class TestFlows:
    async def test_requests_are_in_the_log(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", INGRESS)
        begun = now()
        await check(guarded, reference(["front1"], ["back2"]))

        node = guarded.nodes["n2"]
        await_flow(node, begun, verdict="DROPPED", reason="HTTP_REFUSED", port=HTTP)
        server = str(guarded.address("back2", 4))
        http = await_flow(node, begun, verdict="FORWARDED", source=server, source_port=HTTP)["l7"]["http"]
        assert (http["method"], http["url"], http["code"]) == ("GET", f"http://{server}/userdata/42", 200)


class TestChange:
    async def test_the_next_requests_of_open_connections_meet_the_new_rules(
        self, guarded: Lab, policies: Policies
    ) -> None:
        await policies.apply("http", INGRESS)
        clients = [(source, target, family) for source in FRONTENDS for target in BACKENDS for family in FAMILIES]
        opened = [await HttpConnection.open(guarded, *client) for client in clients * 9]  # 108 connections

        async def ask(path: str) -> set[int]:
            return set(await asyncio.gather(*(connection.ask(path) for connection in opened)))

        assert await ask("/userdata/42") == {200}
        await policies.apply("http", policy("userdata", "backend", ingress=[with_http(FRONT, {"path": "/new"})]))
        assert [await ask(path) for path in ("/userdata/42", "/new")] == [{403}, {200}]
        await policies.apply("more", policy("more", "backend", ingress=[with_http(FRONT, {"path": "/more"})]))
        assert [await ask(path) for path in ("/userdata/42", "/new", "/more")] == [{403}, {200}, {200}]
        await policies.apply("http", policy("userdata", "backend", ingress=[FRONT]))
        assert await ask("/anything") == {200}
        for connection in opened:
            connection.close()

    async def test_without_any_rule_open_connections_go_on(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", INGRESS)
        async with await HttpConnection.open(guarded, "front1", "back2") as connection:
            assert await connection.ask("/secret") == 403
            await policies.withdraw("http")
            assert await connection.ask("/secret") == 200

    async def test_a_connection_that_policy_denies_carries_no_request(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", INGRESS)
        async with await HttpConnection.open(guarded, "front1", "back2") as connection:
            assert await connection.ask("/userdata/42") == 200
            await policies.apply("http", policy("userdata", "backend", ingress=[with_http(BACK_ONLY, USERDATA)]))
            assert await connection.fails("/userdata/42")

    async def test_a_client_with_another_role_loses_its_connections(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", INGRESS)
        for target in BACKENDS:
            async with await HttpConnection.open(guarded, "front1", target) as connection:
                assert await connection.ask("/userdata/42") == 200
                await guarded.apply("endpoints", relabelled(guarded, "front1"))
                try:
                    assert await connection.fails("/userdata/42")
                    await check(guarded, dict.fromkeys(requests(["front1"], [target], ALLOWED), "timeout"))
                finally:
                    await guarded.apply("endpoints", guarded.topology.endpoint_documents())
            await check(guarded, reference(["front1"], [target]))


TO_FRONT = policy("to-front", "backend", egress=[with_http(to_role("frontend", (HTTP, "TCP")), USERDATA)])


class TestMigration:
    @pytest.mark.parametrize(
        ("rules", "source", "target"), [(INGRESS, "front1", "back2"), (TO_FRONT, "back2", "front1")]
    )
    async def test_requests_meet_the_rules_at_the_new_node(
        self, guarded: Lab, policies: Policies, rules: str, source: str, target: str
    ) -> None:
        """The connections that are open were at the old node's proxy: they end."""
        await policies.apply("http", rules)
        others = dict.fromkeys(requests(["db3"], [target], ALLOWED), "timeout")
        wanted = reference([source], [target]) | others
        await check(guarded, wanted)

        async def declare(document: dict[str, Any]) -> None:
            rest = (one.document() for one in guarded.topology.endpoints if one.name != MOVED)
            await guarded.apply("endpoints", yaml.safe_dump_all([document, *rest]))

        async def move(old: str, new: str) -> None:
            await migrate(guarded, old, new, declare)
            await until(lambda: all(map(enforces_all, guarded.nodes.values())))

        async with await HttpConnection.open(guarded, source, target) as connection:
            assert await connection.ask("/userdata/42") == 200
            await move("n2", "n1")
            try:
                assert await connection.fails("/secret")
                await check(guarded, wanted)
            finally:
                await move("n1", "n2")
        await check(guarded, wanted)


TLS = 8443


@pytest.fixture(scope="module")
def servers(guarded: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TlsServer]]:
    """Return TLS servers of the backends, each with a certificate of its own."""

    def serve(name: str) -> TlsServer:
        return TlsServer(tmp_path_factory.mktemp(name), lambda: within(guarded, name, lambda: listen(TLS)))

    made = {name: serve(name) for name in BACKENDS}
    yield made
    for server in made.values():
        server.close()


def with_names(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return an entry with these server names on its ports."""
    return {**entry, "toPorts": [{**port, "serverNames": list(names)} for port in entry["toPorts"]]}


FRONT_TLS, BACK_TLS = from_role("frontend", (TLS, "TCP")), to_role("backend", (TLS, "TCP"))
NAMES = policy("names", "backend", ingress=[with_names(FRONT_TLS, "good.example", "**.sub.example")])


async def begin(lab: Lab, source: str, target: str, name: str | None, family: int = 4) -> ssl.SSLSocket | None:
    """Return a TLS connection whose server has answered with its own certificate; None if it was refused."""

    def connect() -> socket.socket:
        return socket.create_connection((str(lab.address(target, family)), TLS), PATIENT)

    begun = await asyncio.to_thread(lambda: start_tls(within(lab, source, connect), name))
    if begun is None:
        return None
    connection, answer = begun
    assert answer.seen_as == str(lab.address(source, family))
    return connection


async def passes(lab: Lab, source: str, target: str, name: str | None, family: int = 4) -> bool:
    """Return whether TLS with this name reaches the server."""
    connection = await begin(lab, source, target, name, family)
    if connection is not None:
        connection.close()
    return connection is not None


class TestServerNames:
    @pytest.mark.parametrize("side", ["ingress", "egress"])
    async def test_names_decide_without_decryption(
        self, guarded: Lab, policies: Policies, servers: dict[str, TlsServer], side: str
    ) -> None:
        out = policy("names", "frontend", egress=[with_names(BACK_TLS, "good.example", "**.sub.example")])
        await policies.apply("names", NAMES if side == "ingress" else out)
        begun = now()
        for source, target in (("front1", "back1"), ("front1", "back2"), ("front3", "back1")):
            for family in FAMILIES:
                connection = await begin(guarded, source, target, "Good.Example", family)
                assert connection is not None
                assert connection.getpeercert(binary_form=True) == servers[target].certificate
                connection.close()
                assert await passes(guarded, source, target, "a.b.sub.example", family)
            before = servers[target].connections
            for name in ("bad.example", "sub.example", None):
                assert not await passes(guarded, source, target, name)
            assert servers[target].connections == before
        node = guarded.nodes["n1"]
        flow = await_flow(node, begun, verdict="DROPPED", reason="TLS_REFUSED", port=TLS)
        assert flow["Summary"] in {"TLS to bad.example", "TLS to sub.example", "TLS to no server name"}
        assert flow["enforced_by"][0]["name"] == "names"
        assert {(count["rule"], count["verdict"]) for count in node.status()["tls"]} >= {
            ("default/names", "FORWARDED"),
            ("default/names", "DROPPED"),
        }

    async def test_the_next_connection_meets_the_new_names(
        self, guarded: Lab, policies: Policies, servers: dict[str, TlsServer]
    ) -> None:
        await policies.apply("names", NAMES)
        connection = await begin(guarded, "front1", "back2", "good.example")
        assert connection is not None
        await policies.apply("names", policy("names", "backend", ingress=[with_names(FRONT_TLS, "new.example")]))
        assert await passes(guarded, "front1", "back2", "new.example")
        assert not await passes(guarded, "front1", "back2", "good.example")
        connection.sendall(b"on")
        assert await asyncio.to_thread(connection.recv, 10) == b"on"

        await policies.apply("names", policy("names", "backend", ingress=[FRONT_TLS]))
        assert await passes(guarded, "front1", "back2", "any.example")
        await policies.apply("names", policy("names", "backend", ingress=[with_http(FRONT_TLS, USERDATA)]))
        assert not await passes(guarded, "front1", "back2", "new.example")
        connection.settimeout(BRIEF)
        connection.sendall(b"cut")
        with pytest.raises((TimeoutError, ConnectionError)):
            await asyncio.to_thread(connection.recv, 10)
        connection.close()

    async def test_an_open_connection_outlives_the_agent(
        self, guarded: Lab, policies: Policies, servers: dict[str, TlsServer], datapath: DatapathSettings
    ) -> None:
        await policies.apply("names", NAMES)
        node = guarded.nodes["n1"]
        connection = await begin(guarded, "front1", "back1", "good.example")
        assert connection is not None
        envoy = proxy_status(node)["pid"]
        node.stop(signal.SIGKILL)
        node.start(**datapath.settings)
        node.wait_until_ready()
        connection.sendall(b"on")
        assert await asyncio.to_thread(connection.recv, 10) == b"on"
        connection.close()
        assert proxy_status(node)["pid"] == envoy
        assert await passes(guarded, "front1", "back1", "good.example")
        assert not await passes(guarded, "front1", "back1", "bad.example")

    async def test_the_probes_of_the_example_fare_as_they_expect(
        self, guarded: Lab, policies: Policies, servers: dict[str, TlsServer]
    ) -> None:
        await policies.apply("names", (EXAMPLES / "backend-tls-names.yaml").read_text())
        probes = json.loads((EXAMPLES / "backend-tls-names.probes.json").read_text())
        asked = [probe for probe in probes if "sni" in probe and probe["from"] == "default/front"]
        assert len(asked) >= 5
        for probe in asked:
            passed = await passes(guarded, "front1", "back2", probe["sni"] or None)
            assert passed is (probe["expect"] == "allow"), probe
        begun = now()
        assert not (await guarded.host("db3").connect(guarded.address("back2", 4), TLS, BRIEF)).ok
        await_flow(guarded.nodes["n2"], begun, verdict="DROPPED", reason="POLICY_DENIED", port=TLS)

    async def test_wider_rules_and_other_sides(
        self, guarded: Lab, policies: Policies, servers: dict[str, TlsServer]
    ) -> None:
        wider = policy("wider", "backend", ingress=[FRONT_TLS])
        await policies.apply("names", NAMES, wider)
        assert await passes(guarded, "front1", "back1", None)
        out = policy("out", "frontend", egress=[with_names(BACK_TLS, "*.example")])
        await policies.apply("names", NAMES, out)
        assert await passes(guarded, "front1", "back1", "good.example")
        assert not await passes(guarded, "front1", "back1", "other.example")
        http = policy("http-out", "frontend", egress=[with_http(BACK_TLS, USERDATA)])
        await policies.apply("names", NAMES, http)
        for target in BACKENDS:  # on its own node, and on another
            assert not await passes(guarded, "front1", target, "good.example")


class TestFailure:
    async def test_envoy_returns_after_its_death(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("http", INGRESS)
        await check(guarded, reference(["front1"], ["back1"]))
        node = guarded.nodes["n1"]
        before = proxy_status(node)["pid"]
        kill(before)

        await until(lambda: proxy_status(node)["pid"] not in {None, before})
        await check(guarded, reference(["front1"], ["back1"]))

    async def test_open_connections_outlive_workers_and_agents(
        self, guarded: Lab, policies: Policies, datapath: DatapathSettings
    ) -> None:
        await policies.apply("http", INGRESS, EGRESS)
        node = guarded.nodes["n1"]
        async with contextlib.AsyncExitStack() as stack:
            pairs = (("front1", "back1"), ("front1", "back2"), ("front3", "back1"))
            opened = [
                await stack.enter_async_context(await HttpConnection.open(guarded, *pair, family))
                for pair in pairs
                for family in FAMILIES
            ]

            async def works() -> None:
                for path, code in (("/userdata/42", 200), ("/secret", 403)):
                    assert set(await asyncio.gather(*(each.ask(path) for each in opened))) == {code}

            await works()
            envoy = proxy_status(node)["pid"]
            for worker in node.status()["workers"]:
                kill(worker["pid"])
            await until(lambda: all(worker["pid"] and not worker["stuck"] for worker in node.status()["workers"]))
            await works()
            node.start_anew()
            await works()
            node.stop(signal.SIGKILL)
            node.start(**datapath.settings)
            node.wait_until_ready()
            await works()
            assert proxy_status(node)["pid"] == envoy
        await check(guarded, reference(["front1"], ["back1"]))

    async def test_an_agent_that_stops_ends_the_proxy(
        self, guarded: Lab, policies: Policies, datapath: DatapathSettings
    ) -> None:
        await policies.apply("http", INGRESS)
        await check(guarded, reference(["front1"], ["back1"]))
        node = guarded.nodes["n1"]
        envoy = proxy_status(node)["pid"]
        node.stop()
        assert not is_running(envoy)
        node.start(**datapath.settings)
        node.wait_until_ready()
        await check(guarded, reference(["front1"], ["back1"]))

    async def test_the_privileges_of_the_service_suffice(
        self, guarded: Lab, policies: Policies, datapath: DatapathSettings, tmp_path: Path
    ) -> None:
        service = configparser.RawConfigParser(strict=False)
        service.read_string((files("nfq_enforcer.systemd") / "nfq-enforcer.service").read_text())
        bounding = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in _capabilities(service))
        confined = tmp_path / "python"
        confined.write_text(
            f'#!/bin/sh\numask 077\nexec setpriv --bounding-set=-all,{bounding} --no-new-privs {sys.executable} "$@"\n'
        )
        confined.chmod(0o755)
        await policies.apply("http", INGRESS)
        node = guarded.nodes["n1"]
        node.stop()
        node.python, before = str(confined), node.python
        node.start(**datapath.settings)
        node.python = before
        node.wait_until_ready()
        await check(guarded, reference(["front1"], ["back1"]))
        kill(proxy_status(node)["pid"])
        await until(lambda: proxy_status(node)["restarts"] == 1 and proxy_status(node)["running"])
        await check(guarded, reference(["front1"], ["back1"]))


def _capabilities(service: configparser.RawConfigParser) -> list[str]:
    return service["Service"]["CapabilityBoundingSet"].split()


def proxy_status(node: LabNode) -> dict[str, Any]:
    status: dict[str, Any] = client.call(node.socket, "status")["proxy"]
    return status
