"""Recording: logged events, summed up as the flows that they are of.

A connection between two nodes is logged by both. A file may have the flows of several nodes, so a connection counts
once, by its ports. Of an HTTP request that passes, this program logs the response, Hubble both; it counts once as well.
Ends of flows and answers of DNS are no decisions, and have no part, except for the addresses in an answer.
"""

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

from nfq_enforcer.cluster.names import End
from nfq_enforcer.core.events import DnsMessage, FlowEvent, HttpMessage, L7Message
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello, split_target
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.policy.ports import ICMP_PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.recorded import RecordedEnd, RecordedFlow, Seen

MAX_FLOWS = 100_000  # different ones
MAX_PORTS = 4_096  # of openers, for one flow; connections from further ones are estimated by their events
_MAX_NAMES = 8  # of one address for one client

_REFUSALS = frozenset(  # that a rule can change
    (DropReason.POLICY_DENIED, DropReason.DNS_REFUSED, DropReason.HTTP_REFUSED, DropReason.TLS_REFUSED)
)


@dataclass(slots=True)
class _Tally:
    """Tally: the events of one flow."""

    last: float = 0.0
    events: dict[int, Counter[tuple[Direction, bool]]] = field(default_factory=dict)  # by the opener's port
    refused: Counter[Direction] = field(default_factory=Counter)

    def add(self, logged: Logged) -> None:
        event = logged.event
        port = event.opening.sport if len(self.events) < MAX_PORTS else 0
        self.events.setdefault(port, Counter())[event.direction, event.is_reply] += 1
        self.refused[event.direction] += event.reason is not None or event.verdict is FlowVerdict.AUDIT
        self.last = max(self.last, logged.wall_time)

    def seen(self) -> Seen:
        return Seen(sum(max(counts.values()) for counts in self.events.values()), self.last, dict(self.refused))


class Recording:
    """Recording: sums up logged events."""

    def __init__(self, *, dropped: bool = False) -> None:
        """Start without flows; ``dropped``: with the connections and requests that policy has dropped."""
        self._dropped = dropped
        self._tallies: dict[RecordedFlow, _Tally] = {}
        self._names: dict[tuple[Labels | None, bytes], set[str]] = {}
        self._resolvers: set[tuple[bytes, int, int]] = set()  # address, protocol, port
        self.nodes: set[str] = set()
        self.left_out: Counter[str] = Counter()  # events by the reason

    def add(self, logged: Logged) -> None:
        """Add an event."""
        event = logged.event
        if isinstance(event.l7, DnsMessage):
            self._resolvers.add((event.opening.dst, event.opening.proto, event.opening.dport))
            if event.l7.is_answer:
                self._learn(logged.names.source, event.l7)
        if not self._counts(event):
            return
        flow = flow_of(logged)
        if flow not in self._tallies and len(self._tallies) >= MAX_FLOWS:
            self.left_out[f"of more than {MAX_FLOWS} different flows"] += 1
            return
        self.nodes.add(logged.node)
        self._tallies.setdefault(flow, _Tally()).add(logged)

    def _counts(self, event: FlowEvent) -> bool:
        if event.end is not None or not event.opening.src:
            return False
        if isinstance(event.l7, DnsMessage) and event.l7.is_answer:
            return False
        if event.verdict is FlowVerdict.FORWARDED:
            return True
        dropped = self._dropped and event.verdict is FlowVerdict.DROPPED and not event.is_reply
        if event.verdict is not FlowVerdict.AUDIT and not dropped:
            return False
        if event.reason is DropReason.POLICY_DENY:
            self.left_out["denied by a deny rule, which no rule that allows can change"] += 1
        return event.reason is None or event.reason in _REFUSALS

    def _learn(self, client: End, answer: DnsMessage) -> None:
        for address in answer.addresses:
            names = self._names.setdefault((client.labels, address), set())
            if len(names) < _MAX_NAMES:
                names.add(answer.name)

    def flows(self) -> dict[RecordedFlow, Seen]:
        """Return the flows; a target outside has the names that DNS answers have given to it.

        A DNS server has none: it has to be reached before any name is known.
        """
        return {self._named(flow): tally.seen() for flow, tally in self._tallies.items()}

    def _named(self, flow: RecordedFlow) -> RecordedFlow:
        source, target = flow.source, flow.target
        names = self._names.get((source.labels, target.address.packed))
        if not names or target.is_endpoint or target.entity:
            return flow
        if (target.address.packed, flow.traffic.proto, flow.traffic.port) in self._resolvers:
            return flow
        return flow._replace(target=target._replace(fqdns=tuple(sorted(names))))


def flow_of(logged: Logged) -> RecordedFlow:
    """Return the flow that an event is of, from the opener of its connection."""
    opening, names = logged.event.opening, logged.names
    port = opening.icmp_type if opening.proto in ICMP_PROTOCOLS else opening.dport
    return RecordedFlow(
        _end(opening.src, names.source),
        _end(opening.dst, names.destination),
        TrafficSpec(opening.proto, port, _request(logged.event.l7)),
    )


def _end(packed: bytes, names: End) -> RecordedEnd:
    return RecordedEnd(ip_address(packed), names.labels, names.namespace, names.name)


def _request(message: L7Message | None) -> L7Request | None:
    if message is None:
        return None
    if isinstance(message, DnsMessage):
        return DnsQuestion(message.name)
    if not isinstance(message, HttpMessage):
        return TlsHello(message.server_name)
    host, path = split_target(message.url)
    return HttpRequest(message.method, path or "/", host, message.headers)
