"""Document models of the layer-7 rules of a ``toPorts`` entry, HTTP requests and DNS names, validated when parsed."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from nfq_enforcer.core.tables.dns_names import normalised
from nfq_enforcer.core.tables.l7 import DnsMatch, HeaderMatch, HttpMatch
from nfq_enforcer.policy import regex, templates
from nfq_enforcer.policy.validation import Items, Part

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
# Upstream splits a line at its first blank, and cuts the colons off the name.
_HEADER_LINE = re.compile(r"([^: \t]+)(?:(?::+ | (?!:))([^ \t](?:.*[^ \t])?))?", re.DOTALL)
_NAME = re.compile(r"[-a-zA-Z0-9_]+(\.[-a-zA-Z0-9_]+)*\.?")
_PATTERN = re.compile(r"[-a-zA-Z0-9_*]+(\.[-a-zA-Z0-9_*]+)*\.?")
_MAX_NAME = 255  # characters, as upstream
_DOTS = f"between labels one dot, at most {_MAX_NAME} characters"


def _header_name(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise ValueError(f"'{name}' is not the name of a header; allowed: letters, digits and !#$%&'*+-.^_`|~")
    return name


def _rendered(text: str) -> str:
    message = templates.certain(text)
    if message:
        raise ValueError(message)
    return text


def _rendered_expression(expression: str) -> str:
    _rendered(regex.literals(expression))
    return expression


def _header(line: str) -> str:
    """Refuse a line that upstream takes for another header or value than its author, so that no request matches it."""
    name, *value = re.split(r"\s*:\s*|\s+", line.strip(), maxsplit=1)
    _header_name(name)
    found = _HEADER_LINE.fullmatch(line)
    if not found:
        meant = ": ".join((name, *filter(None, value)))
        raise ValueError(f"'{line}' is not a header; write '{meant}'; allowed: 'Name: value' with one blank, or 'Name'")
    _rendered(found[2] or "")
    return line


def _dns_name(name: str) -> str:
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is not a name; allowed: labels of letters, digits, '-' and '_', {_DOTS}")
    return name


def _dns_pattern(pattern: str) -> str:
    if len(pattern) > _MAX_NAME or not _PATTERN.fullmatch(pattern):
        raise ValueError(
            f"'{pattern}' is not a pattern; allowed: labels of letters, digits, '-', '_', and '*' for some of a label, "
            f"{_DOTS}"
        )
    return pattern


RegexField = Annotated[str, AfterValidator(regex.check_for_proxy), AfterValidator(_rendered_expression)]


class HeaderRule(Part):
    """HeaderRule: a header that a request must have, with this value unless the value is empty.

    With a mismatch action the request passes without it as well, and the proxy logs or changes the header.
    """

    unsupported = frozenset(("secret",))

    name: Annotated[str, AfterValidator(_header_name)]
    value: Annotated[str, AfterValidator(_rendered)] = ""
    mismatch: Literal["LOG", "ADD", "DELETE", "REPLACE"] | None = None


class HttpRule(Part):
    """HttpRule: a pattern of HTTP requests; an empty field matches any value."""

    method: RegexField = ""
    path: RegexField = ""
    host: RegexField = ""
    headers: Items[Annotated[str, AfterValidator(_header)]] = ()  # "Name: value", "Name value" or "Name"
    header_matches: Items[HeaderRule] = ()

    def match(self) -> HttpMatch:
        """Return the match of the requests that the rule allows."""
        return HttpMatch(self.method, self.path, self.host, tuple(self._headers()))

    def _headers(self) -> Iterable[HeaderMatch]:
        for found in filter(None, map(_HEADER_LINE.fullmatch, self.headers)):
            yield HeaderMatch(*found.groups())
        for header in self.header_matches:
            yield HeaderMatch(header.name, header.value or None, header.mismatch or "")


class DnsRule(Part):
    """DnsRule: DNS names, as a name or a pattern: those that may be queried, or those of peers (``toFQDNs``)."""

    match_name: Annotated[str, AfterValidator(_dns_name)] | None = None
    match_pattern: Annotated[str, AfterValidator(_dns_pattern)] | None = None

    @model_validator(mode="after")
    def _name_or_pattern(self) -> Self:
        if (self.match_name is None) is (self.match_pattern is None):
            raise ValueError("a DNS rule has either matchName or matchPattern; allowed: one of them")
        return self

    def match(self) -> DnsMatch:
        """Return the match of the names."""
        return DnsMatch(normalised(self.match_name or self.match_pattern or ""))


class L7Rules(Part):
    """L7Rules: the requests that an entry allows on its ports; with an empty list of rules, all."""

    unsupported = frozenset(("kafka", "l7proto", "l7"))

    http: Items[HttpRule] | None = None
    dns: Items[DnsRule] | None = None

    @model_validator(mode="after")
    def _one_protocol(self) -> Self:
        if self.http is None and self.dns is None:
            raise ValueError("rules without http and dns; allowed: one of them, or no rules, which opens the ports")
        if self.http and self.dns:
            raise ValueError("rules of two protocols; allowed: either http or dns")
        return self

    def matches(self) -> tuple[HttpMatch | DnsMatch, ...]:
        """Return the match of each rule."""
        return (*(rule.match() for rule in self.http or ()), *(rule.match() for rule in self.dns or ()))
