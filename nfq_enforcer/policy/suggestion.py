"""Suggestion: the CiliumNetworkPolicy documents that allow recorded flows, and nothing that was not seen.

One document for each set of labels that a person has written, in its namespace. It has a section for each direction in
which its endpoints were seen, so only those directions are closed by it. Peers with the same ports share a rule.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any, NamedTuple

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import L7Request
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.cilium import MAX_PORTS
from nfq_enforcer.policy.ports import FIRST, TrafficSpec
from nfq_enforcer.policy.recorded import RecordedEnd, RecordedFlow, Seen
from nfq_enforcer.policy.request_rules import port_entries, wanted
from nfq_enforcer.policy.writing import Data, peers, ports, selector

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 63  # characters
_SIDES = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
BOTH = (Direction.INGRESS, Direction.EGRESS)


class SuggestionOptions(NamedTuple):
    """Suggestion options: the directions to close, and how exact the rules are."""

    directions: tuple[Direction, ...] = BOTH
    http: bool = False  # allow the methods and paths only that were seen
    world: bool = False  # addresses outside are the entity world


class Evidence(NamedTuple):
    """Evidence: the flows that a rule was made for."""

    connections: int
    requests: int
    refused: int  # by this side, at the time of the flow
    last: float  # s since the epoch
    peers: tuple[str, ...]
    ports: tuple[str, ...]


class SuggestedRule(NamedTuple):
    """SuggestedRule: one entry of ``ingress`` or ``egress``, with the flows that it was made for."""

    direction: Direction
    entry: Data
    evidence: Evidence


class SuggestedPolicy(NamedTuple):
    """SuggestedPolicy: one document, for the endpoints of a namespace with the same labels."""

    name: str
    namespace: str
    labels: Labels
    subjects: tuple[str, ...]  # the endpoints that were seen
    also_selected: tuple[str, ...]  # other endpoints that were seen, which its selector selects as well
    rules: tuple[SuggestedRule, ...]

    @property
    def head(self) -> Data:
        """Return the document without its spec."""
        metadata = {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata}

    @property
    def selector(self) -> Data:
        """Return the selector of its endpoints."""
        return selector(self.labels)

    def section(self, direction: Direction) -> list[SuggestedRule]:
        """Return the rules of a direction."""
        return [rule for rule in self.rules if rule.direction == direction]

    @property
    def document(self) -> Data:
        """Return the document."""
        sections = {str(one): [rule.entry for rule in self.section(one)] for one in BOTH if self.section(one)}
        return {**self.head, "spec": {"endpointSelector": self.selector, **sections}}


class _Subject(NamedTuple):
    """Subject: endpoints of a namespace with the same labels."""

    namespace: str
    labels: Labels


class _Peer:
    """Peer: one value of a peer field, with the requests of each port at which it was seen, and all flows."""

    def __init__(self, field: str, value: Any) -> None:
        self.field, self.value = field, value
        self.requests: dict[TrafficSpec, set[L7Request]] = {}
        self.flows: dict[RecordedFlow, tuple[str, Seen]] = {}  # with the name of the peer

    @property
    def uses(self) -> tuple[str, frozenset[tuple[TrafficSpec, frozenset[L7Request]]]]:
        """Return the part in which peers of one rule have to be equal."""
        return self.field, frozenset((port, frozenset(requests)) for port, requests in self.requests.items())


_Peers = dict[str, _Peer]


def is_writable(flow: RecordedFlow) -> bool:
    """Return whether a rule can name the flow: both identities are known, and the protocol is one of the rules'."""
    return flow.source.labels is not None and flow.target.labels is not None and flow.traffic.proto in FIRST


def suggest(
    flows: Mapping[RecordedFlow, Seen], options: SuggestionOptions | None = None
) -> tuple[SuggestedPolicy, ...]:
    """Return the documents that allow the flows, in the order of their namespaces and labels.

    Flows that are not writable, and those of an endpoint with itself, have no part in them.
    """
    chosen = options or SuggestionOptions()
    sections: dict[_Subject, dict[Direction, _Peers]] = defaultdict(dict)
    members: dict[_Subject, set[str]] = defaultdict(set)
    for flow, seen in flows.items():
        for end in (flow.source, flow.target):
            if end.is_endpoint:
                members[_Subject(end.home, end.written_labels)].add(str(end))
        for direction in _closed_by(flow, chosen):
            subject, peer = (flow.target, flow.source) if direction is Direction.INGRESS else flow[:2]
            found = sections[_Subject(subject.home, subject.written_labels)].setdefault(direction, {})
            _add(found, flow, seen, peer, direction, subject.home, chosen)
    names = _names(sections)
    return tuple(
        SuggestedPolicy(
            names[subject],
            *subject,
            tuple(sorted(members[subject])),
            tuple(_also_selected(subject, members)),
            tuple(rule for one in BOTH for rule in _rules(one, sections[subject].get(one, {}))),
        )
        for subject in names
    )


def _closed_by(flow: RecordedFlow, options: SuggestionOptions) -> Iterator[Direction]:
    if not is_writable(flow) or flow.source.is_same_endpoint(flow.target):
        return
    for direction, subject in ((Direction.INGRESS, flow.target), (Direction.EGRESS, flow.source)):
        if subject.is_endpoint and direction in options.directions:
            yield direction


def _add(
    found: _Peers,
    flow: RecordedFlow,
    seen: Seen,
    peer: RecordedEnd,
    direction: Direction,
    namespace: str,
    options: SuggestionOptions,
) -> None:
    port, request = flow.traffic._replace(request=None), flow.traffic.request
    for field, values in _peer_fields(peer, _SIDES[direction], namespace, world=options.world).items():
        for value in values:
            one = found.setdefault(f"{field} {json.dumps(value, sort_keys=True)}", _Peer(field, value))
            requests = one.requests.setdefault(port, set())
            if request is not None and wanted(request, flow, direction, options.directions, http=options.http):
                requests.add(request)
            one.flows[flow] = str(peer), seen


def _peer_fields(peer: RecordedEnd, side: str, namespace: str, *, world: bool) -> Data:
    if peer.fqdns and side == "to":
        return {"toFQDNs": [{"matchName": name} for name in peer.fqdns]}
    labels = peer.labels or Labels()
    return peers(labels, None if world else ip_network(peer.address), namespace, side)


def _rules(direction: Direction, found: _Peers) -> Iterator[SuggestedRule]:
    groups: dict[object, list[_Peer]] = defaultdict(list)
    for key in sorted(found):
        groups[found[key].uses].append(found[key])
    for group in groups.values():
        named = {group[0].field: [peer.value for peer in group]}
        requests = group[0].requests
        icmp = sorted(port for port in requests if port.icmp)
        for some in _batches(icmp):
            yield SuggestedRule(direction, {**named, **ports(some)}, _evidence(direction, group, set(some)))
        others = {port: requests[port] for port in sorted(requests) if not port.icmp}
        if others:
            entry = {**named, "toPorts": list(port_entries(others))}
            yield SuggestedRule(direction, entry, _evidence(direction, group, set(others)))


def _batches(specs: list[TrafficSpec]) -> Iterator[list[TrafficSpec]]:
    for first in range(0, len(specs), MAX_PORTS):
        yield specs[first : first + MAX_PORTS]


def _evidence(direction: Direction, group: Iterable[_Peer], specs: set[TrafficSpec]) -> Evidence:
    flows = {
        flow: seen
        for peer in group
        for flow, seen in peer.flows.items()
        if flow.traffic._replace(request=None) in specs
    }
    return Evidence(
        sum(seen.times for flow, (_, seen) in flows.items() if flow.traffic.request is None),
        sum(seen.times for flow, (_, seen) in flows.items() if flow.traffic.request is not None),
        sum(seen.refused.get(direction, 0) for _, seen in flows.values()),
        max(seen.last for _, seen in flows.values()),
        tuple(sorted({name for name, _ in flows.values()})),
        tuple(map(str, sorted(specs))),
    )


def _also_selected(subject: _Subject, members: Mapping[_Subject, set[str]]) -> Iterator[str]:
    """Yield the other endpoints that were seen and have all the labels of the subject."""
    own = set(subject.labels)
    for other in sorted(members, key=_order):
        if other != subject and other.namespace == subject.namespace and own <= set(other.labels):
            yield from sorted(members[other])


def _names(subjects: Iterable[_Subject]) -> dict[_Subject, str]:
    """Return a name for each document, from the labels; those that are taken in their namespace get a number."""
    names: dict[_Subject, str] = {}
    taken: set[tuple[str, str]] = set()
    for subject in sorted(subjects, key=_order):
        words = "-".join(f"{label.key}-{label.value}" for label in subject.labels) or "all"
        stem = f"suggested-{_NOT_IN_NAMES.sub('-', words.lower())}"[:_LONGEST_NAME].strip("-")
        name, number = stem, 1
        while (subject.namespace, name) in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add((subject.namespace, name))
        names[subject] = name
    return names


def _order(subject: _Subject) -> tuple[str, str]:
    return subject.namespace, str(subject.labels)
