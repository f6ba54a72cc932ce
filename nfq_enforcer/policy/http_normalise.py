"""Normal form of HTTP requests: what Envoy matches rules with, as the proxy of an agent configures it.

Envoy normalises a request before it looks at rules, and the server gets what rules saw. ``normalise`` gives the same
request, or the answer with which the proxy refuses it before any rule. Otherwise a rule about ``/public/.*`` would be
traced as open for ``/public/../secret``.

HTTP/1.1 and HTTP/2 differ in two points, and the one that lets more pass counts here: over HTTP/1.1, Envoy also refuses
methods that its parser does not know, and characters of a target outside ASCII.
"""

import re
from functools import lru_cache

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.policy.http_path import BAD_REQUEST, FORBIDDEN, HttpRefusal, normal_path

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_AUTHORITY = re.compile(r"[A-Za-z0-9!$%&'()*+,.:;=@\[\]_~-]*")
_ABSOLUTE = re.compile(
    r"(?P<scheme>https?)://(?:[A-Za-z0-9!$%&'()*+,.:;=_~-]*@)?"
    r"(?P<host>(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?)(?P<path>[/?].*)?",
    re.IGNORECASE | re.DOTALL,
)
_LAST_PORT = 0xFFFF
_ENDS_LINE = re.compile(r"[\x00\r\n]")
_OF_CONNECTION = frozenset(("connection", "keep-alive", "proxy-connection", "upgrade"))
_NEVER_NAMED = frozenset(("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"))
_MAX_NAMED = 10  # headers in Connection
_UPGRADES: tuple[list[str], ...] = [], ["websocket"], ["h2c"]  # which Envoy permits or, the last one, ignores
_SCHEME = "x-forwarded-proto"  # Envoy sets it to the scheme of the connection before rules see it

Headers = tuple[tuple[str, str], ...]


@lru_cache(maxsize=4096)
def normalise(request: HttpRequest) -> HttpRequest | HttpRefusal:
    """Return the request that rules are matched with, or the refusal."""
    if not _TOKEN.fullmatch(request.method):
        return HttpRefusal(BAD_REQUEST, "its method is no token")
    if request.method == "CONNECT":
        return HttpRefusal(FORBIDDEN, "CONNECT asks for a tunnel")
    if request.path == "*":
        return HttpRefusal(FORBIDDEN, "its target is the server itself (*)")
    headers = _normal_headers(request.headers)
    if isinstance(headers, HttpRefusal):
        return headers
    target = _split_target(request)
    if isinstance(target, HttpRefusal):
        return target
    host, path = target
    normal = normal_path(path)
    if isinstance(normal, HttpRefusal):
        return normal
    if _asks_for_other_protocol(request.headers):
        return HttpRefusal(FORBIDDEN, "it asks for an upgrade to another protocol than WebSocket")
    return HttpRequest(request.method, normal, host, headers)


def _split_target(request: HttpRequest) -> tuple[str, str] | HttpRefusal:
    """Return host and path; the host of a URL replaces that of the headers, and several are one, joined by commas."""
    if request.path.startswith("/"):
        hosts = _values(request.headers, "host")
        if "host" in _named_by_connection(request.headers):
            return HttpRefusal(BAD_REQUEST, "its header Connection names Host")
        host = ",".join(([request.host] if request.host or not hosts else []) + hosts)
        if not _AUTHORITY.fullmatch(host):
            return HttpRefusal(BAD_REQUEST, "its host has a character that is not allowed there")
        return host, request.path
    absolute = _ABSOLUTE.fullmatch(request.path)
    if not absolute or int(absolute["port"] or 0) > _LAST_PORT or (absolute["path"] or "").startswith("?"):
        return HttpRefusal(BAD_REQUEST, "its target is neither a path nor a URL")
    if absolute["scheme"].lower() == "https":
        return HttpRefusal(FORBIDDEN, "its target is a URL of https on a connection without TLS")
    return absolute["host"], absolute["path"] or "/"


def _normal_headers(headers: Headers) -> Headers | HttpRefusal:
    """Return the headers without ``Host``, those of the connection, and those that ``Connection`` names."""
    if any(not _TOKEN.fullmatch(name) or _ENDS_LINE.search(value) for name, value in headers):
        return HttpRefusal(BAD_REQUEST, "it has a malformed header")
    named = _named_by_connection(headers)
    if len(named) > _MAX_NAMED or not _NEVER_NAMED.isdisjoint(named):
        return HttpRefusal(BAD_REQUEST, "its header Connection names too many headers, or one that has to stay")
    removed = _OF_CONNECTION.union(named, ("host", _SCHEME)) - {"te"}
    if "upgrade" in named and _values(headers, "upgrade") == ["websocket"]:
        removed -= {"connection", "upgrade"}
    kept = [(name, value.strip(" \t")) for name, value in headers if name.lower() not in removed]
    return (*((name, value) for name, value in kept if name.lower() != "te" or value == "trailers"), (_SCHEME, "http"))


def _asks_for_other_protocol(headers: Headers) -> bool:
    return "upgrade" in _named_by_connection(headers) and _values(headers, "upgrade") not in _UPGRADES


def _named_by_connection(headers: Headers) -> list[str]:
    return [name.strip(" \t").lower() for value in _values(headers, "connection") for name in value.split(",")]


def _values(headers: Headers, name: str) -> list[str]:
    return [value.strip(" \t") for other, value in headers if other.lower() == name]
