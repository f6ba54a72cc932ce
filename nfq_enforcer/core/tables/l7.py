"""What one layer-7 rule lets pass: HTTP requests and DNS names, as Cilium's ``rules`` describe them.

Every pattern must match the whole of its field, whatever alternatives it has; the fields of a rule must all match, and
an empty field matches anything. Header names are case-insensitive, values are not.
"""

import re
from functools import lru_cache
from typing import NamedTuple


class HttpRequest(NamedTuple):
    """What is judged of an HTTP request."""

    method: str = "GET"
    path: str = "/"  # with the query, as the request line has it
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class HeaderMatch(NamedTuple):
    """A header that must be present, and have this value unless that is None."""

    name: str
    value: str | None = None

    def matches(self, headers: tuple[tuple[str, str], ...]) -> bool:
        """Say whether one of the headers is this one."""
        wanted = self.name.lower()
        return any(name.lower() == wanted and self.value in {None, value} for name, value in headers)


class HttpMatch(NamedTuple):
    """Regular expressions of method, path and host, and headers."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()

    def matches(self, request: HttpRequest) -> bool:
        """Say whether the request is one of those that pass."""
        return (
            _whole(self.method, request.method)
            and _whole(self.path, request.path)
            and _whole(self.host, request.host)
            and all(header.matches(request.headers) for header in self.headers)
        )


class DnsMatch(NamedTuple):
    """A regular expression of names that may be asked for, without a dot at the end."""

    name: str

    def matches(self, asked: str) -> bool:
        """Say whether the name is one of those that pass."""
        return _whole(self.name, asked.removesuffix("."), ignore_case=True)


def _whole(pattern: str, text: str, ignore_case: bool = False) -> bool:
    return not pattern or _compiled(pattern, ignore_case).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE if ignore_case else re.NOFLAG)
