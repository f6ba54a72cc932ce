"""HTTP/2 with prior knowledge and gRPC through a real Envoy, and requests that break the rules of HTTP/2."""

import socket
from collections.abc import Iterator

import pytest
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, RstStreamFrame

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch
from tests.support.http2 import EMPTY_MESSAGE, Fields, Http2Client, Http2Server
from tests.support.labs import FAMILIES
from tests.support.proxies import CLIENT, SERVER_PORT, ProxyLab, rule_set

SLOT = 18
RULES = rule_set(
    HttpMatch("GET", "/public(/.*)?"),
    HttpMatch("GET", "/hosted", "good"),
    HttpMatch("POST", r"/test\.Echo/Say"),
    HttpMatch("GET", "/token", "", (HeaderMatch("X-Token", "s3cret"),)),
)
METHOD, SCHEME, AUTHORITY, PATH = (":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/public/a")
SECRET = (":path", "/secret")


@pytest.fixture(scope="module")
def lab(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyLab]:
    lab = ProxyLab(tmp_path_factory.mktemp("proxy"))
    lab.open(SLOT, RULES)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def server(lab: ProxyLab) -> Iterator[Http2Server]:
    server = Http2Server()
    lab.on_server.run(server.listen(SERVER_PORT + SLOT))
    yield server
    lab.on_server.run(server.close())


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_of_one_connection_are_allowed_and_refused(lab: ProxyLab, server: Http2Server, family: int) -> None:
    server.seen.clear()
    with lab.connect(SLOT, family) as connection:
        client = Http2Client(connection)
        responses = [client.request(path) for path in ("/public/a", "/secret", "/public/%2e%2e/secret", "/public/b")]

    assert [response.status for response in responses] == [200, 403, 403, 200]
    assert responses[1].body == b"Access denied\r\n"
    assert [seen[":path"] for seen in server.seen] == ["/public/a", "/public/b"]
    assert {name for seen in server.seen for name in seen} == {":method", ":scheme", ":authority", ":path"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_grpc_call_has_status_7_and_the_channel_goes_on(
    lab: ProxyLab, server: Http2Server, family: int
) -> None:
    grpc = (("content-type", "application/grpc"), ("te", "trailers"))
    with lab.connect(SLOT, family) as connection:
        client = Http2Client(connection)
        calls = [
            client.request(f"/test.Echo/{name}", "POST", *grpc, body=EMPTY_MESSAGE) for name in ("Say", "Deny", "Say")
        ]

    assert [(call.status, call.headers["grpc-status"]) for call in calls] == [(200, "0"), (200, "7"), (200, "0")]
    assert calls[1].headers["grpc-message"].startswith("Access denied")
    assert server.seen[-1]["te"] == "trailers"
    lab.await_state(lambda: len(_calls(lab, family)) == 3)
    assert _calls(lab, family) == [("Say", 0, 200), ("Deny", 7, 200), ("Say", 0, 200)]


def _calls(lab: ProxyLab, family: int) -> list[tuple[str, int | None, int]]:
    """Return name, gRPC status and HTTP status of the calls in the access log."""
    return [
        (record.path.removeprefix("/test.Echo/"), record.grpc, record.code)
        for record in lab.records
        if record.path.startswith("/test.Echo/") and record.client[0] == CLIENT[family]
    ]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((METHOD, SCHEME, AUTHORITY, PATH, SECRET), 0),
        ((METHOD, SCHEME, AUTHORITY, SECRET, PATH), 0),
        ((METHOD, SCHEME, AUTHORITY, PATH, (":method", "POST")), 0),
        ((METHOD, SCHEME, AUTHORITY, ("x-a", "b"), PATH), 0),
        ((METHOD, SCHEME, AUTHORITY, PATH, (":unknown", "a")), 0),
        ((METHOD, SCHEME, AUTHORITY, PATH, ("X-Upper", "a")), 0),
        ((METHOD, SCHEME, AUTHORITY), 0),
        ((SCHEME, AUTHORITY, PATH), 0),
        ((METHOD, SCHEME, AUTHORITY, (":path", "")), 0),
        ((METHOD, SCHEME, AUTHORITY, (":path", "public/a")), 0),
        ((METHOD, SCHEME, AUTHORITY, (":path", "http://h/public/a")), 0),
        ((METHOD, SCHEME, AUTHORITY, (":path", "/public/a /secret")), 0),
        ((METHOD, SCHEME, AUTHORITY, (":path", "/public/a\r\nx: y")), 0),
        ((METHOD, SCHEME, AUTHORITY, PATH, ("x-a", "b\r\nx-c: d")), 0),
        ((METHOD, SCHEME, AUTHORITY, PATH, ("transfer-encoding", "chunked")), 0),
        ((METHOD, SCHEME, AUTHORITY, PATH, ("connection", "close")), 0),
        ((METHOD, SCHEME, (":authority", "bad"), (":path", "/hosted"), ("host", "good")), 403),
        ((METHOD, SCHEME, (":authority", "good"), (":path", "/hosted"), ("host", "bad")), 200),
        ((METHOD, SCHEME, (":path", "/hosted"), ("host", "good")), 200),
        (((":method", "CONNECT"), AUTHORITY), 0),
        (((":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY, PATH), 0),
        ((METHOD, SCHEME, AUTHORITY, (":path", "/token"), ("x-token", "s3cret")), 200),
        ((METHOD, SCHEME, AUTHORITY, (":path", "/token"), ("x-token", "s3cret"), ("x-token", "no")), 403),
    ],
)
def test_malformed_requests_do_not_reach_the_server(
    lab: ProxyLab, server: Http2Server, fields: Fields, status: int
) -> None:
    server.seen.clear()
    with lab.connect(SLOT) as connection:
        response = Http2Client(connection).send(fields)

    assert response.status == status
    assert len(server.seen) == (status == 200)
    assert {seen[":path"] for seen in server.seen} <= {"/hosted", "/token"}
    assert {seen.get("host") for seen in server.seen} <= {None}


def test_a_body_of_another_length_than_stated_is_refused(lab: ProxyLab, server: Http2Server) -> None:
    with lab.connect(SLOT) as connection:
        response = Http2Client(connection).request("/public/a", "GET", ("content-length", "3"), body=b"12345")

    assert response.status == 0
    assert response.reset is not None


def test_a_flood_of_continuations_ends_its_own_connection_only(lab: ProxyLab, server: Http2Server) -> None:
    with lab.connect(SLOT) as other, lab.connect(SLOT) as connection:
        client = Http2Client(other)
        assert client.request("/public/a").status == 200
        flooder = Http2Client(connection)
        connection.sendall(flooder.http.data_to_send())
        block = b"\x00\x03x-a\x7f\x81\x1f" + b"b" * 4000
        assert _is_ended_by(connection, [HeadersFrame(1, block), *(ContinuationFrame(1, block) for _ in range(1000))])
        assert client.request("/public/a").status == 200


def test_a_flood_of_resets_ends_its_own_connection_only(lab: ProxyLab, server: Http2Server) -> None:
    with lab.connect(SLOT) as other, lab.connect(SLOT) as connection:
        client, flooder = Http2Client(other), Http2Client(connection)
        assert flooder.request("/secret").status == 403
        frames: list[Frame] = []
        for stream in range(3, 20_003, 2):
            headers = flooder.http.encoder.encode([METHOD, SCHEME, AUTHORITY, PATH])
            frames += [HeadersFrame(stream, headers, flags=["END_HEADERS", "END_STREAM"]), RstStreamFrame(stream, 8)]
        assert _is_ended_by(connection, frames)
        assert client.request("/public/a").status == 200


def _is_ended_by(connection: socket.socket, frames: list[Frame]) -> bool:
    """Return whether the peer ends a connection because of these frames."""
    try:
        for frame in frames:
            connection.sendall(frame.serialize())
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True
