"""Evaluation of layer-7 matches, for trace, matrix and probes: whether a rule matches a request or a DNS name."""

from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpMatch, HttpRequest
from nfq_enforcer.policy import regex


def matches_request(match: HttpMatch, request: HttpRequest) -> bool:
    """Return whether an HTTP request matches in every field."""
    return (
        _matches_field(match.method, request.method)
        and _matches_field(match.path, request.path)
        and _matches_field(match.host, request.host)
        and all(_matches_header(header, request) for header in match.headers)
    )


def matches_name(match: DnsMatch, asked: str) -> bool:
    """Return whether a DNS name matches, in any case and with or without the trailing dot."""
    return not match.name or regex.matches_whole(match.name, asked.removesuffix("."), ignore_case=True)


def _matches_field(pattern: str, text: str) -> bool:
    return not pattern or regex.matches_whole(pattern, text)


def _matches_header(match: HeaderMatch, request: HttpRequest) -> bool:
    """Return whether the header matches; the values of a repeated header are one value, joined by commas, as in Envoy.

    A match with a mismatch action (LOG, ADD, DELETE, REPLACE) denies no request: the proxy logs or changes the header.
    """
    values = [value for name, value in request.headers if name.lower() == match.name.lower()]
    return bool(match.mismatch) or (bool(values) and match.value in {None, ",".join(values)})
