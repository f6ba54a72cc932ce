"""Layer-7 matches: HTTP requests and DNS names, by Cilium's ``rules``.

A pattern has to match its complete field, with all its alternatives anchored. All fields of a rule have to match; an
empty field matches everything. Header names are case-insensitive, values are not.
"""

import re
from functools import lru_cache
from typing import NamedTuple


class HttpRequest(NamedTuple):
    """HTTP request: the fields that rules match."""

    method: str = "GET"
    path: str = "/"  # with the query, as the request line has it
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class HeaderMatch(NamedTuple):
    """Header match: a header that has to be present, with this value unless it is None."""

    name: str
    value: str | None = None

    def matches(self, headers: tuple[tuple[str, str], ...]) -> bool:
        """Tell whether one of the headers matches."""
        wanted = self.name.lower()
        return any(name.lower() == wanted and self.value in {None, value} for name, value in headers)


class HttpMatch(NamedTuple):
    """HTTP match: regular expressions of method, path and host, and headers."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()

    def matches(self, request: HttpRequest) -> bool:
        """Tell whether the request matches."""
        return (
            _whole(self.method, request.method)
            and _whole(self.path, request.path)
            and _whole(self.host, request.host)
            and all(header.matches(request.headers) for header in self.headers)
        )


class DnsMatch(NamedTuple):
    """DNS match: a regular expression of query names, without a trailing dot."""

    name: str

    def matches(self, asked: str) -> bool:
        """Tell whether the name matches."""
        return _whole(self.name, asked.removesuffix("."), ignore_case=True)


def _whole(pattern: str, text: str, ignore_case: bool = False) -> bool:
    return not pattern or _compiled(pattern, ignore_case).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE if ignore_case else re.NOFLAG)
