"""Layer-7 matches: the HTTP requests and DNS names of Cilium's ``rules``, as data; ``policy.l7_match`` evaluates them.

A pattern is an RE2 expression that has to match its complete field, with all its alternatives anchored. All fields of a
rule have to match; an empty field matches everything. Header names are case-insensitive, values are not.
"""

from typing import NamedTuple


class HttpRequest(NamedTuple):
    """HTTP request: the fields that rules match."""

    method: str = "GET"
    path: str = "/"  # with the query, as the request line has it
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # a header may occur several times


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
    """DNS match: a regular expression of query names, without a trailing dot."""

    name: str
