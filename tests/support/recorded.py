"""Recorded flows for tests: ends with labels, and flows between them."""

from ipaddress import ip_address
from typing import Any

from nfq_enforcer.core.identity import RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import L7Request
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.loader import compose_labels
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.recorded import RecordedEnd, RecordedFlow, Seen

LAST = 1_796_000_000.0  # 2026-11-29T23:33:20Z


def endpoint(name: str, address: str, namespace: str = "default", **labels: str) -> RecordedEnd:
    """Return an endpoint with these labels and those derived from its namespace."""
    all_labels = compose_labels(Labels.parse(labels), namespace, "default", None)
    return RecordedEnd(ip_address(address), all_labels, namespace, name)


def outside(address: str, *names: str) -> RecordedEnd:
    """Return an address outside, with the names that DNS gave to it."""
    return RecordedEnd(ip_address(address), RESERVED[WORLD], fqdns=names)


def reserved(identity: Identity, address: str = "192.0.2.1") -> RecordedEnd:
    """Return the end with a reserved identity."""
    return RecordedEnd(ip_address(address), RESERVED[identity])


def to(
    source: RecordedEnd, target: RecordedEnd, port: int = 80, proto: int = TCP, request: L7Request | None = None
) -> RecordedFlow:
    """Return a flow."""
    return RecordedFlow(source, target, TrafficSpec(proto, port, request))


def seen(*flows: RecordedFlow, times: int = 1, **refused: int) -> dict[RecordedFlow, Seen]:
    """Return the flows, each seen so often, and refused by the sides ``ingress`` and ``egress``."""
    by_side: dict[Any, int] = {Direction(side): number for side, number in refused.items()}
    return {flow: Seen(times, LAST, by_side) for flow in flows}
