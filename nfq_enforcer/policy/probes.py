"""Probe files: a JSON list of connections to evaluate, each with an optional expected verdict.

``[{"from": "default/web", "to": "default/db", "protocol": "TCP", "port": 5432, "expect": "allow"}, …]``

Any text yields probes, or DocumentErrors with all errors. A file of thousands of probes is read at the speed of the
JSON parser: the places of fields (line and column) are computed only for an error message.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.fields import PortField
from nfq_enforcer.policy.icmp import MAX_TYPE
from nfq_enforcer.policy.ports import render_request
from nfq_enforcer.policy.validation import Part, validate
from nfq_enforcer.policy.yaml_source import Place, Position, YamlDocument

Family = Literal["IPv4", "IPv6"]
ProbeProtocol = Literal["TCP", "UDP", "SCTP", "ICMP"]
ProbeVerdict = Literal["allow", "deny"]


def _icmp_type(number: int) -> int:
    if not 0 <= number <= MAX_TYPE:
        raise ValueError(f"ICMP type {number} is out of range; allowed: 0 to {MAX_TYPE}")
    return number


def _header_list(value: object) -> object:
    """Convert ``["Name: value"]``, the form of headers in policies, to ``{"Name": "value"}``.

    The values of a repeated header are joined by commas, as rules match them.
    """
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        return value
    by_name: dict[str, list[str]] = {}
    for line in value:
        name, _, text = line.partition(":")
        by_name.setdefault(name.strip(), []).append(text.strip())
    return {name: ",".join(values) for name, values in by_name.items()}


class ProbeRequest(Part):
    """ProbeRequest: the HTTP request of a probe."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: Annotated[Mapping[str, str], BeforeValidator(_header_list)] = Field(default_factory=dict)

    def as_request(self) -> HttpRequest:
        """Return the request in the form that HTTP rules are matched with."""
        return HttpRequest(self.method, self.path, self.host, tuple(self.headers.items()))


class ProbeIcmp(Part):
    """ProbeIcmp: the ICMP message of a probe."""

    type: Annotated[int, AfterValidator(_icmp_type)]
    family: Family | None = None


class Probe(Part):
    """Probe: one connection to evaluate, from ``source`` to ``target`` (references to ends), with its traffic."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    protocol: ProbeProtocol = "TCP"
    port: PortField | None = None
    family: Family | None = None  # None: IPv4 if both ends have it
    http: ProbeRequest | None = None
    dns: str | None = None  # the name that is queried
    sni: str | None = None  # the TLS server name that is indicated; empty: none
    icmp: ProbeIcmp | None = None  # None with protocol ICMP: an echo request
    expect: ProbeVerdict | None = None
    description: str = ""  # for human readers

    def __str__(self) -> str:
        """Render the traffic as ``80/TCP``, ``ICMP``, ``GET /path on 80/TCP``, ``a query for a.example on 53/UDP``."""
        if self.protocol == "ICMP":
            return f"ICMP type {self.icmp.type}" if self.icmp else "ICMP"
        port = f"{self.port}/{self.protocol}"
        return f"{render_request(self.request)} on {port}" if self.request else port

    @property
    def request(self) -> L7Request | None:
        """Return the request, None for a connection without one."""
        if self.dns is not None:
            return DnsQuestion(self.dns)
        if self.sni is not None:
            return TlsHello(self.sni)
        return self.http.as_request() if self.http else None

    @model_validator(mode="after")
    def _fields_are_consistent(self) -> Self:
        if self.protocol == "ICMP":
            _refuse("port", self.port, "with protocol ICMP; what it has is icmp.type")
        elif self.port is None:
            raise ValueError(f"a {self.protocol} probe needs a port; allowed: 1 to 65535")
        else:
            _refuse("icmp", self.icmp, f"with protocol {self.protocol}; allowed: with ICMP")
        if self.protocol != "TCP":
            _refuse("http", self.http, f"with protocol {self.protocol}; allowed: with TCP")
        if self.protocol not in {"TCP", "UDP"} or self.http:
            _refuse("dns", self.dns, f"with protocol {self.protocol} or http; allowed: with UDP or TCP alone")
        if self.protocol != "TCP" or self.http or self.dns is not None:
            _refuse("sni", self.sni, f"with protocol {self.protocol}, http or dns; allowed: with TCP alone")
        if self.icmp and self.family and self.icmp.family not in {None, self.family}:
            raise ValueError(f"family {self.family} contradicts icmp.family {self.icmp.family}; one of them is enough")
        return self


def _refuse(name: str, value: object, why: str) -> None:
    if value is not None:
        raise ValueError(f"{name} is not allowed {why}")


class ProbeFile:
    """ProbeFile: the probes of one file, in their order, with the places of their fields for error messages."""

    def __init__(self, text: str, file: str) -> None:
        """Parse the text; raise DocumentErrors with all errors."""
        self.file = file
        self._text = text
        self._data: Any = _json(text, file)
        self.probes = self._validated()

    def error(self, number: int, field: str, message: str) -> DocumentError:
        """Return an error with this message about a field of a probe; about the whole probe if ``field`` is empty."""
        return self._located.error((number, field) if field else (number,), message)

    def _validated(self) -> tuple[Probe, ...]:
        if not isinstance(self._data, list):
            raise self._located.error((), "a probe file is a JSON list of probes")
        probes: list[Probe] = []
        invalid: list[int] = []
        for number, item in enumerate(self._data):
            try:
                probes.append(Probe.model_validate(item))
            except ValidationError:
                invalid.append(number)
        if invalid:
            raise DocumentErrors(self._errors(invalid))
        return tuple(probes)

    def _errors(self, invalid: Iterable[int]) -> Iterator[DocumentError]:
        for number in invalid:
            try:
                validate(Probe, self._data[number], self._located, (number,))
            except DocumentErrors as errors:
                yield from errors.errors

    @cached_property
    def _located(self) -> YamlDocument:
        """Return the text with the places of its fields; if the JSON is not valid YAML (with a tab), all are at 1:1."""
        try:
            return yaml_source.parse(self._text, self.file)[0]
        except DocumentError:
            return YamlDocument(self.file, self._data, {(): Place(Position(1, 1), Position(1, 1))})


def _json(text: str, file: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg}; a probe file is a JSON list of probes"
        raise DocumentError(file, message, line=error.lineno, column=error.colno) from None
    except (RecursionError, ValueError):  # thousands of brackets, or of digits in a number
        raise DocumentError(file, "not a probe file: nested too deep, or a number too long") from None
