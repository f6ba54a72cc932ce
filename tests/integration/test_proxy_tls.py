"""Server names of TLS at a real Envoy, with a real TLS server behind it."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nfq_enforcer.core.tables.l7 import HttpMatch, ProxyProtocols, SniMatch, TlsHello
from nfq_enforcer.policy.l7_match import matches
from nfq_enforcer.proxy import tls
from nfq_enforcer.proxy.rule_set import RuleSet
from tests.support.apart import call_in
from tests.support.proxies import CLIENT, SERVER_PORT, ProxyLab, rule_set, side, status_of
from tests.support.tls import PATIENCE, Answer, TlsServer, client_hello, listen, start_tls

SLOT, RAW, MIXED = 20, 21, 2  # MIXED is a slot that Envoy has in advance, for HTTP
TLS, BOTH = ProxyProtocols.TLS, ProxyProtocols.TLS | ProxyProtocols.HTTP
GOOD = rule_set(SniMatch("good.example"))


@pytest.fixture(scope="module")
def lab(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyLab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "TIMEOUT", 2)
        lab = ProxyLab(tmp_path_factory.mktemp("tls"))
        yield lab
        lab.close()


@pytest.fixture(scope="module")
def server(lab: ProxyLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    directory = tmp_path_factory.mktemp("certificate")
    server = TlsServer(directory, lambda: call_in(lab.network.server, lambda: listen(SERVER_PORT + SLOT)))
    yield server
    server.close()


def tls_to(lab: ProxyLab, name: str | None, family: int = 4) -> Answer | None:
    """Return the answer of the server to a new connection, None if it has been refused."""
    with lab.connect(SLOT, family) as connection:
        begun = start_tls(connection, name)
        if begun is None:
            return None
        begun[0].close()
        return begun[1]


def send(lab: ProxyLab, *pieces: bytes, ends: bool = False) -> bytes:
    """Send bytes over a new connection, each piece in a segment of its own; return the first bytes of the answer."""
    with lab.connect(SLOT, timeout=20) as connection, suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(1000)
    return b""


@pytest.mark.parametrize("family", [4, 6])
def test_an_allowed_name_passes_without_decryption(lab: ProxyLab, server: TlsServer, family: int) -> None:
    lab.open(SLOT, GOOD, TLS)

    assert tls_to(lab, "good.example", family) == Answer(server.certificate, CLIENT[family])
    assert tls_to(lab, "GOOD.Example", family) == Answer(server.certificate, CLIENT[family])


def test_a_refused_connection_never_reaches_the_server(lab: ProxyLab, server: TlsServer) -> None:
    lab.open(SLOT, GOOD, TLS)
    before = server.connections

    for name in ("bad.example", "a.good.example", "good.example.", "xn--good.example", None):
        assert send(lab, client_hello(name)) == b"", name
    hello = client_hello("good.example")
    huge = b"\x16\x03\x01\x40\x00\x01\x01\x00\x00" + bytes(16380)
    for pieces in ((b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n",), (b"SSH-2.0-x\r\n",), (huge,) * 4, (bytes(600),)):
        assert send(lab, *pieces) == b""
    assert send(lab, hello[:-1], ends=True) == b""
    assert server.connections == before


def test_a_hello_that_never_ends_is_refused_after_a_time(lab: ProxyLab, server: TlsServer) -> None:
    lab.open(SLOT, GOOD, TLS)
    before = server.connections

    assert send(lab, client_hello("good.example")[:-1]) == b""
    assert send(lab) == b""
    assert server.connections == before


def test_a_hello_may_come_in_pieces(lab: ProxyLab, server: TlsServer) -> None:
    lab.open(SLOT, GOOD, TLS)

    for name, answers in (("good.example", True), ("bad.example", False)):
        hello = client_hello(name)
        assert (send(lab, *(hello[i : i + 1] for i in range(len(hello)))) != b"") is answers
        body = hello[5:]
        records = (
            b"\x16\x03\x01" + len(part).to_bytes(2) + part
            for part in (body[i : i + 50] for i in range(0, len(body), 50))
        )
        assert (send(lab, b"".join(records)) != b"") is answers


def test_the_next_hello_meets_new_names_and_an_open_connection_goes_on(lab: ProxyLab, server: TlsServer) -> None:
    lab.open(SLOT, GOOD, TLS)
    begun = start_tls(lab.connect(SLOT), "good.example")
    assert begun is not None
    with begun[0] as connection:
        for _ in range(3):
            lab.open(SLOT, rule_set(SniMatch("other.example")), TLS)
            assert (tls_to(lab, "good.example"), tls_to(lab, "other.example") is None) == (None, False)
            lab.open(SLOT, GOOD, TLS)
            assert (tls_to(lab, "good.example") is None, tls_to(lab, "other.example")) == (False, None)
        lab.open(SLOT, RuleSet(((),)), TLS)
        assert tls_to(lab, "good.example") is None
        connection.sendall(b"on")
        assert connection.recv(10) == b"on"


def test_both_sides_have_to_allow_a_name(lab: ProxyLab, server: TlsServer) -> None:
    one, other = side(SniMatch("a.test"), SniMatch("*.b.test")), side(SniMatch("a.b.test"), SniMatch("c.test"))
    lab.open(SLOT, RuleSet((one, other, None)), TLS)
    passing = [name for name in ("a.test", "a.b.test", "c.test", "d.b.test") if tls_to(lab, name)]
    assert passing == ["a.b.test"]
    lab.open(SLOT, RuleSet((one, side(HttpMatch()))), TLS)
    assert not any(tls_to(lab, name) for name in ("a.test", "a.b.test"))
    lab.open(SLOT, RuleSet((None, None)), TLS)
    assert tls_to(lab, "any.test")


def test_a_server_gets_all_that_was_sent_before_the_end_at_its_own_pace(lab: ProxyLab) -> None:
    lab.open(RAW, GOOD, TLS)
    hello, sent = client_hello("good.example"), b"x" * 150_000
    with call_in(lab.network.server, lambda: listen(SERVER_PORT + RAW)) as listener:
        listener.settimeout(PATIENCE)
        with lab.connect(RAW) as connection:
            connection.sendall(hello)
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            accepted.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
            connection.sendall(sent)
        with accepted:
            accepted.settimeout(PATIENCE)
            time.sleep(0.5)  # nearly all of it is still at the proxy, which knows that the client has gone
            received = b"".join(iter(lambda: accepted.recv(4096), b""))
    assert len(received) == len(hello) + len(sent)


def test_connections_are_logged_once(lab: ProxyLab, server: TlsServer) -> None:
    lab.open(SLOT, GOOD, TLS)
    lab.hellos.clear()
    assert tls_to(lab, "good.example")
    assert tls_to(lab, "bad.example") is None
    assert tls_to(lab, None) is None
    assert send(lab, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert send(lab, client_hello("good.example")[:-1]) == b""
    lab.await_state(lambda: len(lab.hellos) >= 5)

    assert {each.slot for each in lab.hellos} == {SLOT}
    assert {each.client[0] for each in lab.hellos} == {CLIENT[4]}
    assert [(each.name, each.details.partition("_matched")[0], each.has_hello) for each in lab.hellos] == [
        ("good.example", "", True),
        ("bad.example", "rbac_access_denied", True),
        ("", "rbac_access_denied", True),
        ("", "", False),
        ("", "", False),
    ]


def test_http_and_tls_share_a_slot(lab: ProxyLab) -> None:
    """The slot replaces one that Envoy has in advance for HTTP; its server knows no TLS, so it answers nothing."""
    lab.open(1, rule_set(HttpMatch("GET", "/ok")))
    rules = rule_set(HttpMatch("GET", "/ok"), SniMatch("good.example"))
    lab.open(MIXED, rules, BOTH)
    before = lab.server.connections
    with lab.connect(MIXED) as connection:
        assert [status_of(connection, path) for path in ("/ok", "/no")] == [200, 403]
    with lab.connect(MIXED) as connection:
        assert start_tls(connection, "bad.example") is None
    assert lab.server.connections == before + 1
    with lab.connect(MIXED) as connection:
        connection.sendall(client_hello("good.example"))
        lab.await_state(lambda: lab.server.connections == before + 2)
    lab.open(MIXED, rule_set(SniMatch("good.example")), BOTH)
    with lab.connect(MIXED) as connection:
        assert status_of(connection, "/ok") == 403
    lab.node.run(lab.proxy.close([MIXED]))
    lab.open(MIXED, rule_set(HttpMatch("GET", "/ok")))
    with lab.connect(MIXED) as connection:
        assert status_of(connection, "/ok") == 200


PATTERNS = ("*", "a.test", "*.test", "**.test", "a*.test", "x-*.**.a-b.test", "A.Test", "**", "a.**", "*_*.test")
NAMES = (
    *("a.test", "A.TEST", "b.test", "a.b.test", "a.b.c.test", "test", "ab.test", "x-1.y.z.a-b.test", "a.b", "a_b.test"),
    *("x-.y.a-b.test", "a.test.evil", "evila.test", "xn--bcher-kva.test"),
)


def test_trace_and_envoy_agree_on_names(lab: ProxyLab, server: TlsServer) -> None:
    for patterns in (*((pattern,) for pattern in PATTERNS), PATTERNS[1:4], PATTERNS[4:6]):
        rules = side(*map(SniMatch, patterns))
        lab.open(SLOT, RuleSet((rules,)), TLS)
        for name in (*NAMES, ""):
            foretold = any(matches(rule.match, TlsHello(name)) for rule in rules)
            assert (send(lab, client_hello(name or None)) != b"") is foretold, (patterns, name)


def test_the_next_agent_finds_the_slot_and_its_names(lab: ProxyLab, server: TlsServer) -> None:
    lab.open(SLOT, GOOD, TLS)
    before = lab.proxy.pid
    lab.node.run(lab.proxy.detach())
    lab.proxy = lab.make_proxy()
    lab.node.run(lab.proxy.start())
    assert (lab.proxy.pid, SLOT in lab.proxy.slots) == (before, True)
    assert tls_to(lab, "good.example")
    lab.open(SLOT, rule_set(SniMatch("other.example")), TLS)
    assert (tls_to(lab, "good.example"), tls_to(lab, "other.example") is None) == (None, False)
