"""Evaluation of layer-7 matches, for trace, matrix and probes: whether a rule matches a request or a name."""

from collections.abc import Iterable

from nfq_enforcer.core.tables import dns_names, server_names
from nfq_enforcer.core.tables.l7 import (
    DnsMatch,
    DnsQuestion,
    HeaderMatch,
    HttpMatch,
    HttpRequest,
    L7Match,
    L7Request,
    SniMatch,
    TlsHello,
)
from nfq_enforcer.core.tables.policymap import L7Rule, RuleRef
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.policy import regex
from nfq_enforcer.policy.http_normalise import normalise
from nfq_enforcer.policy.http_path import HttpRefusal
from nfq_enforcer.policy.ports import render_request


def matching(rules: Iterable[L7Rule], request: L7Request) -> tuple[RuleRef, ...]:
    """Return the rules that match a request, each once."""
    normal = _normal(request)
    return tuple(dict.fromkeys(rule.ref for rule in rules if _matches(rule.match, normal)))


def matches(match: L7Match, request: L7Request) -> bool:
    """Return whether a match is about this kind of request, and matches it."""
    return _matches(match, _normal(request))


def _normal(request: L7Request) -> L7Request | HttpRefusal:
    """Return an HTTP request in the normal form that the proxy gives it, any other one as it is."""
    return normalise(request) if isinstance(request, HttpRequest) else request


def _matches(match: L7Match, normal: L7Request | HttpRefusal) -> bool:
    if isinstance(match, DnsMatch):
        return isinstance(normal, DnsQuestion) and matches_name(match, normal.name)
    if isinstance(match, SniMatch):
        return isinstance(normal, TlsHello) and matches_server_name(match, normal.name)
    return isinstance(normal, HttpRequest) and _matches_request(match, normal)


def wrong_protocol(matches: Iterable[L7Match], proto: int) -> tuple[str, str] | None:
    """Return the noun of the matches, and the reason why none of them can allow this protocol; None if one can."""
    kinds = set(map(type, matches))
    if kinds == {DnsMatch} and proto not in {UDP, TCP}:
        return "DNS names", "only UDP and TCP have them"
    if kinds == {SniMatch} and proto != TCP:
        return "server names", "only TLS over TCP has them"
    return None


def refusal(request: L7Request) -> HttpRefusal | None:
    """Return the proxy's refusal of a request before any rule, None if rules decide it."""
    normal = _normal(request)
    return normal if isinstance(normal, HttpRefusal) else None


def render(request: L7Request) -> str:
    """Return a request as ``GET /a/../b (at the proxy: GET /b)``, or as ``render_request`` does."""
    text, normal = render_request(request), _normal(request)
    seen = text if isinstance(normal, HttpRefusal) else render_request(normal)
    return text if seen == text else f"{text} (at the proxy: {seen})"


def _matches_request(match: HttpMatch, request: HttpRequest) -> bool:
    return (
        _matches_field(match.path, request.path)  # that in which most rules differ
        and _matches_field(match.method, request.method)
        and _matches_field(match.host, request.host)
        and all(_matches_header(header, request) for header in match.headers)
    )


def matches_name(match: DnsMatch, asked: str) -> bool:
    """Return whether a DNS name matches, in any case and with or without the trailing dot."""
    return dns_names.matches(match.pattern, dns_names.canonical(asked))


def matches_server_name(match: SniMatch, name: str) -> bool:
    """Return whether a TLS server name matches, in any case."""
    return regex.matches_whole(server_names.expression(match.pattern), server_names.canonical(name))


def _matches_field(pattern: str, text: str) -> bool:
    return not pattern or regex.matches_whole(pattern, text)


def _matches_header(match: HeaderMatch, request: HttpRequest) -> bool:
    """Return whether the header matches; the values of a repeated header are one value, joined by commas, as in Envoy.

    A match with a mismatch action (LOG, ADD, DELETE, REPLACE) denies no request: the proxy logs or changes the header.
    """
    name = match.name.lower()
    values = [value for other, value in request.headers if other.lower() == name]
    if name == "host":
        values = [request.host] if request.host else []
    return bool(match.mismatch) or (bool(values) and match.value in {None, ",".join(values)})
