"""The layer-7 rules of a ``toPorts`` entry: HTTP requests and DNS names, checked as they are read."""

import re
import warnings
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpMatch
from nfq_enforcer.policy.validation import Items, Part

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "word": "\\w",
    "xdigit": "0-9A-Fa-f",
}
_CLASS = re.compile(r"\[:([a-z]+):\]")
_NOT_RE2 = re.compile(r"(?<!\\)(?:\\\\)*(\(\?[=!<(#]|\\[1-9])")  # what upstream's engine has not: it cannot backtrack
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_NAME = re.compile(r"[-a-zA-Z0-9_.]{1,255}")
_PATTERN = re.compile(r"[-a-zA-Z0-9_.*]{1,255}")
_IN_LABEL = "[-a-zA-Z0-9_]"


def _expression(written: str) -> str:
    """Return a POSIX extended expression as Python's engine wants it."""
    text = _CLASS.sub(lambda found: _POSIX.get(found[1], found[0]), written)
    foreign = _NOT_RE2.search(text)
    if foreign:
        raise ValueError(f"'{written}' has '{foreign[1]}', which is not allowed; allowed: POSIX extended expressions")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # what Python may read otherwise some day
            re.compile(text)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise ValueError(f"'{written}' is not a regular expression: {error}") from None
    return text


def _header_name(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise ValueError(f"'{name}' is not the name of a header; allowed: letters, digits and !#$%&'*+-.^_`|~")
    return name


def _header(written: str) -> str:
    _header_name(written.partition(":")[0].strip())
    return written


def _dns_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is not a name; allowed: letters, digits, '-', '_' and '.'")
    return name


def _dns_pattern(pattern: str) -> str:
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(
            f"'{pattern}' is not a pattern; allowed: letters, digits, '-', '_', '.', and '*' for some of a label"
        )
    return pattern


Expression = Annotated[str, AfterValidator(_expression)]


class HeaderRule(Part):
    """A header that must be present, with this value if one is given."""

    unsupported = frozenset(("mismatch", "secret"))

    name: Annotated[str, AfterValidator(_header_name)]
    value: str = ""


class HttpRule(Part):
    """One kind of request; an empty field stands for any."""

    method: Expression = ""
    path: Expression = ""
    host: Expression = ""
    headers: Items[Annotated[str, AfterValidator(_header)]] = ()  # "Name: value" or "Name"
    header_matches: Items[HeaderRule] = ()

    def match(self) -> HttpMatch:
        """Return what it lets pass."""
        return HttpMatch(self.method, self.path, self.host, tuple(self._headers()))

    def _headers(self) -> Iterable[HeaderMatch]:
        for written in self.headers:
            name, colon, value = written.partition(":")
            yield HeaderMatch(name.strip(), value.strip() if colon else None)
        for header in self.header_matches:
            yield HeaderMatch(header.name, header.value or None)


class DnsRule(Part):
    """Names that may be asked for."""

    match_name: Annotated[str, AfterValidator(_dns_name)] | None = None
    match_pattern: Annotated[str, AfterValidator(_dns_pattern)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.match_name is None) is (self.match_pattern is None):
            raise ValueError("a DNS rule has either matchName or matchPattern; allowed: one of them")
        return self

    def match(self) -> DnsMatch:
        """Return what it lets pass."""
        if self.match_name is not None:
            return DnsMatch(re.escape(self.match_name.removesuffix(".")))
        return DnsMatch(_wildcard((self.match_pattern or "").removesuffix(".")))


def _wildcard(pattern: str) -> str:
    """Return the expression of a pattern: ``*`` stays within a label, unless it is all, or is ``**.`` in front."""
    if pattern == "*":
        return ""
    front = pattern.startswith("**.")
    inner = pattern.removeprefix("**.") if front else pattern
    expression = f"{_IN_LABEL}*".join(map(re.escape, re.split(r"\*+", inner)))
    return f"(?:{_IN_LABEL}+[.])+{expression}" if front else expression


class L7Rules(Part):
    """What may be spoken on a port; without any rule, everything."""

    unsupported = frozenset(("kafka", "l7proto", "l7"))

    http: Items[HttpRule] | None = None
    dns: Items[DnsRule] | None = None

    @model_validator(mode="after")
    def _of_one_protocol(self) -> Self:
        if self.http and self.dns:
            raise ValueError("rules of two protocols; allowed: either http or dns")
        return self

    def matches(self) -> tuple[HttpMatch | DnsMatch, ...]:
        """Return what the rules let pass, one each."""
        return (*(rule.match() for rule in self.http or ()), *(rule.match() for rule in self.dns or ()))
