"""Ports and ICMP types as text: ``80/TCP``, ``8000-8080/TCP``, ``ICMP type 8``."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nfq_enforcer.core.tables.l7 import DnsQuestion, L7Request, TlsHello
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP

PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
ICMP_PROTOCOLS = frozenset((ICMP, ICMPV6))
FIRST = {TCP: 1, UDP: 1, SCTP: 1, ICMP: 0, ICMPV6: 0}
LAST = {TCP: 65535, UDP: 65535, SCTP: 65535, ICMP: 255, ICMPV6: 255}

_NAMES = {number: name for name, number in PROTOCOLS.items()} | {ICMP: "ICMP", ICMPV6: "ICMPv6"}


class PortSpan(NamedTuple):
    """PortSpan: consecutive ports of one protocol, or ICMP types, both ends included."""

    proto: int
    first: int
    last: int

    def __str__(self) -> str:
        """Render as ``80/TCP``, ``80-99/TCP``, ``every TCP port``, ``ICMP type 8`` or ``every ICMP type``."""
        name = _NAMES[self.proto]
        numbers = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        every = self.first <= FIRST[self.proto] and self.last >= LAST[self.proto]
        if self.proto in ICMP_PROTOCOLS:
            return f"every {name} type" if every else f"{name} type {numbers}"
        return f"every {name} port" if every else f"{numbers}/{name}"

    def __contains__(self, port: object) -> bool:
        """Return whether a port is in the span."""
        return isinstance(port, int) and self.first <= port <= self.last


class TrafficSpec(NamedTuple):
    """TrafficSpec: the protocol and port (or ICMP type) of a connection, with an optional request."""

    proto: int
    port: int
    request: L7Request | None = None

    @property
    def icmp(self) -> bool:
        """Return whether it is an ICMP message."""
        return self.proto in ICMP_PROTOCOLS

    @property
    def protocol(self) -> str:
        """Return the protocol's name, ``ICMP`` for both families."""
        return "ICMP" if self.icmp else _NAMES[self.proto]

    def __str__(self) -> str:
        """Render as ``80/TCP``, ``ICMP type 8``, ``GET /path on 80/TCP`` or ``a query for example.com on 53/UDP``."""
        port = str(PortSpan(self.proto, self.port, self.port))
        return f"{render_request(self.request)} on {port}" if self.request else port


def render_request(request: L7Request) -> str:
    """Return a request as ``GET /path``, ``a query for example.com``, or ``TLS to example.com``."""
    if isinstance(request, DnsQuestion):
        return f"a query for {request.name}"
    if isinstance(request, TlsHello):
        return f"TLS to {request.name}" if request.name else "TLS without a server name"
    return f"{request.method} {request.path}"


EVERYTHING = frozenset(PortSpan(proto, FIRST[proto], LAST[proto]) for proto in FIRST)


def render_spans(spans: Sequence[PortSpan]) -> list[str]:
    """Return the spans as text; ``everything`` for all ports and ICMP types of all protocols."""
    return ["everything"] if set(spans) == EVERYTHING else list(map(str, spans))


def merge_spans(spans: Iterable[PortSpan]) -> list[PortSpan]:
    """Return the spans in their order, adjacent ones merged."""
    merged: list[PortSpan] = []
    for span in spans:
        if merged and merged[-1].proto == span.proto and merged[-1].last + 1 == span.first:
            merged[-1] = merged[-1]._replace(last=span.last)
        else:
            merged.append(span)
    return merged
