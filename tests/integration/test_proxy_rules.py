"""HTTP rules, enforced by a real Envoy between a client and a server in namespaces, IPv4 and IPv6."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch, HttpRequest
from nfq_enforcer.policy import l7_match
from nfq_enforcer.proxy.rule_set import RuleSet
from tests.support.apart import call_in
from tests.support.labs import FAMILIES
from tests.support.proxies import CLIENT, PATIENCE, SERVER, SERVER_PORT, SLOTS, ProxyLab, rule_set, side, status_of

USERDATA = HttpMatch("GET", "/userdata/[0-9]+")
ADMIN = HttpMatch("PUT", "/admin/.*", "", (HeaderMatch("X-Role", "admin"),))
SLOT, RAW_SLOT = 1, SLOTS + 1  # without an echo server
EVERYTHING = RuleSet((None,))


@pytest.fixture(scope="module")
def lab(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyLab]:
    lab = ProxyLab(tmp_path_factory.mktemp("proxy"))
    yield lab
    lab.close()


def sent(lab: ProxyLab) -> dict[str, str]:
    """Return the headers of the last request that the server received, with bars between the values of one."""
    found: dict[str, str] = {}
    for name, value in lab.server.seen[-1].headers:
        found[name] = f"{found[name]}|{value}" if name in found else value
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_alternatives_and_their_fields_are_not(lab: ProxyLab, family: int) -> None:
    lab.open(SLOT, rule_set(USERDATA, ADMIN))

    assert lab.request(SLOT, "GET", "/userdata/42", family=family) == 200
    assert lab.request(SLOT, "POST", "/userdata/42", family=family) == 403
    assert lab.request(SLOT, "GET", "/userdata/42/x", family=family) == 403
    assert lab.request(SLOT, "GET", "/userdata/42?x=1", family=family) == 403
    assert lab.request(SLOT, "PUT", "/admin/users", "x-role: admin", family=family) == 200
    assert lab.request(SLOT, "PUT", "/admin/users", "x-role: guest", family=family) == 403
    assert lab.request(SLOT, "PUT", "/admin/users", family=family) == 403
    assert lab.server.seen[-1].client == CLIENT[family]
    assert lab.network.sent_by_proxy()[family] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proxy_uses_no_ports_of_clients_that_connect(lab: ProxyLab, family: int) -> None:
    """The kernel prefers even ports for ``connect``, and odd ones for ``bind``, if the range begins as by default."""
    lab.open(SLOT, EVERYTHING)
    for _ in range(10):
        lab.request(SLOT, "GET", "/", family=family)

    assert {one.port % 2 for one in lab.server.seen[-10:]} == {1}


@pytest.fixture
def few_ports(lab: ProxyLab) -> Iterator[int]:
    """Give the node so few ports for connections that are opened by its programs; yield the number."""
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")  # for IPv6 as well
    before = call_in(lab.network.node, setting.read_text)
    call_in(lab.network.node, lambda: setting.write_text("40000 40031"))
    yield 32
    call_in(lab.network.node, lambda: setting.write_text(before))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_soon_has_its_ports_at_the_proxy_again(lab: ProxyLab, few_ports: int, family: int) -> None:
    """In TIME_WAIT, a port would be in use for a minute after its connection: for all servers."""
    lab.open(SLOT, EVERYTHING)
    for _ in range(3):
        statuses = [lab.request(SLOT, "GET", "/", family=family) for _ in range(few_ports * 3 // 4)]
        assert set(statuses) == {200}
        time.sleep(1.3)  # Envoy closes a connection to a server after a second without a request


def test_each_side_has_to_allow_a_request(lab: ProxyLab) -> None:
    public = HttpMatch("", "/public/.*")
    lab.open(SLOT, RuleSet((side(public), side(HttpMatch("GET"), HttpMatch("HEAD")))))
    assert lab.request(SLOT, "GET", "/public/a") == 200
    assert lab.request(SLOT, "POST", "/public/a") == 403
    assert lab.request(SLOT, "GET", "/private") == 403

    lab.open(SLOT, RuleSet((side(public), None)))
    assert lab.request(SLOT, "POST", "/public/a") == 200
    lab.open(SLOT, RuleSet((side(public), ())))
    assert lab.request(SLOT, "GET", "/public/a") == 403
    lab.open(SLOT, EVERYTHING)
    assert lab.request(SLOT, "DELETE", "/anything") == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("X-Role: admin",), 200),
        (("X-Role: guest", "X-Role: admin"), 403),
        (("X-Role: admin", "X-Role: guest"), 403),
        (("X-Role: admin", "x-role: admin"), 403),
        (("X-Role: admin,guest",), 403),
        (("X-Role: Admin",), 403),
        (("X_Role: admin",), 403),
        (("X-Role:   admin  ",), 200),
        (("Connection: x-role", "X-Role: admin"), 403),
    ],
)
def test_a_repeated_header_does_not_slip_past_an_equality(lab: ProxyLab, headers: tuple[str, ...], status: int) -> None:
    lab.open(SLOT, rule_set(ADMIN))

    assert lab.request(SLOT, "PUT", "/admin/x", *headers) == status


@pytest.mark.parametrize(
    ("action", "given", "arrives"),
    [
        ("LOG", ("X-T: other",), "other"),
        ("LOG", (), None),
        ("ADD", (), "good"),
        ("ADD", ("X-T: other",), "other|good"),
        ("ADD", ("X-T: good",), "good"),
        ("DELETE", ("X-T: other",), None),
        ("DELETE", ("X-T: other", "X-T: good"), None),
        ("DELETE", ("X-T: good",), "good"),
        ("DELETE", (), None),
        ("REPLACE", (), "good"),
        ("REPLACE", ("X-T: other",), "good"),
        ("REPLACE", ("X-T: other", "X-T: good"), "good"),
        ("REPLACE", ("X-T: good",), "good"),
    ],
)
def test_a_mismatch_action_changes_the_header_and_denies_nothing(
    lab: ProxyLab, action: str, given: tuple[str, ...], arrives: str | None
) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/a", "", (HeaderMatch("X-T", "good", action),)), HttpMatch("GET", "/b")))

    assert lab.request(SLOT, "GET", "/a", *given) == 200
    assert sent(lab).get("x-t") == arrives
    assert lab.request(SLOT, "GET", "/b", *given) == 200
    assert sent(lab).get("x-t", "").split("|") == [line.partition(": ")[2] for line in given] or not given


def test_the_actions_of_both_sides_and_of_all_matching_rules_apply(lab: ProxyLab) -> None:
    first = HttpMatch("GET", "", "", (HeaderMatch("X-One", "1%", "REPLACE"), HeaderMatch("X-Role", "admin")))
    second = HttpMatch("", "/.*", "", (HeaderMatch("X-Two", "2", "ADD"),))
    third = HttpMatch("", "/a", "", (HeaderMatch("X-Three", "3", "DELETE"), HeaderMatch("X-Two", "2", "ADD")))
    lab.open(SLOT, RuleSet((side(first), side(second, third))))

    assert lab.request(SLOT, "GET", "/a", "X-Role: admin", "X-Three: 4") == 200
    assert {name: value for name, value in sent(lab).items() if name.startswith("x-")} == {
        "x-role": "admin",
        "x-one": "1%",
        "x-two": "2",
    }
    assert lab.request(SLOT, "GET", "/a", "X-Three: 4") == 403


def test_a_request_arrives_as_it_was_sent(lab: ProxyLab) -> None:
    lab.open(SLOT, EVERYTHING)
    fields = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Request-Id: 7", "Via: 1.1 a", "TE: trailers")

    assert lab.request(SLOT, "GET", "/a?b=%20c", *fields, host="Example.com:8080") == 200
    assert lab.server.seen[-1].line == "GET /a?b=%20c HTTP/1.1"
    assert sent(lab) == {
        "host": "Example.com:8080",
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-proto": "https",
        "x-request-id": "7",
        "via": "1.1 a",
        "te": "trailers",
    }
    assert lab.request(SLOT, "GET", "/") == 200
    assert sent(lab) == {"host": "h"}
    response = lab.exchange(SLOT, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    fields_of_response = {line.split(b":")[0] for line in response.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]}
    assert fields_of_response == {b"server", b"content-length", b"date", b"connection"}
    assert b"\r\nserver: echo\r\n" in response


MATCHES = (
    USERDATA,
    ADMIN,
    HttpMatch("GET|PUT", "/a.*", r"api\.example\.com"),
    HttpMatch("", "", "(?i)api\\.example\\.com(:[0-9]+)?", (HeaderMatch("X-Role"),)),
    HttpMatch("", "/admin/?", "", (HeaderMatch("x-role", "", ""),)),
    HttpMatch("", "/(%C3%BC|[[:upper:]])", "", (HeaderMatch("X-Role", "guest,admin"),)),
    HttpMatch("", "/userdata/x", "", (HeaderMatch("X-Role", "admin", "LOG"),)),
    HttpMatch("", "/userdata/42\\?x=(?P<n>[0-9])", "h|api.*"),
)
REQUESTS = [
    HttpRequest(method, path, host, headers)
    for method in ("GET", "PUT")
    for path in ("/", "/userdata/42", "/userdata/42?x=1", "/userdata/x", "/admin/a", "/admin/", "/%C3%BC", "/A")
    for host in ("h", "api.example.com", "API.example.com:8080")
    for headers in ((), (("X-Role", "admin"),), (("X-Role", "guest"), ("x-role", "admin")), (("X-Role", ""),))
]


def test_envoy_and_the_offline_commands_agree_on_every_request(lab: ProxyLab) -> None:
    found, expected = [], []
    for match in MATCHES:
        lab.open(SLOT, rule_set(match))
        with lab.connect(SLOT) as connection:
            for request in REQUESTS:
                fields = [f"{name}: {value}" for name, value in request.headers]
                status = status_of(connection, request.path, request.method, *fields, host=request.host)
                found.append((match, request, status))
                expected.append((match, request, 200 if l7_match.matches(match, request) else 403))

    assert [(a, b) for a, b in zip(found, expected, strict=True) if a != b] == []
    assert {status for _, _, status in found} == {200, 403}


def test_a_websocket_passes_where_its_request_is_allowed(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ws")))
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"

    with lab.connect(SLOT) as connection:
        connection.sendall(f"GET /no HTTP/1.1\r\nHost: h\r\n{upgrade}\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 403 ")
    with lab.connect(SLOT) as connection:
        connection.sendall(f"GET /ws HTTP/1.1\r\nHost: h\r\n{upgrade}\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"GET /no HTTP/1.1\r\n\r\n")
        assert connection.recv(1000) == b"GET /no HTTP/1.1\r\n\r\n"


def test_a_websocket_ends_at_the_server_as_at_the_client_and_not_by_a_reset(lab: ProxyLab) -> None:
    lab.open(RAW_SLOT, rule_set(HttpMatch("GET", "/ws")))
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with call_in(lab.network.server, lambda: socket.create_server(("", SERVER_PORT + RAW_SLOT))) as listener:
        listener.settimeout(PATIENCE)
        with lab.connect(RAW_SLOT) as connection:
            connection.sendall(f"GET /ws HTTP/1.1\r\nHost: h\r\n{upgrade}".encode())
            accepted, _ = listener.accept()
            accepted.settimeout(PATIENCE)
            assert accepted.recv(1000).startswith(b"GET /ws ")
            accepted.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{upgrade}".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
            connection.sendall(b"x" * 1000)
        with accepted:
            time.sleep(0.3)  # the end arrives before the server reads
            assert b"".join(iter(lambda: accepted.recv(1 << 16), b"")) == b"x" * 1000


def test_a_refused_upgrade_by_the_server_does_not_open_the_way_for_other_requests(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ws/ignored")))
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"

    with lab.connect(SLOT) as connection:
        connection.sendall(f"GET /ws/ignored HTTP/1.1\r\nHost: h\r\n{upgrade}\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        with suppress(ConnectionError):
            connection.sendall(b"GET /no HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"HTTP/1.1 200" not in connection.recv(1000)
    assert lab.server.seen[-1].line == "GET /ws/ignored HTTP/1.1"


def test_the_access_log_has_each_request_with_the_headers_that_rules_name(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(ADMIN, HttpMatch("GET", "/logged.*", "", (HeaderMatch("X-T", "good", "REPLACE"),))))
    assert lab.request(SLOT, "GET", "/logged?a", "X-T: bad", "X-Other: 1", host="name:80") == 200
    assert lab.request(SLOT, "PUT", "/logged", "X-Role: guest", "X-Role: admin", family=6) == 403

    lab.await_state(lambda: len([record for record in lab.records if record.path.startswith("/logged")]) == 2)
    passed, refused = (record for record in lab.records if record.path.startswith("/logged"))
    assert (passed.slot, passed.method, passed.path, passed.host) == (SLOT, "GET", "/logged?a", "name:80")
    assert (passed.client[0], passed.server) == (CLIENT[4], (SERVER[4], SERVER_PORT + SLOT))
    assert (passed.code, passed.protocol, passed.headers) == (200, "HTTP/1.1", (("x-t", "bad"),))
    assert (refused.client[0], refused.server) == (CLIENT[6], (SERVER[6], SERVER_PORT + SLOT))
    assert (refused.code, refused.details) == (403, "rbac_access_denied_matched_policy[none]")
    assert refused.headers == (("x-role", "guest,admin"),)
