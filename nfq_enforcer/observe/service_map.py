"""Service map: flows aggregated to a graph of workloads and edges, bounded in size. Pure.

A node of the graph is an endpoint (``namespace/name``), or the labels of a peer that is none (``reserved:world``, a
CIDR, an identity without a known endpoint). An edge is everything that a source opened toward a destination with one
verdict. At its bounds, the map forgets the node or edge that was seen least recently, and counts it.

Readers take changes instead of the whole map: each node and edge has the number of the change that it was last part of.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from nfq_enforcer.text import printable

MAX_NODES = 2_000
MAX_EDGES = 10_000
MAX_PORTS = 24  # of an edge; flows to further ports are counted as one
RATE_WINDOW = 60  # s, the time that the rate of an edge is the mean of
_BUCKET = 5  # s, the resolution of that window
_KEPT_REMOVALS = 4_096  # a reader that is further behind gets the whole map
_MAX_TEXT = 300  # characters of a name from the network
_MAX_LABELS = 32
_PORTED = ("TCP", "UDP", "SCTP")
_HIDDEN = ("io.kubernetes.", "io.cilium.", "k8s:io.kubernetes.", "k8s:io.cilium.")  # labels that every endpoint has

Flow = Mapping[str, Any]


class MapNode(NamedTuple):
    """MapNode: one workload, or one kind of peer that is no endpoint."""

    key: str
    kind: str  # endpoint, reserved, cidr, or identity (labels without a known endpoint)
    namespace: str
    name: str
    group: str  # its own labels, which workloads of one kind share


class EdgeKey(NamedTuple):
    """EdgeKey: both ends, by the keys of their nodes, and the verdict."""

    source: str
    destination: str
    verdict: str


class Seen(NamedTuple):
    """Seen: the part of a flow that the map needs."""

    edge: EdgeKey
    source: MapNode
    destination: MapNode
    port: str  # as in 80/TCP, ICMPv4 8
    reason: str  # of a drop; empty for other verdicts
    time: float  # s since the epoch


def read_flow(flow: Flow) -> Seen | None:
    """Return the ends, verdict and port of a flow in Hubble's form; None for an event that opens nothing new.

    A reply belongs to the edge of its opener. The answer of layer 7 is the end of a request that is counted already.
    """
    if "source" not in flow or flow.get("l7", {}).get("type") == "RESPONSE" or "flow_end" in flow:
        return None
    source, destination = map_node(flow["source"]), map_node(flow["destination"])
    if flow.get("is_reply"):
        source, destination = destination, source
    edge = EdgeKey(source.key, destination.key, _clean(flow["verdict"]))
    reason = _clean(flow.get("drop_reason_desc", ""))
    return Seen(edge, source, destination, _port(flow), reason, flow_time(flow))


def flow_time(flow: Flow) -> float:
    """Return the time of a flow in seconds since the epoch."""
    return datetime.fromisoformat(flow["time"]).timestamp()


def map_node(end: Mapping[str, Any]) -> MapNode:
    """Return the node of one end of a flow."""
    return _node(tuple((end.get("labels") or ())[:_MAX_LABELS]), end.get("namespace", ""), end.get("pod_name"))


@lru_cache(maxsize=2 * MAX_NODES)
def _node(texts: tuple[str, ...], namespace: str, name: str | None) -> MapNode:
    labels = list(map(_clean, texts))
    if name is not None:
        namespace, name = _clean(namespace), _clean(name)
        return MapNode(f"{namespace}/{name}", "endpoint", namespace, name, " ".join(short_labels(labels)))
    reserved = [label for label in labels if label.startswith("reserved:")]
    others = [label for label in labels if not label.startswith("reserved:")]
    if others:
        kind = "cidr" if any(map(_is_outside, others)) else "identity"
        name = " ".join(short_labels(others)) or " ".join(others)
        return MapNode(f"{kind}:{name}", kind, "", name, kind)
    name = " ".join(label.removeprefix("reserved:") for label in reserved) or "unknown"
    return MapNode(f"reserved:{name}", "reserved", "", name, "reserved")


def short_labels(labels: Iterable[str]) -> list[str]:
    """Return labels as people write them: without source ``k8s:``, and without those that every endpoint has."""
    return [label.removeprefix("k8s:") for label in labels if not label.startswith(_HIDDEN)]


def _is_outside(label: str) -> bool:
    return label.startswith(("cidr:", "fqdn:"))


def _clean(text: object) -> str:
    shown = printable(str(text)[: _MAX_TEXT + 1])
    return shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}…"


def _port(flow: Flow) -> str:
    side = "source_port" if flow.get("is_reply") else "destination_port"
    for protocol, fields in flow.get("l4", {}).items():
        if protocol in _PORTED:
            return f"{int(fields.get(side, 0))}/{protocol}"
        if isinstance(fields, Mapping):
            return f"{_clean(protocol)} {int(fields.get('type', 0))}"
        return f"protocol {int(fields)}"
    return "?"


@dataclass(slots=True)
class MapEdge:
    """MapEdge: the counts of one edge."""

    key: EdgeKey
    first: float  # s since the epoch
    last: float
    flows: int = 0
    ports: Counter[str] = field(default_factory=Counter)  # flows by port, of at most MAX_PORTS
    other_ports: int = 0  # flows to further ports
    reasons: Counter[str] = field(default_factory=Counter)
    recent: deque[list[int]] = field(default_factory=deque)  # [bucket, flows] of the rate's window, oldest first
    rate: float = 0.0  # flows per second, as of the last tick
    change: int = 0

    def count(self, seen: Seen) -> None:
        """Count a flow."""
        self.flows += 1
        self.first, self.last = min(self.first, seen.time), max(self.last, seen.time)
        if seen.port in self.ports or len(self.ports) < MAX_PORTS:
            self.ports[seen.port] += 1
        else:
            self.other_ports += 1
        if seen.reason:
            self.reasons[seen.reason] += 1
        bucket = int(seen.time) // _BUCKET
        if self.recent and self.recent[-1][0] >= bucket:  # a late flow counts as of now
            self.recent[-1][1] += 1
        else:
            self.recent.append([bucket, 1])

    def update_rate(self, now: float) -> bool:
        """Compute the rate anew; return whether it has changed."""
        oldest = (int(now) - RATE_WINDOW) // _BUCKET
        while self.recent and self.recent[0][0] <= oldest:
            self.recent.popleft()
        before, self.rate = self.rate, sum(flows for _, flows in self.recent) / RATE_WINDOW
        return self.rate != before

    def to_json(self) -> dict[str, Any]:
        """Return the edge as a JSON object; ports and reasons with the most flows first."""
        return {
            **self.key._asdict(),
            "flows": self.flows,
            "rate": round(self.rate, 3),
            "ports": [name for name, _ in self.ports.most_common()],
            "other_ports": self.other_ports,
            "reasons": [name for name, _ in self.reasons.most_common()],
            "first": round(self.first, 3),
            "last": round(self.last, 3),
        }


class MapDelta(NamedTuple):
    """MapDelta: the difference between two states of a map."""

    whole: bool  # it is the whole map, in place of everything that the reader has
    change: int  # the state after it
    nodes: Sequence[MapNode]
    edges: Sequence[MapEdge]
    gone_nodes: Sequence[str] = ()
    gone_edges: Sequence[EdgeKey] = ()

    @property
    def empty(self) -> bool:
        """Tell whether nothing is different."""
        return not (self.whole or self.nodes or self.edges or self.gone_nodes or self.gone_edges)

    def to_json(self) -> dict[str, Any]:
        """Return the difference as a JSON object."""
        return {
            "whole": self.whole,
            "nodes": [node._asdict() for node in self.nodes],
            "edges": [edge.to_json() for edge in self.edges],
            "gone_nodes": list(self.gone_nodes),
            "gone_edges": [list(key) for key in self.gone_edges],
        }


class ServiceMap:
    """Service map: nodes and edges of the flows that were added."""

    def __init__(self, max_nodes: int = MAX_NODES, max_edges: int = MAX_EDGES) -> None:
        """Begin without nodes."""
        self._max_nodes, self._max_edges = max(2, max_nodes), max(1, max_edges)  # an edge needs both of its nodes
        self._nodes: OrderedDict[str, MapNode] = OrderedDict()  # least recently seen first
        self._node_changes: dict[str, int] = {}
        self._edges: OrderedDict[EdgeKey, MapEdge] = OrderedDict()
        self._edges_of: dict[str, set[EdgeKey]] = {}
        self._gone: deque[tuple[int, str | EdgeKey]] = deque(maxlen=_KEPT_REMOVALS)
        self.change = 0  # number of changes so far
        self.forgotten_nodes = 0
        self.forgotten_edges = 0  # by either bound

    def add(self, seen: Seen) -> None:
        """Count a flow."""
        self.change += 1
        for node in (seen.source, seen.destination):
            self._touch(node)
        edge = self._edges.get(seen.edge)
        if edge is None:
            edge = self._edges[seen.edge] = MapEdge(seen.edge, seen.time, seen.time)
            for end in (seen.edge.source, seen.edge.destination):
                self._edges_of[end].add(seen.edge)
        else:
            self._edges.move_to_end(seen.edge)
        edge.count(seen)
        edge.change = self.change
        self._keep_bounds()

    def tick(self, now: float) -> None:
        """Compute the rates as of ``now``, in seconds since the epoch."""
        for edge in self._edges.values():
            if (edge.recent or edge.rate) and edge.update_rate(now):
                self.change += 1
                edge.change = self.change

    def since(self, change: int) -> MapDelta:
        """Return the difference from the state after a change; that from 0 is the whole map."""
        if change <= 0 or change > self.change or self._is_behind(change):
            return MapDelta(True, self.change, tuple(self._nodes.values()), tuple(self._edges.values()))
        gone = list(self._gone_since(change))
        return MapDelta(
            False,
            self.change,
            [node for node in self._nodes.values() if self._node_changes[node.key] > change],
            [edge for edge in self._edges.values() if edge.change > change],
            [key for key in gone if isinstance(key, str) and key not in self._nodes],
            [key for key in gone if isinstance(key, EdgeKey) and key not in self._edges],
        )

    def __len__(self) -> int:
        """Return the number of edges."""
        return len(self._edges)

    def _is_behind(self, change: int) -> bool:
        return len(self._gone) == _KEPT_REMOVALS and self._gone[0][0] > change

    def _gone_since(self, change: int) -> Iterator[str | EdgeKey]:
        for at, key in reversed(self._gone):
            if at <= change:
                return
            yield key

    def _touch(self, node: MapNode) -> None:
        if self._nodes.get(node.key) != node:
            self._nodes[node.key] = node
            self._node_changes[node.key] = self.change
            self._edges_of.setdefault(node.key, set())
        self._nodes.move_to_end(node.key)

    def _keep_bounds(self) -> None:
        while len(self._edges) > self._max_edges:
            self._forget_edge(next(iter(self._edges)))
        while len(self._nodes) > self._max_nodes:
            for edge in tuple(self._edges_of[next(iter(self._nodes))]):  # the node goes with the last of them
                self._forget_edge(edge)

    def _forget_edge(self, key: EdgeKey) -> None:
        del self._edges[key]
        self.forgotten_edges += 1
        self._gone.append((self.change, key))
        for end in {key.source, key.destination}:
            self._edges_of[end].discard(key)
            if not self._edges_of[end]:
                self._drop_node(end)

    def _drop_node(self, key: str) -> None:
        del self._nodes[key], self._node_changes[key], self._edges_of[key]
        self.forgotten_nodes += 1
        self._gone.append((self.change, key))


def map_of(flows: Iterable[Seen], now: float) -> ServiceMap:
    """Return the map of some flows, with the rates as of ``now``."""
    made = ServiceMap()
    for seen in flows:
        made.add(seen)
    made.tick(now)
    return made
