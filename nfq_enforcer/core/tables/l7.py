"""Layer-7 matches: the HTTP requests, DNS names and server names of Cilium's documents, as data.

``policy.l7_match`` evaluates them.

A pattern of HTTP is an RE2 expression that has to match its complete field, with all its alternatives anchored. All
fields of a rule have to match; an empty field matches everything. Header names are case-insensitive, values are not.
"""

import re
from collections.abc import Iterable
from enum import IntFlag
from typing import NamedTuple

_TARGET = re.compile(r"(?:[a-z][a-z0-9+.-]*://(?P<host>[^/?#]*))?(?P<path>[^#]*)")


class HttpRequest(NamedTuple):
    """HTTP request: the fields that rules match."""

    method: str = "GET"
    path: str = "/"  # with the query, as the request line has it
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # a header may occur several times


def split_target(target: str) -> tuple[str, str]:
    """Return the host of a request's target, empty for a path alone, and the path with its query, without a fragment.

    Source: RFC 9112 section 3.2, origin-form and absolute-form.
    """
    found = _TARGET.match(target)
    assert found is not None  # each of its parts may be empty
    return found["host"] or "", found["path"]


class DnsQuestion(NamedTuple):
    """DNS question: the name that a client queries, in any case, with or without the trailing dot."""

    name: str


class TlsHello(NamedTuple):
    """TLS hello: the server name (SNI) that a client indicates, in any case; empty: none."""

    name: str


class HeaderMatch(NamedTuple):
    """Header match: a header that has to be present, with this value unless it is None."""

    name: str
    value: str | None = None
    mismatch: str = ""  # a request without the header: "" does not match, else it passes, with this action of the proxy


class HttpMatch(NamedTuple):
    """HTTP match: regular expressions of method, path and host, and headers."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()


class DnsMatch(NamedTuple):
    """DNS match: a pattern of names (see ``core.tables.dns_names``)."""

    pattern: str


class SniMatch(NamedTuple):
    """SNI match: a pattern of TLS server names (see ``core.tables.server_names``)."""

    pattern: str


L7Match = HttpMatch | DnsMatch | SniMatch
L7Request = HttpRequest | DnsQuestion | TlsHello


class ProxyProtocols(IntFlag):
    """Proxy protocols: the proxy compares messages of these with rules."""

    HTTP = 1
    TLS = 2  # the ClientHello, which is not encrypted


NO_PROTOCOL, EVERY_PROTOCOL = ProxyProtocols(0), ProxyProtocols.HTTP | ProxyProtocols.TLS
_PROTOCOLS: dict[type[L7Match], ProxyProtocols] = {HttpMatch: ProxyProtocols.HTTP, SniMatch: ProxyProtocols.TLS}


def proxy_protocols(matches: Iterable[L7Match]) -> ProxyProtocols:
    """Return the protocols that the proxy has to read for these matches."""
    found = NO_PROTOCOL
    for kind in set(map(type, matches)):
        found |= _PROTOCOLS.get(kind, NO_PROTOCOL)
    return found
