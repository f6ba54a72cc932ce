"""Probe files: a JSON list of connections to judge, each perhaps with the verdict that is expected.

``[{"from": "default/web", "to": "default/db", "protocol": "TCP", "port": 5432, "expect": "allow"}, …]``

Any text gives probes, or DocumentErrors for all that is wrong with them. Files of thousands are read at the speed of
the JSON parser: places (line and column) are looked for only when there is something to say of one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.fields import Port
from nfq_enforcer.policy.validation import Part, validate
from nfq_enforcer.policy.yaml_source import Located, Place, Position

Family = Literal["IPv4", "IPv6"]
Protocol = Literal["TCP", "UDP", "SCTP", "ICMP"]
Verdict = Literal["allow", "deny"]

MAX_ICMP_TYPE = 255


def _icmp_type(number: int) -> int:
    if not 0 <= number <= MAX_ICMP_TYPE:
        raise ValueError(f"ICMP type {number} is out of range; allowed: 0 to {MAX_ICMP_TYPE}")
    return number


def _header_list(written: object) -> object:
    """Take ``["Name: value"]`` for ``{"Name": "value"}``, as policies write headers."""
    if not isinstance(written, list) or not all(isinstance(line, str) for line in written):
        return written
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in written)}


class Request(Part):
    """An HTTP request."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: Annotated[Mapping[str, str], BeforeValidator(_header_list)] = Field(default_factory=dict)

    @property
    def asked(self) -> HttpRequest:
        """Return the request as policy judges it."""
        return HttpRequest(self.method, self.path, self.host, tuple(self.headers.items()))


class Icmp(Part):
    """An ICMP message."""

    type: Annotated[int, AfterValidator(_icmp_type)]
    family: Family | None = None


class Probe(Part):
    """One connection to judge: who opens it, to whom, and with what. ``source`` and ``target`` are references."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    protocol: Protocol = "TCP"
    port: Port | None = None
    family: Family | None = None  # none: IPv4 if both ends have it
    http: Request | None = None
    icmp: Icmp | None = None  # none, with protocol ICMP: an echo request
    expect: Verdict | None = None
    description: str = ""  # for the reader

    def __str__(self) -> str:
        """Render what is asked: ``80/TCP``, ``ICMP``, ``GET /path on 80/TCP``."""
        if self.protocol == "ICMP":
            return f"ICMP type {self.icmp.type}" if self.icmp else "ICMP"
        request = f"{self.http.method} {self.http.path} on " if self.http else ""
        return f"{request}{self.port}/{self.protocol}"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.protocol == "ICMP":
            _refuse("port", self.port, "with protocol ICMP; what it has is icmp.type")
        elif self.port is None:
            raise ValueError(f"a {self.protocol} probe needs a port; allowed: 1 to 65535")
        else:
            _refuse("icmp", self.icmp, f"with protocol {self.protocol}; allowed: with ICMP")
        if self.protocol != "TCP":
            _refuse("http", self.http, f"with protocol {self.protocol}; allowed: with TCP")
        if self.icmp and self.family and self.icmp.family not in {None, self.family}:
            raise ValueError(f"family {self.family} contradicts icmp.family {self.icmp.family}; one of them is enough")
        return self


def _refuse(name: str, value: object, why: str) -> None:
    if value is not None:
        raise ValueError(f"{name} is not allowed {why}")


class ProbeFile:
    """The probes of one file, in its order."""

    def __init__(self, text: str, file: str) -> None:
        """Parse the text; raise DocumentErrors for all that is wrong with it."""
        self.file = file
        self._text = text
        self._data: Any = _json(text, file)
        self.probes = self._validated()

    def error(self, number: int, field: str, message: str) -> DocumentError:
        """Return the error that says this of a field of a probe, of the whole probe if ``field`` is empty."""
        return self._located.error((number, field) if field else (number,), message)

    def _validated(self) -> tuple[Probe, ...]:
        if not isinstance(self._data, list):
            raise self._located.error((), "a probe file is a JSON list of probes")
        probes: list[Probe] = []
        wrong: list[int] = []
        for number, item in enumerate(self._data):
            try:
                probes.append(Probe.model_validate(item))
            except ValidationError:
                wrong.append(number)
        if wrong:
            raise DocumentErrors(self._problems(wrong))
        return tuple(probes)

    def _problems(self, wrong: Iterable[int]) -> Iterator[DocumentError]:
        for number in wrong:
            try:
                validate(Probe, self._data[number], self._located, (number,))
            except DocumentErrors as problems:
                yield from problems.errors

    @cached_property
    def _located(self) -> Located:
        """Return the places of the text's fields; all is at its beginning where JSON is not YAML, as with a tab."""
        try:
            return yaml_source.parse(self._text, self.file)[0]
        except DocumentError:
            return Located(self.file, self._data, {(): Place(Position(1, 1), Position(1, 1))})


def _json(text: str, file: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg}; a probe file is a JSON list of probes"
        raise DocumentError(file, message, line=error.lineno, column=error.colno) from None
    except (RecursionError, ValueError):  # brackets, or the digits of a number, by the thousand
        raise DocumentError(file, "not a probe file: nested too deep, or a number too long") from None
