"""Changes of policy documents that could let a refused connection pass, one small edit each.

An edit adds a port, a peer, a request or a rule to a document that closes the endpoint, writes a new document, or
removes the rule that denies the connection. ``policy.why`` tries each in a simulation; none is certain to suffice.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

from nfq_enforcer.core.labels import DEFAULT_SOURCE
from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello, split_target
from nfq_enforcer.core.tables.policymap import WHOLE, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import writing
from nfq_enforcer.policy.explain import matches_peer, matching_filters
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.rules import Rule
from nfq_enforcer.policy.simulation import ConnectionSide, SideResult, Simulation
from nfq_enforcer.policy.writing import Data

_SECTIONS = frozenset(("ingress", "ingressDeny", "egress", "egressDeny", "policyTypes"))
_KUBERNETES = "NetworkPolicy"
_SIDES = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_MAX_NAME = 63

Key = tuple[str, str, str]


class Change(NamedTuple):
    """Change: one document, before and after."""

    key: Key  # kind, namespace and name
    before: Mapping[str, Any] | None  # None: a new document
    after: Mapping[str, Any] | None  # None: the document is deleted


_Edit = Callable[[Data], bool]  # changes the data; returns False if the document has no room for it


def candidates(
    simulation: Simulation, side: ConnectionSide, result: SideResult, traffic: TrafficSpec
) -> Iterator[Change]:
    """Yield changes of single documents that may let the connection pass at a side that refuses it."""
    documents = {policy.key: policy.data for policy in simulation.documents.policies}
    edits = _removals(result, side, traffic) if _denies(result) else _additions(simulation, side, traffic)
    for key, edit in edits:
        after = deepcopy(dict(documents[key]))
        if edit(after):
            yield Change(key, documents[key], after if _has_rules(after) else None)
    if not _denies(result) and not side.subject.node_labels:
        yield _new_document(side, traffic, set(documents))


def _denies(result: SideResult) -> bool:
    return any(ref.deny or ref.order for ref in result.rules)


def _has_rules(data: Data) -> bool:
    """Return whether a document has a section with rules, or one that isolates its subjects."""
    return any(name in _SECTIONS for spec in _specs(data) for name in spec)


def _removals(result: SideResult, side: ConnectionSide, traffic: TrafficSpec) -> Iterator[tuple[Key, _Edit]]:
    for ref in result.rules:
        key = ref.kind, ref.namespace, ref.name
        if ref.order:
            yield key, partial(_accept_before, ref=ref, side=side, traffic=traffic)
        yield key, partial(_remove, ref=ref)


def _additions(simulation: Simulation, side: ConnectionSide, traffic: TrafficSpec) -> Iterator[tuple[Key, _Edit]]:
    selecting: dict[tuple[Key, int], RuleRef] = {}
    for rule in simulation.rules(side.direction):
        ref = rule.ref
        if ref.deny or ref.order or rule.learns or not rule.subject.matches(side.subject.subject_labels):
            continue
        key = (ref.kind, ref.namespace, ref.name)
        selecting.setdefault((key, ref.spec), ref)
        yield from ((key, edit) for edit in _extensions(rule, side, traffic))
    for (key, _), ref in selecting.items():
        yield key, partial(_add_rule, ref=ref, side=side, traffic=traffic)


def _extensions(rule: Rule, side: ConnectionSide, traffic: TrafficSpec) -> Iterator[_Edit]:
    """Yield edits of an entry that misses the connection by its port, its peer, or the request."""
    if rule.ref.number == WHOLE or not rule.filters:
        return
    peer, filters = matches_peer(rule, side), matching_filters(rule, side, traffic)
    if peer and filters:
        yield from (partial(_add_request, ref=rule.ref, place=place, request=traffic.request) for place in filters)
    elif peer:
        yield partial(_add_port, ref=rule.ref, traffic=traffic)
    elif filters:
        yield partial(_add_peer, ref=rule.ref, side=side)


def _section(data: Data, ref: RuleRef) -> tuple[Data, str]:
    """Return the part of a document that has the section of a rule, and the name of the section."""
    section = f"{ref.direction}Deny" if ref.deny else str(ref.direction)
    return _specs(data)[ref.spec], section


def _specs(data: Data) -> list[Data]:
    return [*([data["spec"]] if "spec" in data else []), *data.get("specs", ())]


def _entry(data: Data, ref: RuleRef) -> Data:
    spec, section = _section(data, ref)
    entry: Data = spec[section][ref.number]
    return entry


def _remove(data: Data, ref: RuleRef) -> bool:
    spec, section = _section(data, ref)
    del spec[section][ref.number]
    if not spec[section]:
        del spec[section]
    return True


def _accept_before(data: Data, ref: RuleRef, side: ConnectionSide, traffic: TrafficSpec) -> bool:
    """Insert a rule before a denying one of a ClusterNetworkPolicy, for this peer and port alone."""
    spec, section = _section(data, ref)
    namespace, peer = writing.namespace_of(side.peer.labels), _kubernetes_peer(side, "")
    if not namespace or peer is None or traffic.icmp:
        return False
    pods = {"namespaceSelector": peer["namespaceSelector"], "podSelector": peer["podSelector"]}
    rule = {
        "name": f"accept {_plain(traffic)}",
        "action": "Accept",
        _SIDES[side.direction]: [{"pods": pods}],
        "protocols": [{traffic.protocol.lower(): {"destinationPort": {"number": traffic.port}}}],
    }
    spec[section] = [*spec[section][: ref.number], rule, *spec[section][ref.number :]]
    return True


def _add_port(data: Data, ref: RuleRef, traffic: TrafficSpec) -> bool:
    entry = _entry(data, ref)
    if ref.kind == _KUBERNETES:
        return not traffic.icmp and _append(entry, "ports", _kubernetes_port(traffic))
    if traffic.icmp:
        return "icmps" in entry and _append(entry, "icmps", writing.ports([traffic])["icmps"][0])
    if "icmps" in entry:
        return False
    plain = [item for item in entry["toPorts"] if set(item) == {"ports"}]
    if plain:
        return _append(plain[0], "ports", dict(writing.port(traffic)))
    return _append(entry, "toPorts", {"ports": [dict(writing.port(traffic))]})


def _add_peer(data: Data, ref: RuleRef, side: ConnectionSide) -> bool:
    entry = _entry(data, ref)
    if ref.kind == _KUBERNETES:
        peer = _kubernetes_peer(side, ref.namespace)
        return peer is not None and _append(entry, _SIDES[side.direction], peer)
    ((field, (peer,)),) = _peer_fields(side, ref.namespace).items()
    return field in entry and _append(entry, field, peer)


def _add_request(data: Data, ref: RuleRef, place: int, request: L7Request | None) -> bool:
    item = _entry(data, ref)["toPorts"][place]  # only entries with toPorts restrict requests
    if isinstance(request, TlsHello):
        return "serverNames" in item and bool(request.name) and _append(item, "serverNames", request.name)
    rules = item.get("rules", {})
    if isinstance(request, DnsQuestion):
        return "dns" in rules and _append(rules, "dns", {"matchName": request.name})
    return isinstance(request, HttpRequest) and "http" in rules and _append(rules, "http", _http_rule(request))


def _http_rule(request: HttpRequest) -> Data:
    path, query, _ = split_target(request.path)[1].partition("?")  # a rule's path has to match the query, too
    return writing.http_rule(request.method, path or "/", query=bool(query))


def _add_rule(data: Data, ref: RuleRef, side: ConnectionSide, traffic: TrafficSpec) -> bool:
    spec, section = _section(data, ref)
    if ref.kind == _KUBERNETES:
        peer = _kubernetes_peer(side, ref.namespace)
        if peer is None or traffic.icmp:
            return False
        return _append(spec, section, {_SIDES[side.direction]: [peer], "ports": [_kubernetes_port(traffic)]})
    return _append(spec, section, {**_peer_fields(side, ref.namespace), **writing.ports([_plain(traffic)])})


def _new_document(side: ConnectionSide, traffic: TrafficSpec, taken: set[Key]) -> Change:
    namespace = writing.namespace_of(side.subject.labels)
    subject, peer = (name.rpartition("/")[2] for name in (side.subject.name, side.peer.name))
    words = (peer, "to", subject) if side.direction is Direction.INGRESS else (subject, "to", peer)
    name = writing.document_name(*words)[:_MAX_NAME].rstrip("-.")
    number = 2
    while ("CiliumNetworkPolicy", namespace, name) in taken:
        name = f"{name[: _MAX_NAME - 4]}-{number}"
        number += 1
    rule = {**_peer_fields(side, namespace), **writing.ports([_plain(traffic)])}
    return Change(
        ("CiliumNetworkPolicy", namespace, name),
        None,
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"endpointSelector": writing.selector(side.subject.labels, namespace), str(side.direction): [rule]},
        },
    )


def _plain(traffic: TrafficSpec) -> TrafficSpec:
    return traffic._replace(request=None)


def _peer_fields(side: ConnectionSide, namespace: str) -> Data:
    address = next(iter(side.peer.addresses.values()), None)
    return writing.peers(side.peer.labels, address, namespace, _SIDES[side.direction])


def _kubernetes_peer(side: ConnectionSide, namespace: str) -> Data | None:
    """Return the peer of a NetworkPolicy, None for one that it cannot name: an entity, or labels of another source."""
    ((field, (peer,)),) = _peer_fields(side, namespace).items()
    if field.endswith("CIDR"):
        return {"ipBlock": {"cidr": peer}}
    if field.endswith("Entities"):
        return None
    own = writing.namespace_of(side.peer.labels)
    labels = writing.own_labels(side.peer.labels)
    if any(label.source != DEFAULT_SOURCE for label in labels):
        return None
    selected: Data = {"podSelector": writing.selector(labels)}
    if own != namespace:
        selected["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": own}}
    return selected


def _kubernetes_port(traffic: TrafficSpec) -> Data:
    return {"protocol": traffic.protocol, "port": traffic.port}


def _append(part: Data, field: str, value: Any) -> bool:
    part[field] = [*part.get(field, ()), value]
    return True
