"""Topology of the lab: machines, cables, addresses and routes. Pure computation; ``network.py`` builds it.

    front1 ─┐                    ┌─ front2        db3 ─┐
            n1 ──── segment ──── n2                    n3 (an endpoint itself)
    back1 ──┘      │ │ │         └─ back2     front3 ──┘
                   │ │ └─────────── rtr ── link ───────┘
                world store

Every machine is a network namespace ``nfqe-<run id>-<machine>``; the segment is a namespace too, with its bridge.
Every machine has an IPv4 and an IPv6 address and reaches every other machine in both families. ``world`` is outside of
the cluster, but has routes to the endpoints, so that it can attempt connections. ``store`` is connected in the same
way, and runs the nodes' store: no policy selects it. Endpoints are connected to their node without a bridge: routed,
behind a veth whose host side is named in the endpoint's document.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from typing import Any

import yaml

from nfq_enforcer.errors import BadInput

IPAddress = IPv4Address | IPv6Address
InterfaceAddress = IPv4Interface | IPv6Interface
Subnet = IPv4Network | IPv6Network

PREFIX = "nfqe-"
SEGMENT = "seg"
BRIDGE = "br0"
ROUTER = "rtr"
WORLD = "world"
STORE = "store"
UPLINK = "eth0"  # of a machine: its only interface; of a node or the router: the interface toward the segment or link

_RUN_ID = re.compile(r"[a-z0-9]{1,6}")
_MACHINE = re.compile(r"[a-z0-9]{1,10}")  # with "veth-" it names an interface: at most 15 characters (IFNAMSIZ - 1)
_POD_SUBNETS = ("10.31.{}.0/24", "fd00:31:{}::/64")
_SEGMENT_SUBNETS = ("172.31.0.0/24", "fd00:31::/64")
_FAR_SUBNETS = ("172.31.1.0/24", "fd00:31:0:1::/64")  # the link behind the router
_FIRST_ENDPOINT, _WORLD_NUMBER, _STORE_NUMBER, _ROUTER_NUMBER = 10, 100, 200, 254

_ENDPOINTS = {"n1": ("front1", "back1"), "n2": ("front2", "back2"), "n3": ("db3", "front3")}
_ROLES = {"front": "frontend", "back": "backend", "db": "db", "n": "monitor"}
_BEHIND_ROUTER = "n3"
NODES = tuple(_ENDPOINTS)
ENDPOINTS = (*(name for names in _ENDPOINTS.values() for name in names), _BEHIND_ROUTER)
_ON_SEGMENT = (ROUTER, WORLD, STORE, *(node for node in NODES if node != _BEHIND_ROUTER))


@dataclass(frozen=True)
class LabInterface:
    """LabInterface: one end of a cable, or the bridge."""

    name: str
    addresses: tuple[InterfaceAddress, ...] = ()
    mtu: int = 1500


@dataclass(frozen=True)
class Route:
    """Route: to a subnet, through a gateway or directly through an interface."""

    to: Subnet
    via: IPAddress | None = None
    device: str | None = None
    source: IPAddress | None = None  # source address of the machine's own packets
    mtu: int | None = None  # if it is lower than the interface's


@dataclass(frozen=True)
class Machine:
    """Machine: one namespace, with its interfaces in the order of their set-up, and its routes."""

    name: str
    interfaces: tuple[LabInterface, ...] = ()
    routes: tuple[Route, ...] = ()
    forwards: bool = False

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Return the machine's own addresses, IPv4 then IPv6: those of its first interface."""
        return tuple(address.ip for address in self.interfaces[0].addresses)


@dataclass(frozen=True)
class Cable:
    """Cable: a veth pair, as two (machine, interface) ends."""

    a: tuple[str, str]
    b: tuple[str, str]


@dataclass(frozen=True)
class LabEndpoint:
    """LabEndpoint: a workload with a label, declared by an Endpoint document."""

    name: str
    node: str
    addresses: tuple[IPAddress, ...]
    interface: str | None  # on the node; None for a node that is an endpoint itself

    @property
    def role(self) -> str:
        """Return the value of the endpoint's ``role`` label."""
        return _ROLES[self.name.rstrip("0123456789")]

    def document(self) -> dict[str, Any]:
        """Return the Endpoint document that declares the endpoint."""
        spec: dict[str, Any] = {"node": self.node, "ips": [str(address) for address in self.addresses]}
        if self.interface:
            spec["interface"] = self.interface
        return {
            "apiVersion": "nfq-enforcer.io/v1",
            "kind": "Endpoint",
            "metadata": {"name": self.name, "namespace": "default", "labels": {"role": self.role}},
            "spec": spec,
        }


@dataclass(frozen=True)
class AttachedWorkload:
    """AttachedWorkload: a machine added to a node while the lab is up; no document of the lab declares it."""

    name: str
    node: str

    @property
    def interface(self) -> str:
        """Return the node's interface of the workload's cable."""
        return f"veth-{self.name}"


@dataclass(frozen=True)
class Topology:
    """Topology: the whole lab of one run."""

    run_id: str
    # Bytes by which the MTU of an endpoint's routes is lower, so that its packets still fit when stamped. Its interface
    # keeps the full MTU: received packets are longer by a stamp, and a veth drops packets that exceed its MTU.
    stamp_room: int = 16
    mtu: int = 1500
    attached: tuple[AttachedWorkload, ...] = ()

    def __post_init__(self) -> None:
        """Raise BadInput for a run id that does not fit into the names of namespaces."""
        if not _RUN_ID.fullmatch(self.run_id):
            raise BadInput(f"{self.run_id!r} is not a run id of a lab: it has 1 to 6 of the characters a-z and 0-9")

    def attach(self, name: str, node: str) -> "Topology":
        """Return the same lab with one more machine, a workload on this node; raise BadInput for a wrong name."""
        if not _MACHINE.fullmatch(name):
            raise BadInput(f"{name!r} is not a name of a machine: it has 1 to 10 of the characters a-z and 0-9")
        if name in self.machines:
            raise BadInput(f"the lab has a machine {name!r} already")
        if node not in NODES:
            raise BadInput(f"the lab has no node {node!r}; there are {', '.join(NODES)}")
        return replace(self, attached=(*self.attached, AttachedWorkload(name, node)))

    def namespace(self, machine: str) -> str:
        """Return the name of a machine's network namespace."""
        return f"{namespace_prefix(self.run_id)}{self.machine(machine).name}"

    def machine(self, name: str) -> Machine:
        """Return the machine of this name; raise BadInput with the known names."""
        if name not in self.machines:
            raise BadInput(f"the lab has no machine {name!r}; there are {', '.join(self.machines)}")
        return self.machines[name]

    def address(self, machine: str, family: int = 4) -> IPAddress:
        """Return a machine's own address of IP version 4 or 6."""
        return next(address for address in self.machine(machine).addresses if address.version == family)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the names of all machines with addresses: all but the segment."""
        return tuple(name for name in self.machines if name != SEGMENT)

    @cached_property
    def machines(self) -> dict[str, Machine]:
        """Return all machines by name."""
        nodes = [self._node(name) for name in NODES]
        endpoints = [self._endpoint_machine(node, name) for node, names in _ENDPOINTS.items() for name in names]
        outside = [self._outside(WORLD, _WORLD_NUMBER), self._outside(STORE, _STORE_NUMBER)]
        attached = [self._endpoint_machine(workload.node, workload.name) for workload in self.attached]
        machines = [self._segment(), self._router(), *outside, *nodes, *endpoints, *attached]
        return {machine.name: machine for machine in machines}

    @cached_property
    def cables(self) -> tuple[Cable, ...]:
        """Return every veth pair; a port of the segment's bridge has the name of the machine behind it."""
        on_segment = [Cable((SEGMENT, name), (name, UPLINK)) for name in _ON_SEGMENT]
        far = Cable((ROUTER, "far"), (_BEHIND_ROUTER, UPLINK))
        pods = [Cable((e.node, e.interface), (e.name, UPLINK)) for e in self.endpoints if e.interface]
        return (*on_segment, far, *pods)

    @cached_property
    def endpoints(self) -> tuple[LabEndpoint, ...]:
        """Return all endpoints; the last one is the node that is an endpoint itself."""
        behind_veths = [
            LabEndpoint(name, node, tuple(address.ip for address in self._pod_addresses(node, name)), f"veth-{name}")
            for node, names in _ENDPOINTS.items()
            for name in names
        ]
        itself = LabEndpoint(_BEHIND_ROUTER, _BEHIND_ROUTER, self.machine(_BEHIND_ROUTER).addresses, None)
        return (*behind_veths, itself)

    def endpoint_documents(self, node: str | None = None) -> str:
        """Render the Endpoint documents of all endpoints, or of those on one node, as YAML."""
        documents = [e.document() for e in self.endpoints if node in {None, e.node}]
        return yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True)

    def _segment(self) -> Machine:
        ports = [LabInterface(name, mtu=self.mtu) for name in _ON_SEGMENT]
        return Machine(SEGMENT, (LabInterface(BRIDGE, mtu=self.mtu), *ports))

    def _router(self) -> Machine:
        near = LabInterface(UPLINK, _numbered(_SEGMENT_SUBNETS, _ROUTER_NUMBER), self.mtu)
        far = LabInterface("far", _numbered(_FAR_SUBNETS, _ROUTER_NUMBER), self.mtu)
        return Machine(ROUTER, (near, far), tuple(_routes_to_pods(ROUTER)), forwards=True)

    def _outside(self, name: str, number: int) -> Machine:
        uplink = LabInterface(UPLINK, _numbered(_SEGMENT_SUBNETS, number), self.mtu)
        return Machine(name, (uplink,), (*_routes_to_pods(name), *_routes_to_far_link()))

    def _node(self, name: str) -> Machine:
        uplink = LabInterface(UPLINK, _node_addresses(name), self.mtu)
        gateways = tuple(_single(address) for address in _numbered(_pod_subnets(name), 1))
        pods = [LabInterface(f"veth-{pod}", gateways, self.mtu) for pod in self._pods(name)]
        if name in _ON_SEGMENT:
            routes = [*_routes_to_pods(name), *_routes_to_far_link()]
        else:
            routes = [Route(_everything(g), via=g.ip) for g in _numbered(_FAR_SUBNETS, _ROUTER_NUMBER)]
        return Machine(name, (uplink, *pods), (*self._routes_to_own_pods(name), *routes), forwards=True)

    def _endpoint_machine(self, node: str, name: str) -> Machine:
        uplink = LabInterface(UPLINK, self._pod_addresses(node, name), self.mtu)
        mtu = self.mtu - self.stamp_room
        gateways = [_single(address) for address in _numbered(_pod_subnets(node), 1)]
        on_link = [Route(gateway.network, device=UPLINK, mtu=mtu) for gateway in gateways]
        default = [Route(_everything(gateway), via=gateway.ip, device=UPLINK, mtu=mtu) for gateway in gateways]
        return Machine(name, (uplink,), (*on_link, *default))

    def _pods(self, node: str) -> tuple[str, ...]:
        return (*_ENDPOINTS[node], *(workload.name for workload in self.attached if workload.node == node))

    def _pod_addresses(self, node: str, pod: str) -> tuple[InterfaceAddress, ...]:
        number = _FIRST_ENDPOINT + self._pods(node).index(pod)
        return tuple(_single(address) for address in _numbered(_pod_subnets(node), number))

    def _routes_to_own_pods(self, node: str) -> list[Route]:
        # A node that is an endpoint sends to its pods, too, from the address in its Endpoint document.
        return [
            Route(address.network, device=f"veth-{pod}", source=own.ip)
            for pod in self._pods(node)
            for address, own in zip(self._pod_addresses(node, pod), _node_addresses(node), strict=True)
        ]


def namespace_prefix(run_id: str) -> str:
    """Return the common prefix of the names of all namespaces of a run."""
    return f"{PREFIX}{run_id}-"


def _numbered(subnets: tuple[str, ...], number: int) -> tuple[InterfaceAddress, ...]:
    networks = [ip_network(subnet) for subnet in subnets]
    return tuple(ip_interface((network[number], network.prefixlen)) for network in networks)


def _single(address: InterfaceAddress) -> InterfaceAddress:
    """Return the address as a host address (/32, /128), which adds no route to its subnet."""
    return ip_interface((address.ip, address.max_prefixlen))


def _everything(address: InterfaceAddress) -> Subnet:
    return ip_network("0.0.0.0/0" if address.version == 4 else "::/0")


def _pod_subnets(node: str) -> tuple[str, ...]:
    return tuple(subnet.format(NODES.index(node) + 1) for subnet in _POD_SUBNETS)


def _node_addresses(node: str) -> tuple[InterfaceAddress, ...]:
    return _numbered(_SEGMENT_SUBNETS if node in _ON_SEGMENT else _FAR_SUBNETS, NODES.index(node) + 1)


def _routes_to_pods(machine: str) -> list[Route]:
    """Return the routes from a machine on the segment to the pods of all other nodes."""
    return [
        Route(ip_network(subnet), via=gateway.ip)
        for node in NODES
        if node != machine
        for subnet, gateway in zip(_pod_subnets(node), _gateway_to(node, machine), strict=True)
    ]


def _gateway_to(node: str, machine: str) -> tuple[InterfaceAddress, ...]:
    if node in _ON_SEGMENT or machine == ROUTER:
        return _node_addresses(node)
    return _numbered(_SEGMENT_SUBNETS, _ROUTER_NUMBER)


def _routes_to_far_link() -> list[Route]:
    gateways = _numbered(_SEGMENT_SUBNETS, _ROUTER_NUMBER)
    return [Route(ip_network(subnet), via=gateway.ip) for subnet, gateway in zip(_FAR_SUBNETS, gateways, strict=True)]
