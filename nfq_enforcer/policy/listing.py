"""Listing of a policy map: its entries as rows of rule, peers, ports and requests, as people read them.

A compiled map has an entry for each peer and block of ports. A row joins the entries of one rule that have the same
ports, so that the map of an endpoint is as long as the list of the rules that apply to it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import L7Match
from nfq_enforcer.core.tables.policymap import PORT_BITS, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.policy.explain import render_match
from nfq_enforcer.policy.ports import FIRST, LAST, PortSpan, merge_spans, render_spans

MAX_ROWS = 200  # rows, peers of a row and requests of a row that the JSON form has
MAX_PEERS = 20
MAX_REQUESTS = 20

LabelsOf = Callable[[Identity], Labels | None]
_Ports = frozenset[tuple[int, int, int]]  # blocks: protocol (0: any), first port, leading bits


class PolicyRow(NamedTuple):
    """PolicyRow: the part of a policy map that one rule contributes for peers with the same ports."""

    action: str  # allow, deny, or the action of a rule of a ClusterNetworkPolicy in lower case; read: DNS answers
    rule: RuleRef
    peers: tuple[Identity, ...]  # in ascending order; (ANY,): every peer
    ports: tuple[str, ...]  # as in 80/TCP
    requests: tuple[str, ...] = ()  # the only ones that the rule allows; empty: all

    def to_json(self, labels_of: LabelsOf) -> dict[str, Any]:
        """Return the row as a JSON object, with the labels of the first peers and the number of all."""
        return {
            "action": self.action,
            "rule": rule_json(self.rule),
            "any_peer": self.peers == (ANY,),
            "peers": [_peer(peer, labels_of) for peer in self.peers[:MAX_PEERS] if peer != ANY],
            "peers_total": len(self.peers),
            "ports": list(self.ports),
            "requests": list(self.requests[:MAX_REQUESTS]),
            "requests_total": len(self.requests),
        }


def rows(policy_map: PolicyMap) -> list[PolicyRow]:
    """Return the rows of a policy map: rules that deny first, then in the order of the rules' documents."""
    blocks: defaultdict[_Cell, defaultdict[Identity, set[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(set))
    for key, entry in policy_map.entries.items():
        for cell in _cells(entry):
            blocks[cell][key.identity].add((key.proto, key.port, key.bits))
    return sorted((row for cell, by_peer in blocks.items() for row in _of_cell(cell, by_peer)), key=_order)


def to_json(policy_map: PolicyMap, labels_of: LabelsOf) -> dict[str, Any]:
    """Return a policy map as a JSON object with at most MAX_ROWS rows, and the number of all."""
    listed = rows(policy_map)
    return {
        "enforced": policy_map.enforced,
        "enforced_by": [rule_json(rule) for rule in policy_map.enforced_by[:MAX_ROWS]],
        "rows": [row.to_json(labels_of) for row in listed[:MAX_ROWS]],
        "rows_total": len(listed),
    }


def rule_json(rule: RuleRef) -> dict[str, str]:
    """Return the reference to a rule as a JSON object, with the field names of a flow's rules."""
    return {"kind": rule.kind, "namespace": rule.namespace, "name": rule.name, "rule": rule.place, "text": str(rule)}


class _Cell(NamedTuple):
    action: str
    rule: RuleRef
    matches: tuple[L7Match, ...] = ()


def _cells(entry: PolicyEntry) -> Iterator[_Cell]:
    """Yield each rule of an entry, with its action and its matches of requests."""
    for rule in entry.denied_by:
        yield _Cell("deny", rule)
    for rule in entry.allowed_by:
        yield _Cell("allow", rule)
    for rule in entry.ordered:
        yield _Cell(rule.order.action.lower() if rule.order else "pass", rule)
    for rule in entry.learned_by:
        yield _Cell("read", rule)
    matches: defaultdict[RuleRef, list[L7Match]] = defaultdict(list)
    for l7_rule in entry.l7:
        matches[l7_rule.ref].append(l7_rule.match)
    for rule, of_rule in matches.items():
        yield _Cell("allow", rule, tuple(of_rule))


def _of_cell(cell: _Cell, by_peer: dict[Identity, set[tuple[int, int, int]]]) -> Iterator[PolicyRow]:
    peers: defaultdict[_Ports, list[Identity]] = defaultdict(list)
    for peer, blocks in by_peer.items():
        peers[frozenset(blocks)].append(peer)
    for ports, of_ports in peers.items():
        requests = tuple(map(render_match, cell.matches))
        yield PolicyRow(cell.action, cell.rule, tuple(sorted(of_ports)), tuple(_ports(ports)), requests)


def _ports(blocks: Iterable[tuple[int, int, int]]) -> list[str]:
    spans = sorted(_span(PolicyKey(ANY, *block)) for block in blocks if block[0])
    return ["everything"] if any(not proto for proto, _, _ in blocks) else render_spans(merge_spans(spans))


def _span(key: PolicyKey) -> PortSpan:
    first, last = key.port, min(key.last_port, LAST[key.proto])
    return PortSpan(key.proto, FIRST[key.proto] if key.bits < PORT_BITS and not first else first, last)


def _order(row: PolicyRow) -> tuple[bool, bool, tuple[int, str, int], str, tuple[str, ...]]:
    ordered = row.rule.order is None
    return ordered, row.action != "deny", row.rule.precedence, str(row.rule), row.ports


def _peer(identity: Identity, labels_of: LabelsOf) -> dict[str, Any]:
    return {"identity": identity, "labels": list(map(str, labels_of(identity) or ()))}
