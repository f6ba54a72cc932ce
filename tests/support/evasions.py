"""Requests that try to pass a proxy's rules, byte for byte; docs/http.md has the result of each."""

from typing import NamedTuple

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch

RULES = (
    HttpMatch("GET", "/userdata/[0-9]+"),
    HttpMatch("GET", "/public(/.*)?"),
    HttpMatch("GET", "/hosted", r"api\.example\.com"),
    HttpMatch("PUT", "/h", "", (HeaderMatch("X-Token", "s3cret"),)),
    HttpMatch("POST", "/ok"),
    HttpMatch("", "/ws"),
    HttpMatch("(?i)get", "/any-case"),
)


class Evasion(NamedTuple):
    """Evasion: the bytes that a client sends, in segments of one byte or in one segment."""

    name: str
    data: bytes
    in_bytes: bool = False


def request(target: str | bytes, *fields: str, method: str = "GET", host: str = "h", version: str = "1.1") -> bytes:
    """Return a request without a body."""
    target = target.encode() if isinstance(target, str) else target
    lines = [f"{method} ".encode() + target + f" HTTP/{version}".encode(), f"Host: {host}".encode()]
    return b"\r\n".join([*lines, *(field.encode() for field in fields), b"", b""])


def put(*fields: str) -> bytes:
    """Return a request that a rule allows with the header ``X-Token: s3cret``."""
    return request("/h", *fields, "Content-Length: 0", method="PUT")


def post(*fields: str, body: bytes = b"") -> bytes:
    """Return an allowed request with these fields and a body, of which they should say the length."""
    return request("/ok", *fields, method="POST") + body


SMUGGLED = request("/secret")
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
H2C = "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"

PATHS = (
    Evasion("allowed", request("/userdata/42")),
    Evasion("refused", request("/secret")),
    Evasion("query", request("/userdata/42?x=1")),
    Evasion("query, allowed by the rule", request("/public/?/../secret")),
    Evasion("fragment", request("/userdata/42#/x")),
    Evasion("/public/%2e%2e/secret", request("/public/%2e%2e/secret")),
    Evasion("/public/%2E./secret", request("/public/%2E./secret")),
    Evasion("/public/../secret", request("/public/../secret")),
    Evasion("/public/./x", request("/public/./x")),
    Evasion("/public/..;/secret", request("/public/..;/secret")),
    Evasion("/public/%2e%2e;/secret", request("/public/%2e%2e;/secret")),
    Evasion("/public/%2e%2e;a=b/secret", request("/public/%2e%2e;a=b/secret")),
    Evasion("/public/%2e%2e%3b/secret", request("/public/%2e%2e%3b/secret")),
    Evasion("/public/%2e;/secret", request("/public/%2e;/secret")),
    Evasion("byte 255 before /%2e%2e;/secret", request(b"/public/\xff/%2e%2e;/secret")),
    Evasion("/public/a;b/x", request("/public/a;b/x")),
    Evasion("/public/%2fsecret", request("/public/%2fsecret")),
    Evasion("/public/..%2fsecret", request("/public/..%2fsecret")),
    Evasion("/public/%5c..%5csecret", request("/public/%5c..%5csecret")),
    Evasion(r"/public\..\secret", request(r"/public\..\secret")),
    Evasion("/public/%252e%252e/secret", request("/public/%252e%252e/secret")),
    Evasion("/public/%c0%ae%c0%ae/secret", request("/public/%c0%ae%c0%ae/secret")),
    Evasion("/public/%u002e%u002e/secret", request("/public/%u002e%u002e/secret")),
    Evasion("//userdata/42", request("//userdata/42")),
    Evasion("/public//../../secret", request("/public//../../secret")),
    Evasion("/%75serdata/42", request("/%75serdata/42")),
    Evasion("/%73ecret", request("/%73ecret")),
    Evasion("/USERDATA/42", request("/USERDATA/42")),
    Evasion("/userdata/42%00", request("/userdata/42%00")),
    Evasion("/userdata/42%0a", request("/userdata/42%0a")),
    Evasion("/userdata/42/", request("/userdata/42/")),
    Evasion("no slash", request("userdata/42")),
    Evasion("tab in the request line", b"GET\t/userdata/42 HTTP/1.1\r\nHost: h\r\n\r\n"),
    Evasion("two spaces in the request line", b"GET  /userdata/42 HTTP/1.1\r\nHost: h\r\n\r\n"),
    Evasion("space in the path", request("/public/a /secret")),
    Evasion("path of 70 KiB", request("/userdata/" + "4" * 70_000)),
)
METHODS = (
    Evasion("method get", request("/userdata/42", method="get")),
    Evasion("method get, allowed by the rule", request("/any-case", method="get")),
    Evasion("method GETX", request("/userdata/42", method="GETX")),
    Evasion("method POST", request("/userdata/42", "Content-Length: 0", method="POST")),
    Evasion("method HEAD", request("/userdata/42", method="HEAD")),
    Evasion("method TRACE", request("/userdata/42", method="TRACE")),
    Evasion("X-HTTP-Method-Override: DELETE", request("/userdata/42", "X-HTTP-Method-Override: DELETE")),
    Evasion("CONNECT", b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n"),
    Evasion("CONNECT /ws", request("/ws", method="CONNECT")),
    Evasion("OPTIONS *", request("*", method="OPTIONS")),
    Evasion("PRI *", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
)
HOSTS = (
    Evasion("host", request("/hosted", host="api.example.com")),
    Evasion("host with port", request("/hosted", host="api.example.com:80")),
    Evasion("host in capitals", request("/hosted", host="API.EXAMPLE.COM")),
    Evasion("host with a final dot", request("/hosted", host="api.example.com.")),
    Evasion("another host", request("/hosted", host="x.example.com")),
    Evasion("host with user", request("/hosted", host="api.example.com@x.example.com")),
    Evasion("two hosts, the second good", request("/hosted", "Host: api.example.com", host="evil")),
    Evasion("two hosts, the first good", request("/hosted", "Host: evil", host="api.example.com")),
    Evasion("absolute form", request("http://other/userdata/42")),
    Evasion("absolute form, refused", request("http://h/secret")),
    Evasion("absolute form, good host in it", request("http://api.example.com/hosted", host="evil")),
    Evasion("absolute form, good host beside it", request("http://evil/hosted", host="api.example.com")),
    Evasion("absolute form of https", request("https://h/userdata/42")),
    Evasion("no host", b"GET /userdata/42 HTTP/1.1\r\n\r\n"),
    Evasion("HTTP/1.0", request("/userdata/42", version="1.0")),
    Evasion("HTTP/1.0 without a host", b"GET /userdata/42 HTTP/1.0\r\n\r\n"),
    Evasion("HTTP/0.9", b"GET /userdata/42\r\n\r\n"),
    Evasion("HTTP/1.2", request("/userdata/42", version="1.2")),
)
FRAMING = (
    Evasion("pipelined: allowed, refused, allowed", request("/userdata/1") + SMUGGLED + request("/userdata/2")),
    Evasion("one byte a segment", request("/userdata/42"), in_bytes=True),
    Evasion("one byte a segment, refused", SMUGGLED, in_bytes=True),
    Evasion("CL.TE", post("Content-Length: 6", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED)),
    Evasion(
        "TE.CL", post("Transfer-Encoding: chunked", "Content-Length: 4", body=b"1c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n")
    ),
    Evasion("TE: xchunked", post("Transfer-Encoding: xchunked", "Content-Length: 4", body=b"abcd" + SMUGGLED)),
    Evasion(
        "TE twice", post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=b"0\r\n\r\n" + SMUGGLED)
    ),
    Evasion("TE: chunked, identity", post("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED)),
    Evasion("TE with a tab", post("Transfer-Encoding:\tchunked", body=b"0\r\n\r\n" + SMUGGLED)),
    Evasion(
        "space before the colon", post("Transfer-Encoding : chunked", "Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED)
    ),
    Evasion("two different CL", post("Content-Length: 0", f"Content-Length: {len(SMUGGLED)}", body=SMUGGLED)),
    Evasion("two equal CL", post("Content-Length: 5", "Content-Length: 5", body=b"hello" + SMUGGLED)),
    Evasion("CL: +5", post("Content-Length: +5", body=b"hello")),
    Evasion("CL: 5, 5", post("Content-Length: 5, 5", body=b"hello")),
    Evasion("CL: 0x5", post("Content-Length: 0x5", body=b"hello")),
    Evasion("bare LF", b"GET /userdata/42 HTTP/1.1\nHost: h\n\n"),
    Evasion("bare CR in a header", request("/userdata/42", "X-A: b\rGET /secret HTTP/1.1")),
    Evasion("obs-fold", request("/userdata/42", "X-A: b", " c")),
    Evasion("NUL in a header", request("/userdata/42", "X-A: b\0c")),
    Evasion("chunk extension", post("Transfer-Encoding: chunked", body=b"0;x\n" + SMUGGLED + b"\r\n")),
    Evasion("chunk size with a sign", post("Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n")),
    Evasion(
        "chunk size too large", post("Transfer-Encoding: chunked", body=b"10000000000000005\r\nhello\r\n0\r\n\r\n")
    ),
    Evasion("body of a GET", request("/userdata/42", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED),
    Evasion(
        "Expect: 100-continue, refused", request("/secret", "Expect: 100-continue", "Content-Length: 5", method="POST")
    ),
)
HEADERS = (
    Evasion("header", put("X-Token: s3cret")),
    Evasion("header with a wrong value", put("X-Token: nope")),
    Evasion("header twice, the second good", put("X-Token: nope", "X-Token: s3cret")),
    Evasion("header twice, the first good", put("X-Token: s3cret", "X-Token: nope")),
    Evasion("header twice, both good", put("X-Token: s3cret", "x-token: s3cret")),
    Evasion("header with an underscore", put("X_Token: s3cret")),
    Evasion("Connection names the header", put("X-Token: s3cret", "Connection: x-token")),
    Evasion("empty header name", put(": s3cret")),
    Evasion("header of 100 KiB", request("/userdata/42", "X-A: " + "a" * 100_000)),
    Evasion("101 headers", request("/userdata/42", *(f"X-{number}: a" for number in range(101)))),
    Evasion("x-envoy-original-path", request("/userdata/42", "x-envoy-original-path: /secret")),
    Evasion("X-Original-URL", request("/userdata/42", "X-Original-URL: /secret")),
)
UPGRADES = (
    Evasion("WebSocket, server without", request("/ws", *UPGRADE) + SMUGGLED),
    Evasion("WebSocket, refused", request("/secret", *UPGRADE) + SMUGGLED),
    Evasion("another upgrade", request("/ws", "Connection: Upgrade", "Upgrade: tcp") + SMUGGLED),
    Evasion("h2c upgrade", request("/userdata/42", *H2C)),
    Evasion("h2c upgrade, refused", request("/secret", *H2C)),
)
NO_HTTP = (
    Evasion("TLS", bytes.fromhex("1603010200010001fc0303") + bytes(40)),
    Evasion("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
    Evasion("binary", bytes(range(256))),
)

EVASIONS = (*PATHS, *METHODS, *HOSTS, *FRAMING, *HEADERS, *UPGRADES, *NO_HTTP)
