"""Property: after any sequence of changes, the maps of a policy equal those of a policy compiled at once."""

from itertools import product
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nfq_enforcer.core.identity import RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.cilium import CiliumCIDRGroup, CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from nfq_enforcer.policy.cluster_policy import ClusterNetworkPolicy
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement, Policy, compile_policy
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.kubernetes import NetworkPolicy
from nfq_enforcer.policy.rules import NamedPort, PortSet
from nfq_enforcer.policy.rules_index import NO_PORTS
from nfq_enforcer.policy.services import Endpoints, Service
from tests.support.effort import scaled

NAMESPACE = "io.kubernetes.pod.namespace"
KINDS = [
    Labels.parse({"app": app, NAMESPACE: namespace, **more})
    for app, namespace, more in product("ab", ("one", "two"), ({}, {"tier": "x"}))
]
HTTP, HTTP_TOO = (frozenset((NamedPort("http", 6, number),)) for number in (80, 8080))
PORT_SETS: list[tuple[PortSet, ...]] = [(), (HTTP,), (HTTP_TOO,), (HTTP, HTTP_TOO), (HTTP, NO_PORTS)]

SELECTORS: list[dict[str, Any]] = [
    {},
    {"matchLabels": {"app": "a"}},
    {"matchLabels": {"app": "b", f"k8s:{NAMESPACE}": "one"}},
    {"matchExpressions": [{"key": NAMESPACE, "operator": "Exists"}]},
    {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}, {"key": NAMESPACE, "operator": "Exists"}]},
    {"matchExpressions": [{"key": NAMESPACE, "operator": "NotIn", "values": ["one"]}]},
]
# 10.20.20.0/24 and 10.20.147.0/24 hash to the same number, so adding the second changes the number of the first
CIDRS = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.20.20.0/24", "10.20.147.0/24", "2001:db8::/32"]
HOLES = [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}, {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}]
GROUPS: list[dict[str, Any]] = [
    {"cidrGroupRef": "p"},
    {"cidrGroupRef": "q", "except": ["10.1.0.0/16"]},
    {"cidrGroupSelector": {"matchLabels": {"kind": "office"}}, "except": ["10.0.0.0/8", "2001:db8::/33"]},
    {"cidrGroupSelector": {}},
]
SERVICES: list[dict[str, Any]] = [
    {"k8sService": {"serviceName": "p"}},
    {"k8sService": {"serviceName": "q", "namespace": "one"}},
    {"k8sServiceSelector": {"selector": {"matchLabels": {"kind": "office"}}}},
]
FQDNS = [{"matchName": "a.example"}, {"matchPattern": "*.example"}, {"matchName": "b.example"}]
PORTS = [
    {"ports": [{"port": "80", "protocol": "TCP"}]},
    {"ports": [{"port": "http"}, {"port": "80", "endPort": 90}]},
    {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": "/a"}]}},
]


def entries(side: str, *, deny: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    peers = st.one_of(
        st.just({}),
        st.builds(lambda peers: {f"{side}Endpoints": peers}, st.lists(st.sampled_from(SELECTORS), max_size=2)),
        st.builds(lambda peers: {f"{side}CIDR": peers}, st.lists(st.sampled_from(CIDRS), max_size=2)),
        st.builds(lambda peer: {f"{side}CIDRSet": [peer]}, st.sampled_from(HOLES + GROUPS)),
        st.builds(lambda one: {f"{side}Entities": [one]}, st.sampled_from(["all", "world", "host", "cluster"])),
    )
    if side == "to":
        peers |= st.builds(lambda peers: {"toServices": peers}, st.lists(st.sampled_from(SERVICES), max_size=2))
    if side == "to" and not deny:
        peers |= st.builds(lambda peers: {"toFQDNs": peers}, st.lists(st.sampled_from(FQDNS), max_size=2))
    ports: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.builds(
        lambda one: {"toPorts": [one]}, st.sampled_from(PORTS[:2] if deny else PORTS)
    )
    return st.lists(st.builds(lambda peer, port: {**peer, **port}, peers, ports), min_size=1, max_size=2)


SPECS = st.fixed_dictionaries(
    {"endpointSelector": st.sampled_from(SELECTORS)},
    optional={
        "ingress": entries("from", deny=False),
        "egress": entries("to", deny=False),
        "ingressDeny": entries("from", deny=True),
        "egressDeny": entries("to", deny=True),
    },
).filter(lambda spec: len(spec) > 1)
BLOCKS = st.sampled_from([{"ipBlock": {"cidr": one}} for one in CIDRS] + [{"ipBlock": one} for one in HOLES])
PLAIN_PORTS = st.sampled_from([{}, {"ports": [{"port": "http"}]}])
PLAIN_SPECS = st.fixed_dictionaries(
    {"podSelector": st.sampled_from([{}, {"matchLabels": {"app": "a"}}])},
    optional={
        "ingress": st.lists(st.builds(lambda one, ports: {"from": [one], **ports}, BLOCKS, PLAIN_PORTS), max_size=2),
        "egress": st.lists(st.builds(lambda one, ports: {"to": [one], **ports}, BLOCKS, PLAIN_PORTS), max_size=2),
    },
)


def cilium(name: str, namespace: str, spec: dict[str, Any]) -> PolicyDocument:
    data: dict[str, Any] = {"apiVersion": "cilium.io/v2", "metadata": {"name": name}, "spec": spec}
    if not namespace:
        return CiliumClusterwideNetworkPolicy.model_validate(data | {"kind": "CiliumClusterwideNetworkPolicy"})
    data["metadata"]["namespace"] = namespace
    return CiliumNetworkPolicy.model_validate(data | {"kind": "CiliumNetworkPolicy"})


def plain(name: str, namespace: str, spec: dict[str, Any]) -> PolicyDocument:
    metadata = {"name": name, "namespace": namespace}
    data = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    return NetworkPolicy.model_validate(data)


def group(name: str, labels: dict[str, str], cidrs: list[str]) -> PolicyDocument:
    metadata, spec = {"name": name, "labels": labels}, {"externalCIDRs": cidrs}
    data = {"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": metadata, "spec": spec}
    return CiliumCIDRGroup.model_validate(data)


def service(name: str, namespace: str, selector: dict[str, str], labels: dict[str, str]) -> PolicyDocument:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    data = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": selector}}
    return Service.model_validate(data)


def backends(name: str, namespace: str, cidrs: list[str]) -> PolicyDocument:
    addresses = [{"ip": cidr.partition("/")[0]} for cidr in cidrs if cidr not in ("0.0.0.0/0", "::/0")]
    data = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": namespace}}
    return Endpoints.model_validate(data | {"subsets": [{"addresses": addresses}]})


def ordered(name: str, tier: str, priority: int, spec: dict[str, Any]) -> PolicyDocument:
    data: dict[str, Any] = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
    whole = {"tier": tier, "priority": priority, **spec}
    return ClusterNetworkPolicy.model_validate(data | {"metadata": {"name": name}, "spec": whole})


PODS: list[dict[str, Any]] = [
    {"namespaces": {}},
    {
        "pods": {
            "namespaceSelector": {},
            "podSelector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
        }
    },
    {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}},
]
OUTSIDE: list[dict[str, Any]] = [{"nodes": {}}, *({"networks": [one]} for one in CIDRS)]
PROTOCOLS: list[dict[str, Any]] = [
    {},
    {"protocols": [{"tcp": {"destinationPort": {"number": 80}}}]},
    {"protocols": [{"udp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}]},
]
NAMED_PORT = {"protocols": [{"destinationNamedPort": "http"}]}


def ordered_entries(side: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    def entry(action: str, peers: list[dict[str, Any]], ports: dict[str, Any]) -> dict[str, Any]:
        return {"action": action, side: peers, **ports}

    actions = st.sampled_from(["Accept", "Deny", "Pass"])
    pods = st.builds(
        entry,
        actions,
        st.lists(st.sampled_from(PODS), min_size=1, max_size=2),
        st.sampled_from([*PROTOCOLS, NAMED_PORT]),
    )
    if side == "from":
        return st.lists(pods, max_size=2)
    others = st.builds(
        entry, actions, st.lists(st.sampled_from(OUTSIDE), min_size=1, max_size=2), st.sampled_from(PROTOCOLS)
    )
    names = st.sampled_from([["a.b.example"], ["*.b.example"], ["a.b.example", "b.b.example"]])
    named = st.builds(lambda one: entry("Accept", [{"domainNames": one}], {}), names)
    return st.lists(pods | others | named, max_size=2)


ORDERED_SPECS = st.fixed_dictionaries(
    {"subject": st.sampled_from(PODS)}, optional={"ingress": ordered_entries("from"), "egress": ordered_entries("to")}
)

NAMES = st.sampled_from(["p", "q", "r"])
DOCUMENTS = st.one_of(
    st.builds(cilium, NAMES, st.sampled_from(["", "one", "two"]), SPECS),
    st.builds(plain, NAMES, st.sampled_from(["one", "two"]), PLAIN_SPECS),
    st.builds(ordered, NAMES, st.sampled_from(["Admin", "Baseline"]), st.sampled_from([1, 2]), ORDERED_SPECS),
    st.builds(
        group,
        NAMES,
        st.sampled_from([{}, {"kind": "office"}]),
        st.lists(st.sampled_from(CIDRS), max_size=3, unique=True),
    ),
    st.builds(
        service,
        NAMES,
        st.sampled_from(["one", "two"]),
        st.sampled_from([{}, {"app": "a"}, {"app": "b"}]),
        st.sampled_from([{}, {"kind": "office"}]),
    ),
    st.builds(
        backends,
        NAMES,
        st.sampled_from(["one", "two"]),
        st.lists(st.sampled_from(CIDRS), max_size=3, unique=True),
    ),
)

MapValues = tuple[tuple[dict[Any, Any], bool, tuple[Any, ...], bool, bool], ...]


def map_values(maps: EndpointMaps) -> MapValues:
    return tuple((dict(one.entries), one.enforced, one.enforced_by, one.isolated, one.can_refuse) for one in maps)


class Changes(RuleBasedStateMachine):
    """State machine: adds, changes and removes identities and documents."""

    @initialize(mode=st.sampled_from(Enforcement))
    def begin(self, mode: Enforcement) -> None:
        self.mode = mode
        self.documents: dict[tuple[str, ...], PolicyDocument] = {}
        self.identities: dict[Labels, Identity] = {}
        self.ports: dict[Identity, tuple[PortSet, ...]] = {}
        self.policy = compile_policy([], {}, mode)
        self.before: list[tuple[Policy, list[MapValues]]] = []

    @rule(kind=st.integers(0, len(KINDS) - 1), moved=st.booleans(), ports=st.sampled_from(PORT_SETS))
    def an_identity_comes_or_changes(self, kind: int, moved: bool, ports: tuple[PortSet, ...]) -> None:
        identity = Identity(300 + 10 * kind + moved)
        self.ports.pop(self.identities.get(KINDS[kind], identity), None)
        self.identities[KINDS[kind]] = identity
        self.ports[identity] = ports
        self.change(self.policy.with_identity(KINDS[kind], identity, ports))

    @rule(data=st.data())
    def an_identity_goes(self, data: st.DataObject) -> None:
        if self.identities:
            labels = data.draw(st.sampled_from(sorted(self.identities, key=str)))
            del self.ports[self.identities.pop(labels)]
            self.change(self.policy.without_identity(labels))

    @rule(documents=st.lists(DOCUMENTS, min_size=1, max_size=3))
    def documents_come_or_change(self, documents: list[PolicyDocument]) -> None:
        self.documents |= {(one.kind, str(getattr(one, "namespace", "")), one.metadata.name): one for one in documents}
        self.change(self.policy.with_documents(self.documents.values()))

    @rule(data=st.data())
    def a_document_goes(self, data: st.DataObject) -> None:
        if self.documents:
            del self.documents[data.draw(st.sampled_from(sorted(self.documents)))]
            self.change(self.policy.with_documents(self.documents.values()))

    @rule()
    def documents_are_read_in_another_order(self) -> None:
        self.documents = dict(reversed(self.documents.items()))
        self.change(self.policy.with_documents(self.documents.values()))

    def change(self, policy: Policy) -> None:
        self.before.append((self.policy, self.maps_of(self.policy)))
        self.policy = policy

    def maps_of(self, policy: Policy) -> list[MapValues]:
        return [map_values(policy.maps_for(*one)) for one in product((*KINDS, RESERVED[Identity(1)]), (NO_PORTS, HTTP))]

    @invariant()
    def maps_are_those_of_a_policy_compiled_at_once(self) -> None:
        fresh = compile_policy(self.documents.values(), self.identities, self.mode, self.ports)
        assert self.maps_of(self.policy) == self.maps_of(fresh)
        assert self.policy.local_identities.cidr_labels == fresh.local_identities.cidr_labels
        assert self.policy.local_identities.by_port_set == fresh.local_identities.by_port_set

    def teardown(self) -> None:
        for policy, maps in self.before:
            assert self.maps_of(policy) == maps  # earlier policies and their maps are unchanged


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=scaled(100), stateful_step_count=12, deadline=None)
