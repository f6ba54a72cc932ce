"""Properties: naive evaluation of policy documents agrees with the compiled maps; any text yields documents or errors.

The naive evaluation reads the plain data of the documents for each probe, and shares no code with the compiler.
"""

import json
import os
import re
from contextlib import suppress
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.core.identity import RESERVED
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.core.tables.l7 import HttpMatch, HttpRequest
from nfq_enforcer.core.tables.policymap import LookupResult
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import l7_match, loader, regex, yaml_source
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import parse
from nfq_enforcer.policy.model import ClusterModel, build_model
from tests.support.effort import scaled

Spec = dict[str, Any]
NAMESPACES = ["one", "two"]
NAMESPACE = "io.kubernetes.pod.namespace"
CLUSTER_LABEL = "io.cilium.k8s.policy.cluster"
PREFIX = "io.cilium.k8s.namespace.labels."
TEAM = f"{PREFIX}team"
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
ICMP = {"IPv4": 1, "IPv6": 58}
TYPES = {("IPv4", "EchoRequest"): 8, ("IPv6", "EchoRequest"): 128}
PROBES = [(6, 80), (6, 81), (6, 443), (6, 8080), (17, 80), (17, 443), (132, 443), (1, 8), (1, 0), (58, 128), (47, 0)]
CLUSTER = ["host", "remote-node", "init", "health", "unmanaged", "kube-apiserver", "ingress"]


class ProbeEnd(NamedTuple):
    """ProbeEnd: an end of a probe."""

    labels: Labels
    address: str | None  # None: a reserved identity without known address
    ports: tuple[tuple[str, int, int], ...] = ()  # name, protocol, number
    outside: bool = False  # the address is outside the cluster


def endpoint(number: int, namespace: str, own: dict[str, str], ports: list[Spec]) -> Spec:
    return {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": f"e{number}", "namespace": namespace, "labels": own},
        "spec": {"ips": [f"10.{number}.0.{number + 1}"], "ports": ports},
    }


OWN_LABELS: list[dict[str, str]] = [
    {},
    {"app": "a"},
    {"app": "a"},
    {"app": "b", "vm:tier": "x"},
    {"app": "a", "vm:app": "b", "tier": ""},
]
NAMED_PORTS: list[list[Spec]] = [
    [],
    [{"name": "http", "port": 80}, {"name": "web", "port": 443, "protocol": "UDP"}],
    [{"name": "http", "port": 8080}],  # the same labels as the endpoint before
    [{"name": "HTTP", "port": 81}, {"name": "web", "port": 80}],
    [{"name": "web", "port": 443, "protocol": "SCTP"}],
]
ENDPOINT_KINDS = list(product(NAMESPACES, zip(OWN_LABELS, NAMED_PORTS, strict=True)))
ENDPOINT_DOCUMENTS = [endpoint(number, namespace, *rest) for number, (namespace, rest) in enumerate(ENDPOINT_KINDS)]
NAMESPACE_DOCUMENTS = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name[0]}}}
    for name in NAMESPACES
]


def read_endpoint(document: Spec) -> ProbeEnd:
    """Return the probe end of an endpoint document."""
    namespace = document["metadata"]["namespace"]
    own = [Label(*written_label(key), value) for key, value in document["metadata"]["labels"].items()]
    made = {
        NAMESPACE: namespace,
        "io.cilium.k8s.policy.serviceaccount": "default",
        CLUSTER_LABEL: "default",
        f"{PREFIX}kubernetes.io/metadata.name": namespace,
        TEAM: namespace[0],
    }
    ports = [
        (port["name"].lower(), PROTOCOLS[port.get("protocol", "TCP")], port["port"])
        for port in document["spec"]["ports"]
    ]
    labels = Labels([*own, *(Label("k8s", key, value) for key, value in made.items())])
    return ProbeEnd(labels, document["spec"]["ips"][0], tuple(ports))


def written_label(key: str) -> tuple[str, str]:
    source, colon, name = key.rpartition(":")
    return (source, name) if colon else ("k8s", name)


WORLD = Labels([Label("reserved", "world", "")])
ENDPOINTS = [read_endpoint(one) for one in ENDPOINT_DOCUMENTS]
OUTSIDE = ["198.51.100.7", "198.51.100.200", "198.51.1.1", "192.0.2.1", "10.200.0.1", "2001:db8::7", "fd00::1"]
PEERS = [
    *ENDPOINTS,
    *(ProbeEnd(labels, None) for labels in RESERVED.values()),
    *(ProbeEnd(WORLD, address, outside=True) for address in OUTSIDE),
]


# --- naive evaluation ---


def written_key(text: str) -> tuple[str, str]:
    source, colon, key = text.rpartition(":")
    return (source, key) if colon else ("any", key)


def holds(labels: Labels, text: str, operator: str, values: list[str]) -> bool:
    source, key = written_key(text)
    found = [label.value for label in labels if label.key == key and source in {"any", label.source}]
    return {
        "In": bool(set(found) & set(values)),
        "NotIn": not set(found) & set(values),
        "Exists": bool(found),
        "DoesNotExist": not found,
    }[operator]


def matches(selector: Spec, labels: Labels, prefix: str = "") -> bool:
    wanted = [(key, "In", [value]) for key, value in selector.get("matchLabels", {}).items()]
    wanted += [(one["key"], one["operator"], one.get("values", [])) for one in selector.get("matchExpressions", [])]
    return all(holds(labels, prefix + key, operator, values) for key, operator, values in wanted)


def keys(selector: Spec) -> list[tuple[str, str]]:
    written = [*selector.get("matchLabels", {}), *(one["key"] for one in selector.get("matchExpressions", []))]
    return [written_key(key) for key in written]


def namespace_of(labels: Labels) -> str | None:
    return next((label.value for label in labels if label.key == NAMESPACE), None)


def is_reserved(labels: Labels, name: str) -> bool:
    return any((label.source, label.key) == ("reserved", name) for label in labels)


def is_subject(selector: Spec, namespace: str, labels: Labels) -> bool:
    if not namespace:
        return matches(selector, labels) and not is_reserved(labels, "host")
    own = {key: value for key, value in selector.get("matchLabels", {}).items() if key != f"k8s:{NAMESPACE}"}
    return matches({**selector, "matchLabels": own}, labels) and namespace_of(labels) == namespace


def is_peer(selector: Spec, namespace: str, labels: Labels) -> bool:
    if not matches(selector, labels):
        return False
    named = keys(selector)
    if any(source == "reserved" or (source in {"any", "k8s"} and key == NAMESPACE) for source, key in named):
        return True
    if not namespace:
        return namespace_of(labels) is not None
    return any(source in {"any", "k8s"} and key == TEAM for source, key in named) or namespace_of(labels) == namespace


def is_pod(peer: Spec, namespace: str, labels: Labels) -> bool:
    peer_namespace = namespace_of(labels)
    scope = peer.get("namespaceSelector")
    in_scope = (
        peer_namespace == namespace
        if scope is None
        else peer_namespace is not None and matches(scope, labels, f"k8s:{PREFIX}")
    )
    return in_scope and matches(peer.get("podSelector", {}), labels, "k8s:")


def within(address: str | None, block: str, holes: list[str]) -> bool:
    if address is None:
        return False
    one = ip_address(address)
    return one in ip_network(block) and not any(one in ip_network(hole) for hole in holes)


def is_entity(name: str, peer: ProbeEnd) -> bool:
    if name == "all":
        return True
    if name == "cluster":
        return namespace_of(peer.labels) is not None or any(is_reserved(peer.labels, one) for one in CLUSTER)
    if name in {"world-ipv4", "world-ipv6"}:
        return peer.outside and within(peer.address, "0.0.0.0/0" if name == "world-ipv4" else "::/0", [])
    return is_reserved(peer.labels, name)


def names_peer(entry: Spec, namespace: str, peer: ProbeEnd) -> bool | None:
    """Return whether a Cilium entry selects the peer; None if every peer field is missing."""
    sides = [
        entry.get(f"{side}{kind}") for kind in ("Endpoints", "CIDR", "CIDRSet", "Entities") for side in ("from", "to")
    ]
    if all(side is None for side in sides):
        return None
    endpoints, cidrs, sets, entities = ((a or []) + (b or []) for a, b in zip(sides[::2], sides[1::2], strict=True))
    return (
        any(is_peer(selector, namespace, peer.labels) for selector in endpoints)
        or (peer.outside and any(within(peer.address, cidr, []) for cidr in cidrs))
        or (peer.outside and any(within(peer.address, one["cidr"], one.get("except", [])) for one in sets))
        or any(is_entity(name, peer) for name in entities)
    )


def covers(port: Spec, default: str, destination: ProbeEnd, proto: int, number: int) -> bool:
    protocol = port.get("protocol", default)
    if proto not in PROTOCOLS.values() or (protocol != "ANY" and PROTOCOLS[protocol] != proto):
        return False
    first = port.get("port")
    if isinstance(first, str) and not first.isdecimal():
        return (first.lower(), proto, number) in destination.ports
    return first in {None, "0"} or int(first) <= number <= (port.get("endPort") or int(first))


def is_type(field: Spec, proto: int, number: int) -> bool:
    family = field.get("family", "IPv4")
    return ICMP[family] == proto and TYPES.get((family, field["type"]), field["type"]) == number


class EntryResult(NamedTuple):
    """EntryResult: the effect of one entry on a probe."""

    ref: tuple[str, int, int, bool]
    covered: bool  # the entry allows (or denies) the port without layer-7 rules
    requests: tuple[Spec, ...] = ()  # else: the HTTP rules of the entry


def read_cilium_entry(
    entry: Spec,
    ref: tuple[str, int, int, bool],
    namespace: str,
    peer: ProbeEnd,
    destination: ProbeEnd,
    port: tuple[int, int],
    without_l7: bool,
) -> EntryResult:
    named = names_peer(entry, namespace, peer)
    ports, types = entry.get("toPorts") or [], entry.get("icmps") or []
    if named is False or (named is None and not ports and not types):
        return EntryResult(ref, False)
    if types:
        return EntryResult(ref, any(is_type(field, *port) for one in types for field in one.get("fields", [])))
    if not ports:
        return EntryResult(ref, True)
    open_to = [one for one in ports if any(covers(each, "ANY", destination, *port) for each in one.get("ports", []))]
    rules = [one.get("rules", {}).get("http", []) for one in open_to]
    plain = any(not one for one in rules) or (without_l7 and bool(rules))
    return EntryResult(ref, plain, () if plain else tuple(request for one in rules for request in one))


def read_kubernetes_entry(
    entry: Spec,
    ref: tuple[str, int, int, bool],
    namespace: str,
    peer: ProbeEnd,
    destination: ProbeEnd,
    port: tuple[int, int],
) -> EntryResult:
    peers, ports = entry.get("from") or entry.get("to") or [], entry.get("ports") or []
    blocks = [one["ipBlock"] for one in peers if "ipBlock" in one]
    in_block = any(within(peer.address, block["cidr"], block.get("except", [])) for block in blocks)
    pods = [one for one in peers if "ipBlock" not in one]
    named = not peers or in_block or any(is_pod(one, namespace, peer.labels) for one in pods)
    fits = [one for one in ports if covers(one, "TCP", destination, *port)]
    if fits and entry.get("to") and not any(is_pod(one, namespace, peer.labels) for one in pods):
        # Named ports are the destination's: at ingress those of the subject; an address outside has none.
        fits = [one for one in fits if not isinstance(one.get("port"), str)]
    return EntryResult(ref, named and (not ports or bool(fits)))


def read_document(
    document: Spec, direction: str, subject: ProbeEnd, peer: ProbeEnd, port: tuple[int, int]
) -> tuple[bool, bool, list[EntryResult]]:
    """Return whether a document isolates any subject, whether it isolates this one, and the results of its entries."""
    name, namespace = document["metadata"]["name"], document["metadata"].get("namespace", "")
    destination = subject if direction == "ingress" else peer
    if document["kind"] == "NetworkPolicy":
        spec = document["spec"]
        types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        closes = direction.capitalize() in types
        selects_subject = closes and is_pod({"podSelector": spec.get("podSelector") or {}}, namespace, subject.labels)
        entries = enumerate(spec.get(direction, []))
        results = [
            read_kubernetes_entry(one, (name, 0, number, False), namespace, peer, destination, port)
            for number, one in entries
        ]
        return closes, selects_subject, results if selects_subject else []
    any_closes, mine_closes, results = False, False, []
    for index, spec in enumerate(document["specs"]):
        has = bool(spec.get(direction) or spec.get(f"{direction}Deny"))
        closes = has and spec.get("enableDefaultDeny", {}).get(direction, True)
        any_closes |= closes
        if is_subject(spec["endpointSelector"], namespace, subject.labels):
            mine_closes |= closes
            for deny in (False, True):
                for number, entry in enumerate(spec.get(f"{direction}Deny" if deny else direction, [])):
                    ref = (name, index, number, deny)
                    results.append(read_cilium_entry(entry, ref, namespace, peer, destination, port, not closes))
    return any_closes, mine_closes, results


class OrderedResult(NamedTuple):
    """OrderedResult: a rule of a ClusterNetworkPolicy that matches a probe."""

    tier: str
    priority: int
    name: str
    number: int
    action: str


def is_in_scope(scope: Spec, labels: Labels) -> bool:
    """Return whether a subject or peer of a ClusterNetworkPolicy selects pods with these labels."""
    if namespace_of(labels) is None:
        return False
    if "namespaces" in scope:
        return matches(scope["namespaces"], labels, f"k8s:{PREFIX}")
    pods = scope["pods"]
    return matches(pods["namespaceSelector"], labels, f"k8s:{PREFIX}") and matches(pods["podSelector"], labels, "k8s:")


def is_ordered_peer(peer: Spec, other: ProbeEnd) -> bool:
    if "networks" in peer:
        return any(within(other.address, block, []) for block in peer["networks"])
    if "nodes" in peer:
        return is_reserved(other.labels, "host") or is_reserved(other.labels, "remote-node")
    return is_in_scope(peer, other.labels)


def is_ordered_port(protocol: Spec, destination: ProbeEnd, proto: int, number: int) -> bool:
    name, one = next(iter(protocol.items()))
    if name == "destinationNamedPort":
        return (one, proto, number) in destination.ports
    port = one["destinationPort"]
    bounds = (port["number"], port["number"]) if "number" in port else (port["range"]["start"], port["range"]["end"])
    return PROTOCOLS[name.upper()] == proto and bounds[0] <= number <= bounds[1]


def ordered_results(
    document: Spec, direction: str, subject: ProbeEnd, peer: ProbeEnd, port: tuple[int, int]
) -> list[OrderedResult]:
    """Return the rules of a ClusterNetworkPolicy that match a probe."""
    spec, name = document["spec"], document["metadata"]["name"]
    destination = subject if direction == "ingress" else peer
    if not is_in_scope(spec["subject"], subject.labels):
        return []
    return [
        OrderedResult(spec["tier"], spec["priority"], name, number, rule["action"])
        for number, rule in enumerate(spec.get(direction, []))
        if any(is_ordered_peer(one, peer) for one in rule.get("from") or rule["to"])
        and ("protocols" not in rule or any(is_ordered_port(one, destination, *port) for one in rule["protocols"]))
    ]


def tier_verdict(results: list[OrderedResult], tier: str) -> OrderedResult | None:
    """Return the rule that decides in a tier, None if the tier leaves the decision to others."""
    first = min((one for one in results if one.tier == tier), key=lambda one: one[1:4], default=None)
    return None if first is None or first.action == "Pass" else first


def expected(
    documents: list[Spec], mode: Enforcement, direction: str, subject: ProbeEnd, peer: ProbeEnd, port: tuple[int, int]
) -> tuple[bool, set[tuple[str, int, int, bool]], list[Spec]]:
    """Return the expected verdict, the deciding rules, and the allowed requests if only some are allowed."""
    if mode is Enforcement.NEVER:
        return True, set(), []
    ordered = [
        result
        for document in documents
        if document["kind"] == "ClusterNetworkPolicy"
        for result in ordered_results(document, direction, subject, peer, port)
    ]
    if first := tier_verdict(ordered, "Admin"):
        return first.action == "Accept", {(first.name, 0, first.number, False)}, []
    readings = [
        read_document(document, direction, subject, peer, port)
        for document in documents
        if document["kind"] != "ClusterNetworkPolicy"
    ]
    closed = {
        Enforcement.AUTO: any(anyone for anyone, _, _ in readings),
        Enforcement.PER_ENDPOINT: any(selects_subject for _, selects_subject, _ in readings),
        Enforcement.ALWAYS: True,
    }[mode]
    results = [result for _, _, entries in readings for result in entries]
    denied = {result.ref for result in results if result.covered and result.ref[3]}
    allowed = {result.ref for result in results if result.covered and not result.ref[3]}
    if denied:
        return False, denied, []
    if allowed:
        return True, allowed, []
    restricted = [result for result in results if result.requests] if closed else []
    if restricted:
        requests = [request for result in restricted for request in result.requests]
        return True, {result.ref for result in restricted}, requests
    last = tier_verdict(ordered, "Baseline")
    if last and not any(selects_subject for _, selects_subject, _ in readings):
        return last.action == "Accept", {(last.name, 0, last.number, False)}, []
    return not closed, set(), []


PROBE_COUNT = int(os.environ.get("NFQ_ENFORCER_TEST_PROBES", "50000"))  # a longer run sets a larger number

REQUESTS = [HttpRequest(method, path, "h") for method in ("GET", "PUT") for path in ("/a", "/b", "/ab")]


def request_passes(rules: list[Spec], request: HttpRequest) -> bool:
    return any(
        all(re.fullmatch(rule.get(field, ".*"), getattr(request, field)) for field in ("method", "path"))
        for rule in rules
    )


# --- random documents ---

OWN_KEYS = ["app", "k8s:app", "vm:app", "any:tier", "tier"]
KEYS = st.sampled_from(
    [*OWN_KEYS, NAMESPACE, f"k8s:{NAMESPACE}", CLUSTER_LABEL, f"k8s:{CLUSTER_LABEL}", TEAM, "reserved:world"]
)
VALUES = st.sampled_from(["a", "b", "x", "", "one", "two", "o", "default"])


def selectors(names: st.SearchStrategy[str]) -> st.SearchStrategy[Spec]:
    valued = {
        "key": names,
        "operator": st.sampled_from(["In", "NotIn"]),
        "values": st.lists(VALUES, min_size=1, max_size=2),
    }
    bare = {"key": names, "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    expressions = st.one_of(st.fixed_dictionaries(valued), st.fixed_dictionaries(bare))
    optional = {
        "matchLabels": st.dictionaries(names, VALUES, max_size=2),
        "matchExpressions": st.lists(expressions, max_size=2),
    }
    return st.fixed_dictionaries({}, optional=optional)


SELECTORS = selectors(KEYS)
CIDRS = st.sampled_from(
    [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "198.51.0.0/16",
        "198.51.100.0/24",
        "198.51.100.7/32",
        "::/0",
        "2001:db8::/32",
    ]
)
BLOCKS = st.one_of(
    st.fixed_dictionaries({"cidr": CIDRS}),
    st.sampled_from(
        [
            {"cidr": "0.0.0.0/0", "except": ["198.51.0.0/16", "10.1.0.0/16"]},
            {"cidr": "198.51.0.0/16", "except": ["198.51.100.0/24"]},
            {"cidr": "198.51.100.0/24", "except": ["198.51.100.128/25", "198.51.100.7/32"]},
            {"cidr": "10.0.0.0/8", "except": ["10.2.0.0/15", "10.7.0.8/32"]},
            {"cidr": "::/0", "except": ["fd00::/8"]},
        ]
    ),
)
ENTITIES = st.sampled_from(["all", "world", "world-ipv4", "world-ipv6", "none", "cluster", *CLUSTER])
RANGES = [
    {"port": "80", "endPort": 443},
    {"port": "81", "endPort": 8079},
    {"port": "http"},
    {"port": "WEB", "endPort": 1},
]
PORTS = st.builds(
    lambda port, protocol: {**port, **protocol},
    st.sampled_from([{"port": "0"}, {"port": "80"}, {"port": "443"}, *RANGES]),
    st.fixed_dictionaries({}, optional={"protocol": st.sampled_from([*PROTOCOLS, "ANY"])}),
)
HTTP = st.fixed_dictionaries(
    {}, optional={"method": st.sampled_from(["GET", "GET|PUT"]), "path": st.sampled_from(["/a", "/a|/b", "/.*"])}
)
WEB_PORTS = st.lists(
    st.sampled_from([{"port": "80", "protocol": "TCP"}, {"port": "80", "endPort": 81, "protocol": "TCP"}]),
    min_size=1,
    max_size=1,
)
PLAIN_PORTS = st.fixed_dictionaries({}, optional={"ports": st.lists(PORTS, max_size=3)})
TO_PORTS = st.lists(
    PLAIN_PORTS
    | st.fixed_dictionaries({"ports": WEB_PORTS, "rules": st.fixed_dictionaries({"http": st.lists(HTTP, max_size=2)})}),
    max_size=2,
)
FIELDS_OF_ICMP = st.fixed_dictionaries(
    {"type": st.sampled_from([0, 8, 128, "EchoRequest"])}, optional={"family": st.sampled_from(["IPv4", "IPv6"])}
)
ICMPS = st.lists(st.fixed_dictionaries({}, optional={"fields": st.lists(FIELDS_OF_ICMP, max_size=2)}), max_size=2)


def directed(side: str, to_ports: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Spec]]:
    def listed(kind: str, items: st.SearchStrategy[Any]) -> st.SearchStrategy[Spec]:
        return st.fixed_dictionaries({}, optional={f"{side}{kind}": st.lists(items, max_size=2)})

    peers = st.one_of(
        listed("Endpoints", SELECTORS), listed("CIDR", CIDRS), listed("CIDRSet", BLOCKS), listed("Entities", ENTITIES)
    )
    optional = {"toPorts": to_ports}
    rest = st.fixed_dictionaries({}, optional=optional) | st.fixed_dictionaries({"icmps": ICMPS})
    return st.lists(st.builds(lambda peer, ports: {**peer, **ports}, peers, rest), max_size=2)


DEFAULT_DENY = st.fixed_dictionaries({}, optional={"ingress": st.booleans(), "egress": st.booleans()})
SPECS = st.fixed_dictionaries(
    {"endpointSelector": SELECTORS},
    optional={
        "ingress": directed("from", TO_PORTS),
        "egress": directed("to", TO_PORTS),
        "ingressDeny": directed("from", st.lists(PLAIN_PORTS, max_size=2)),
        "egressDeny": directed("to", st.lists(PLAIN_PORTS, max_size=2)),
        "enableDefaultDeny": DEFAULT_DENY,
    },
).filter(lambda spec: any(spec.get(section) for section in ("ingress", "egress", "ingressDeny", "egressDeny")))
CILIUM = st.builds(
    lambda namespace, specs: {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy",
        "metadata": {"namespace": namespace} if namespace else {},
        "specs": specs,
    },
    st.sampled_from(["", *NAMESPACES]),
    st.lists(SPECS, min_size=1, max_size=2),
)

PODS = selectors(st.sampled_from(["app", "tier"]))
SCOPES = selectors(st.sampled_from(["team", "kubernetes.io/metadata.name"]))
POD_PEERS = st.fixed_dictionaries(
    {"podSelector": PODS}, optional={"namespaceSelector": SCOPES}
) | st.fixed_dictionaries({"namespaceSelector": SCOPES})
PLAIN_PEERS = st.lists(POD_PEERS | st.fixed_dictionaries({"ipBlock": BLOCKS}), max_size=2)
NUMBERED = [{}, {"port": 80}, {"port": 80, "endPort": 443}, {"port": "http"}, {"port": "web"}]
PLAIN_ENTRY_PORTS = st.lists(
    st.builds(
        lambda port, proto: {**port, **proto},
        st.sampled_from(NUMBERED),
        st.fixed_dictionaries({}, optional={"protocol": st.sampled_from([*PROTOCOLS])}),
    ),
    max_size=2,
)


def plain_entries(side: str) -> st.SearchStrategy[list[Spec]]:
    return st.lists(st.fixed_dictionaries({}, optional={side: PLAIN_PEERS, "ports": PLAIN_ENTRY_PORTS}), max_size=2)


PLAIN = st.builds(
    lambda namespace, spec: {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace},
        "spec": spec,
    },
    st.sampled_from(NAMESPACES),
    st.fixed_dictionaries(
        {},
        optional={
            "podSelector": PODS | st.none(),
            "ingress": plain_entries("from"),
            "egress": plain_entries("to"),
            "policyTypes": st.lists(st.sampled_from(["Ingress", "Egress"]), max_size=2, unique=True),
        },
    ),
)

POD_SCOPES = st.fixed_dictionaries({"namespaces": SCOPES}) | st.fixed_dictionaries(
    {"pods": st.fixed_dictionaries({"namespaceSelector": SCOPES, "podSelector": PODS})}
)
NETWORKS = st.fixed_dictionaries({"networks": st.lists(CIDRS, min_size=1, max_size=2, unique=True)})
ORDERED_PORTS = st.sampled_from(
    [{"number": 80}, {"number": 443}, {"range": {"start": 80, "end": 443}}, {"range": {"start": 81, "end": 8079}}]
)
NUMBERED_PROTOCOLS = st.builds(
    lambda name, port: {name: {"destinationPort": port}}, st.sampled_from(["tcp", "udp", "sctp"]), ORDERED_PORTS
)
NAMED_PROTOCOLS = st.builds(lambda name: {"destinationNamedPort": name}, st.sampled_from(["http", "web"]))


def ordered_rules(
    side: str, peers: st.SearchStrategy[Spec], protocols: st.SearchStrategy[Spec]
) -> st.SearchStrategy[Spec]:
    return st.fixed_dictionaries(
        {
            "action": st.sampled_from(["Accept", "Deny", "Pass"]),
            side: st.lists(peers, min_size=1, max_size=2),
        },
        optional={"protocols": st.lists(protocols, min_size=1, max_size=2)},
    )


ORDERED = st.builds(
    lambda spec: {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {},
        "spec": spec,
    },
    st.fixed_dictionaries(
        {
            "tier": st.sampled_from(["Admin", "Baseline"]),
            "priority": st.integers(0, 2),
            "subject": POD_SCOPES,
        },
        optional={
            "ingress": st.lists(ordered_rules("from", POD_SCOPES, NUMBERED_PROTOCOLS | NAMED_PROTOCOLS), max_size=3),
            "egress": st.lists(
                ordered_rules("to", POD_SCOPES, NUMBERED_PROTOCOLS | NAMED_PROTOCOLS)
                | ordered_rules("to", POD_SCOPES | NETWORKS | st.just({"nodes": {}}), NUMBERED_PROTOCOLS),
                max_size=3,
            ),
        },
    ),
)
DOCUMENTS = st.lists(CILIUM | PLAIN | ORDERED, max_size=4)


def cluster_of(documents: list[Spec], mode: Enforcement) -> ClusterModel:
    for number, document in enumerate(documents):
        document["metadata"]["name"] = f"p{number}"
    text = json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": [*ENDPOINT_DOCUMENTS, *NAMESPACE_DOCUMENTS, *documents]}
    )
    return build_model(loader.group_documents(one.document for one in parse(text, "x.json")), mode)


def look_up(cluster: ClusterModel, direction: str, subject: int, peer: ProbeEnd, port: tuple[int, int]) -> LookupResult:
    policy = getattr(cluster.maps(cluster.endpoints[subject]), direction)
    if peer.address is None:
        identity = next(number for number, labels in RESERVED.items() if labels == peer.labels)
        return LookupResult(*policy.lookup(identity, *port))
    address = ip_address(peer.address).packed
    found = cluster.ipcache.lookup(address).identity
    return LookupResult(*policy.lookup(found, *port, cluster.ipcache.local_identities(address)))


@settings(max_examples=scaled(PROBE_COUNT // 100), deadline=None)
@given(DOCUMENTS, st.sampled_from(Enforcement), st.integers(0, len(ENDPOINT_DOCUMENTS) - 1), st.permutations(PROBES))
def test_a_naive_reading_of_the_documents_agrees_with_the_compiled_maps(
    documents: list[Spec], mode: Enforcement, subject: int, ports: list[tuple[int, int]]
) -> None:
    cluster = cluster_of(documents, mode)  # 100 probes an example: two ports for every peer and direction

    for direction, peer, port in product(("ingress", "egress"), PEERS, ports[:2]):
        allowed, rules, requests = expected(documents, mode, direction, ENDPOINTS[subject], peer, port)
        found = look_up(cluster, direction, subject, peer, port)
        assert found.allowed is allowed, (direction, peer, port)
        assert {(rule.name, rule.spec, rule.number, rule.deny) for rule in found.rules} == rules
        assert len(found.rules) == len(rules)
        matched = [rule.match for rule in found.l7 if isinstance(rule.match, HttpMatch)]
        assert len(matched) == len(found.l7)
        assert bool(matched) is bool(requests)
        assert [any(l7_match.matches(match, request) for match in matched) for request in REQUESTS] == [
            request_passes(requests, request) for request in REQUESTS
        ]


@settings(max_examples=scaled(500), deadline=None)
@given(st.text() | st.text(alphabet="[]{}:,-&*!|>%@?# \n\t'\"ab<0.~"))
def test_any_text_gives_documents_or_errors(text: str) -> None:
    with suppress(DocumentErrors):
        parse(text, "x.yaml")


@settings(max_examples=scaled(200), deadline=None)
@given(st.binary())
def test_any_bytes_give_text_or_an_error(raw: bytes) -> None:
    with suppress(DocumentError):
        yaml_source.decode(raw, "x.yaml")


FIELDS = st.sampled_from(
    ["name", "labels", "ips", "ports", "port", "endpointSelector", "matchLabels", "ingress", "toPorts", "x", "{{ x }}"]
)
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=12,
)
KINDS = st.sampled_from(["Endpoint", "Namespace", "CiliumNetworkPolicy", "List", "NetworkPolicyList"]) | SHAPES
VERSIONS = st.sampled_from(["v1", "cilium.io/v2", "nfq-enforcer.io/v1", "networking.k8s.io/v1"]) | SHAPES


@settings(max_examples=scaled(500), deadline=None)
@given(
    st.fixed_dictionaries(
        {"kind": KINDS, "apiVersion": VERSIONS},
        optional=dict.fromkeys(("metadata", "spec", "specs", "items", "x"), SHAPES),
    )
)
def test_a_document_of_any_shape_is_taken_or_refused(data: Spec) -> None:
    with suppress(DocumentErrors):
        parse(json.dumps(data), "x.yaml")
    with suppress(DocumentErrors):
        loader.parse_all([loader.File("x.yaml", json.dumps(data))], ignore_other_kinds=True)


PATTERNS = st.text(alphabet="ab1é\\\\dwpLQECZz(?:)[]^-|*+?{},.$<>P=i0x", max_size=12)


@settings(max_examples=scaled(500), deadline=None)
@given(PATTERNS | st.text(max_size=8), st.text(alphabet="ab1é/", max_size=8))
def test_any_expression_is_refused_or_matches_in_the_end(pattern: str, text: str) -> None:
    with suppress(ValueError):
        regex.check(pattern)
        regex.matches_whole(pattern, text)
        regex.match_end(pattern, text)


PLAIN_PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "1", ".", "[ab]", "[^b]", "[0-9]"]),
    lambda inner: st.one_of(
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,2}"])),
    ),
    max_leaves=5,
)


@settings(max_examples=scaled(500), deadline=None)
@given(PLAIN_PATTERNS, st.text(alphabet="ab1", max_size=6))
def test_what_python_reads_alike_matches_alike(pattern: str, text: str) -> None:
    assert regex.matches_whole(pattern, text) is (re.fullmatch(pattern, text) is not None)
