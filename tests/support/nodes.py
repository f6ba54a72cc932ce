"""A node for tests: an enforcer with two local endpoints, the endpoints of another node, and the world.

    web (300) ── veth-web ─┐                         ┌─ client (500), other (501)
                         node ── eth0 ─ (cluster) ─ second node
    db (400) ─── veth-db ──┘ └── wan0 ── world

Tests give the interfaces of a packet as the kernel's three hooks do: the host receives it (INPUT), sends it (OUTPUT) or
forwards it (FORWARD). Policy is given as compiled maps: ``load`` takes the enforced sides, and the peers that each side
allows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from nfq_enforcer.core.context import Interface
from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.events import Decision, FlowEvent
from nfq_enforcer.core.identity import LOCAL, REMOTE_NODE, Identity
from nfq_enforcer.core.process_sockets import End
from nfq_enforcer.core.tables.conntrack import Conntrack, FlowState, KernelFlow
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch
from nfq_enforcer.core.tables.names import NameTable
from nfq_enforcer.core.tables.policymap import PORT_BITS, L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.slots import SlotTable
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, Verdict
from nfq_enforcer.core.wire.packet import TCP, UDP, parse
from tests.support.packets import packed, stamped


class Addresses(NamedTuple):
    """Addresses: the addresses of one IP family in the test's network."""

    version: int
    host: str
    web: str
    db: str
    client: str  # an endpoint of the second node
    other: str  # another endpoint of the second node
    second_node: str
    cluster: str  # in the cluster's networks, but no known peer
    world: str


V4 = Addresses(
    4, "172.16.0.1", "10.1.0.10", "10.1.0.20", "10.2.0.10", "10.2.0.11", "172.16.0.2", "10.9.0.9", "203.0.113.9"
)
V6 = Addresses(6, "fd00::1", "fd01::10", "fd01::20", "fd02::10", "fd02::11", "fd00::2", "fd09::9", "2001:db8::9")
FAMILIES = (V4, V6)

WEB, DB, CLIENT, OTHER = map(Identity, (300, 400, 500, 501))
ETH0, WAN0, VETH_WEB, VETH_DB = "eth0", "wan0", "veth-web", "veth-db"
MTU = 1500

HTTP = [(CLIENT, TCP, 80)]
NOBODY: list[tuple[int, int, int]] = []  # an enforced side that allows no peer
EVERYTHING_FROM_CLIENT = [(CLIENT, 0, 0)]
CLOSED = {"web": NOBODY, "db": NOBODY}

Allowed = Iterable[tuple[int, int, int]]  # identity, protocol, port
Side = Mapping[str, Allowed]  # local endpoint: peers allowed on this side; a side that is not given is not enforced


def rule(endpoint: str, direction: Direction, number: int) -> RuleRef:
    """Return the rule that allows the peer of this number; rule 99 is the one that enforces the side."""
    return RuleRef("CiliumNetworkPolicy", "default", endpoint, direction, number)


def _policy(endpoint: str, direction: Direction, side: Side, denied: Side, closed_by: str) -> PolicyMap:
    allowed = side.get(endpoint)
    entries = _entries(allowed or (), lambda number: PolicyEntry((rule(endpoint, direction, number),)))
    entries |= _entries(
        denied.get(endpoint, ()),
        lambda number: PolicyEntry((), (rule(endpoint, direction, number)._replace(deny=True),)),
    )
    if allowed is None:
        return PolicyMap(entries, enforced=False)
    return PolicyMap(entries, enforced=True, enforced_by=(rule(endpoint, direction, 99)._replace(kind=closed_by),))


def _entries(keys: Allowed, entry: Callable[[int], PolicyEntry]) -> dict[PolicyKey, PolicyEntry]:
    return {
        PolicyKey(Identity(identity), proto, port, PORT_BITS if port else 0): entry(number)
        for number, (identity, proto, port) in enumerate(keys)
    }


PEERS = {
    packed(address): Peer(identity, remote=True, is_node=identity == REMOTE_NODE)
    for at in FAMILIES
    for address, identity in ((at.client, CLIENT), (at.other, OTHER), (at.second_node, REMOTE_NODE))
}
CLUSTER_NETWORKS = [ip_network("10.9.0.0/16"), ip_network("fd09::/16")]


class Node:
    """Node: an enforcer on the node of the module's diagram; no side is enforced before ``load``."""

    def __init__(
        self, maximum_flows: int = 1000, *, can_requeue: bool = False, has_next: bool = False, fast: bool = True
    ) -> None:
        self.now = 1000.0
        self.flows = Conntrack(maximum_flows, self.now)
        self.names = NameTable()
        self.slots = SlotTable()
        self.processes: dict[int, tuple[str, Identity]] = {}  # name and identity by cgroup, from the next ``load`` on
        self.sockets: dict[tuple[int, str, int], int] = {}  # cgroup by protocol, address and port
        self.lookups = 0
        self._enforcer = Enforcer(
            *(self.snapshot(0), self.flows),
            can_requeue=can_requeue,
            has_next=has_next,
            names=self.names,
            slots=self.slots,
            find_socket=self._find_socket,
        )
        self._decide = self._enforcer.decide if fast else self._enforcer.slow_path

    def snapshot(
        self,
        revision: int,
        ingress: Side | None = None,
        egress: Side | None = None,
        deny_ingress: Side | None = None,
        deny_egress: Side | None = None,
        closed_by: str = "CiliumNetworkPolicy",
        **changed: Any,
    ) -> Snapshot:
        endpoints = {}
        for name, identity, home in (("web", WEB, VETH_WEB), ("db", DB, VETH_DB)):
            endpoint = LocalEndpoint(
                f"default/{name}",
                identity,
                home,
                _policy(name, Direction.INGRESS, ingress or {}, deny_ingress or {}, closed_by),
                _policy(name, Direction.EGRESS, egress or {}, deny_egress or {}, closed_by),
            )
            endpoints.update({packed(getattr(at, name)): endpoint for at in FAMILIES})
        fields: dict[str, Any] = {
            "endpoints": endpoints,
            "ipcache": Ipcache(PEERS, CLUSTER_NETWORKS),
            "cluster_interfaces": frozenset({ETH0}),
            "identities": frozenset({WEB, DB, CLIENT, OTHER}),
            "node_addresses": {at.version: packed(at.host) for at in FAMILIES},
        }
        fields["processes"] = {
            cgroup: LocalEndpoint(
                *(f"default/{name}", identity, None),
                _policy(name, Direction.INGRESS, ingress or {}, deny_ingress or {}, closed_by),
                _policy(name, Direction.EGRESS, egress or {}, deny_egress or {}, closed_by),
                is_host=True,
                is_process=True,
            )
            for cgroup, (name, identity) in self.processes.items()
        }
        return Snapshot(revision, **fields | changed)

    def _find_socket(self, proto: int, local: End, remote: End, link: str | None) -> int | None:
        self.lookups += 1
        return self.sockets.get((proto, str(ip_address(local[0])), local[1]))

    @property
    def enforced(self) -> Snapshot:
        """Return the snapshot in force."""
        return self._enforcer.snapshot

    def ended(self) -> list[FlowEvent]:
        """Return the events of the flows whose ends are due now."""
        return list(self._enforcer.ended(self.now))

    def load(self, ingress: Side | None = None, egress: Side | None = None, **changed: Any) -> None:
        """Enforce a new policy revision; ``changed`` are other fields of the snapshot."""
        self._enforcer.snapshot = self.snapshot(self._enforcer.snapshot.revision + 1, ingress, egress, **changed)

    def load_dns(self, *patterns: str, peer: int = CLIENT, mine: str = "web", **changed: Any) -> None:
        """Let an endpoint query these names, by one rule each, on port 53 of a peer; its egress is closed otherwise."""
        rules = tuple(
            L7Rule(rule(mine, Direction.EGRESS, number), DnsMatch(pattern)) for number, pattern in enumerate(patterns)
        )
        entries = {PolicyKey(Identity(peer), proto, 53, PORT_BITS): PolicyEntry(l7=rules) for proto in (TCP, UDP)}
        self._load_egress(mine, entries, **changed)

    def load_http(
        self, mine: str = "web", peer: int = CLIENT, direction: Direction = Direction.INGRESS, **changed: Any
    ) -> None:
        """Allow GET requests between an endpoint and a peer, at port 80 of the receiver; nothing else on this side."""
        get = L7Rule(rule(mine, direction, 0), HttpMatch(method="GET"))
        self._load_side(
            *(mine, direction, {PolicyKey(Identity(peer), TCP, 80, PORT_BITS): PolicyEntry(l7=(get,))}), **changed
        )

    def _load_egress(self, mine: str, entries: Mapping[PolicyKey, PolicyEntry], **changed: Any) -> None:
        self._load_side(mine, Direction.EGRESS, entries, **changed)

    def _load_side(
        self, mine: str, direction: Direction, entries: Mapping[PolicyKey, PolicyEntry], **changed: Any
    ) -> None:
        closed = PolicyMap(entries, enforced=True, enforced_by=(rule(mine, direction, 99),))
        side: dict[str, Any] = {direction.value: closed}
        snapshot = self.snapshot(self._enforcer.snapshot.revision + 1, **changed)
        endpoints = {
            address: replace(endpoint, **side) if endpoint.name == f"default/{mine}" else endpoint
            for address, endpoint in snapshot.endpoints.items()
        }
        processes = {
            cgroup: replace(endpoint, **side) if endpoint.name == f"default/{mine}" else endpoint
            for cgroup, endpoint in snapshot.processes.items()
        }
        self._enforcer.snapshot = replace(snapshot, endpoints=endpoints, processes=processes)

    def load_names(self, *patterns: str, **changed: Any) -> None:
        """Let web open port 80 of the addresses of these names, and query every name on port 53 of the client."""
        numbers = {pattern: Identity(LOCAL | number) for number, pattern in enumerate(patterns, 1)}
        web = [(number, TCP, 80) for number in numbers.values()]
        entries = _entries(web, lambda number: PolicyEntry((rule("web", Direction.EGRESS, number),)))
        every = L7Rule(rule("web", Direction.EGRESS, 53), DnsMatch("*"))
        entries[PolicyKey(CLIENT, UDP, 53, PORT_BITS)] = PolicyEntry(l7=(every,))
        self._load_egress("web", entries, name_identities=numbers, **changed)

    def import_flow(self, opener: bytes, state: FlowState = FlowState.ESTABLISHED) -> None:
        """Import a flow, given by a packet of its opener, from the kernel's conntrack."""
        assert self.flows.import_flow(KernelFlow(parse(opener).key, state, expires_in=60), self.now)

    def receive(self, payload: bytes, come_by: str, skb: int = 0) -> Decision:
        """Decide a packet in INPUT."""
        return self._decide(payload, Interface(come_by, MTU), None, self.now, skb)

    def send(self, payload: bytes, leave_by: str, mtu: int = MTU, skb: int = 0) -> Decision:
        """Decide a packet in OUTPUT."""
        return self._decide(payload, None, Interface(leave_by, mtu), self.now, skb)

    def forward(self, payload: bytes, come_by: str, leave_by: str, mtu: int = MTU, skb: int = 0) -> Decision:
        """Decide a packet in FORWARD."""
        return self._decide(payload, Interface(come_by, MTU), Interface(leave_by, mtu), self.now, skb)


def from_client(node: Node, payload: bytes, identity: int = CLIENT) -> Decision:
    """Decide a packet that another node forwards to web with this identity."""
    return node.forward(stamped(payload, identity), ETH0, VETH_WEB)


PASSING = frozenset((Verdict.ACCEPT, Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW))


def accepted(decision: Decision) -> bool:
    return decision.verdict in PASSING


def refused(decision: Decision) -> DropReason | None:
    """Return the reason of a drop, None for an accepted packet."""
    if decision.verdict in PASSING:
        return None
    return event(decision).reason


def event(decision: Decision) -> FlowEvent:
    assert decision.event is not None
    return decision.event
