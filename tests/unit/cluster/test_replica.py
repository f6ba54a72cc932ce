"""Replica: from changes of the cluster to the snapshot and peers of one node, and to their differences."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nfq_enforcer.cluster.names import KnownAddress, Names
from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.cluster.replica import NodeSettings, Replica, View
from nfq_enforcer.core.identity import HOST, KUBE_APISERVER, REMOTE_NODE, WORLD, Identity, travels
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.policy_verdict import PolicyDenied, evaluate
from nfq_enforcer.core.tables.conntrack import Opening, Origin
from nfq_enforcer.core.tables.ipcache import Peer
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.rules import NamedPort
from tests.support.packets import packed
from tests.support.replicas import API_SERVER, replica_of, with_peers

ENDPOINTS = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web, version: "7"}}
spec: {node: n1, ips: [10.1.0.10, "fd01::10"], interface: veth-web}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: other, labels: {app: web}}
spec: {node: n2, ips: [10.2.0.10, "fd02::10"], interface: veth-web}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {node: n2, ips: [10.2.0.11]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: here, namespace: shop, labels: {app: client}}
spec: {ips: [192.168.7.7], serviceAccount: tester}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: blue}}
"""
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: clients-to-web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: client}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""
N1, N2, N1_V6, N2_V6 = map(ip_address, ("172.16.0.1", "172.16.0.2", "fd00::1", "fd00::2"))
NODES = {"n1": (N1, N1_V6), "n2": (N2, N2_V6)}
WEB, CLIENT, HERE, OTHER_WEB = map(packed, ("10.1.0.10", "10.2.0.11", "192.168.7.7", "10.2.0.10"))


def documents(*texts: str) -> Documents:
    return loader.group_documents(one.document for text in texts for one in loader.parse(text, "x.yaml"))


def snapshot_of(name: str = "n1", *texts: str, enforcement: Enforcement = Enforcement.AUTO) -> tuple[Snapshot, Names]:
    """Return a node's snapshot of the documents, with peers, and the names."""
    settings = NodeSettings(name, NODES.get(name, ()), enforcement=enforcement)
    replica = replica_of(documents(ENDPOINTS, *texts), settings, NODES)
    return with_peers(replica, 3), replica.view(3).names


def build(documents: Documents, settings: NodeSettings, revision: int, nodes: Any) -> tuple[Snapshot, Names]:
    replica = replica_of(documents, settings, nodes)
    return with_peers(replica, revision), replica.view(revision).names


def test_the_endpoints_of_a_node_are_local_to_it_under_each_address() -> None:
    endpoints = snapshot_of("n1")[0].endpoints

    assert {address: (one.name, one.interface) for address, one in endpoints.items()} == {
        WEB: ("shop/web", "veth-web"),
        packed("fd01::10"): ("shop/web", "veth-web"),
        HERE: ("shop/here", None),
    }
    assert endpoints[WEB] is endpoints[packed("fd01::10")]


def test_an_endpoint_without_a_node_is_local_to_whoever_loads_it() -> None:
    endpoints = snapshot_of("n2")[0].endpoints

    assert {one.name for one in endpoints.values()} == {"other/web", "shop/client", "shop/here"}


def test_endpoints_of_other_nodes_and_those_nodes_are_peers_to_be_stamped() -> None:
    snapshot, names = snapshot_of("n1")
    identities = {f"{e.namespace}/{e.name}": e.identity for e in names}

    ipcache = snapshot.ipcache
    assert len(ipcache) == 5
    assert ipcache.lookup(OTHER_WEB) == Peer(identities["other/web"], remote=True)
    assert ipcache.lookup(packed("fd02::10")) == Peer(identities["other/web"], remote=True)
    assert ipcache.lookup(CLIENT) == Peer(identities["shop/client"], remote=True)
    assert ipcache.lookup(N2.packed) == ipcache.lookup(N2_V6.packed) == Peer(REMOTE_NODE, remote=True, is_node=True)


@pytest.mark.parametrize("address", [WEB, HERE, N1.packed, N1_V6.packed, packed("203.0.113.9")])
def test_what_is_on_this_node_and_what_nobody_knows_is_no_peer(address: bytes) -> None:
    assert snapshot_of("n1")[0].ipcache.lookup(address) == Peer(WORLD, remote=False)


def test_an_endpoint_that_has_an_address_of_the_host_is_the_host_itself() -> None:
    settings = NodeSettings("n1", own_addresses=frozenset({ip_address("192.168.7.7")}))

    endpoints = build(documents(ENDPOINTS), settings, 1, {})[0].endpoints

    assert (endpoints[HERE].is_host, endpoints[WEB].is_host) == (True, False)


def test_an_address_that_the_host_gets_or_loses_is_in_the_next_snapshot() -> None:
    here = ip_address("192.168.7.7")
    replica = replica_of(documents(ENDPOINTS), NodeSettings("n1"))
    before = replica.view(1)

    replica.use(NodeSettings("n1", own_addresses=frozenset({here})))
    with_it = replica.view(2)
    replica.use(NodeSettings("n1"))
    without_it = replica.view(3)

    assert with_it.changed
    assert without_it.changed
    assert [view.snapshot.own_addresses for view in (before, with_it, without_it)] == [set(), {here.packed}, set()]
    assert [view.snapshot.endpoints[HERE].is_host for view in (before, with_it, without_it)] == [False, True, False]


def test_a_node_that_is_an_endpoint_is_known_as_the_endpoint() -> None:
    settings = NodeSettings("n1", (N1,))
    text = ENDPOINTS.replace("10.2.0.11", str(N2))

    peer = build(documents(text), settings, 1, NODES)[0].ipcache.lookup(N2.packed)

    assert travels(peer.identity)
    assert peer.remote


def test_two_nodes_with_the_same_documents_agree_on_every_identity() -> None:
    first, second = snapshot_of("n1")[1], snapshot_of("n2")[1]

    assert first.identities == second.identities
    assert {(e.namespace, e.name): e.identity for e in first} == {(e.namespace, e.name): e.identity for e in second}


def test_equal_labels_are_one_identity_and_a_namespace_is_a_label() -> None:
    two = ENDPOINTS.replace("name: client, namespace: shop", "name: twin, namespace: shop").replace(
        "10.2.0.11", "10.2.0.12"
    )
    settings = NodeSettings("n1")
    names = build(documents(ENDPOINTS, two.split("---")[2]), settings, 1, {})[1]

    identities = {f"{e.namespace}/{e.name}": e.identity for e in names}
    assert identities["shop/client"] == identities["shop/twin"]
    assert len({identities[name] for name in ("shop/web", "other/web", "shop/client", "shop/here")}) == 4


def test_only_relevant_labels_make_an_identity_and_the_others_are_shown() -> None:
    settings = NodeSettings("n1", relevant=LabelFilter(["!version"]))

    names = build(documents(ENDPOINTS), settings, 1, {})[1]

    web = next(e for e in names if (e.namespace, e.name) == ("shop", "web"))
    made = names.labels(web.identity)
    assert made == Labels.parse(
        {
            "app": "web",
            "io.kubernetes.pod.namespace": "shop",
            "io.cilium.k8s.policy.cluster": "default",
            "io.cilium.k8s.policy.serviceaccount": "default",
            "io.cilium.k8s.namespace.labels.team": "blue",
            "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "shop",
        }
    )
    assert web.labels == made.union(Labels.parse({"version": "7"}))


def test_the_directory_names_every_endpoint_of_the_cluster_by_each_address() -> None:
    names = snapshot_of("n1")[1]

    assert [(e.namespace, e.name, e.node, e.addresses, e.interface) for e in names] == [
        ("shop", "web", "n1", ("10.1.0.10", "fd01::10"), "veth-web"),
        ("other", "web", "n2", ("10.2.0.10", "fd02::10"), "veth-web"),
        ("shop", "client", "n2", ("10.2.0.11",), None),
        ("shop", "here", "n1", ("192.168.7.7",), None),
    ]
    web = next(iter(names))
    assert names.endpoint(WEB, web.identity) == names.endpoint(packed("fd01::10"), web.identity) == web


def test_policy_guards_the_endpoints_of_this_node() -> None:
    snapshot, names = snapshot_of("n1", POLICY)
    client = next(e.identity for e in names if e.name == "client")

    web = snapshot.endpoints[WEB]
    assert [str(rule) for rule in web.ingress.lookup(client, TCP, 80).rules] == ["shop/clients-to-web ingress[0]"]
    assert not web.ingress.lookup(client, TCP, 81).allowed
    assert not web.ingress.lookup(WORLD, TCP, 80).allowed
    assert (web.ingress.enforced, web.egress.enforced) == (True, False)
    assert snapshot.endpoints[HERE].ingress.enforced


@pytest.mark.parametrize(
    ("mode", "web", "here"),
    [
        (Enforcement.AUTO, (True, False), (True, False)),
        (Enforcement.PER_ENDPOINT, (True, False), (False, False)),
        (Enforcement.ALWAYS, (True, True), (True, True)),
        (Enforcement.NEVER, (False, False), (False, False)),
    ],
)
def test_the_enforcement_mode_is_the_nodes(mode: Enforcement, web: tuple[bool, bool], here: tuple[bool, bool]) -> None:
    endpoints = snapshot_of("n1", POLICY, enforcement=mode)[0].endpoints

    assert (endpoints[WEB].ingress.enforced, endpoints[WEB].egress.enforced) == web
    assert (endpoints[HERE].ingress.enforced, endpoints[HERE].egress.enforced) == here


def test_a_snapshot_has_what_the_configuration_says() -> None:
    settings = NodeSettings(
        "n1",
        (N1, N1_V6, ip_address("172.16.1.1")),
        cluster_interfaces=frozenset({"eth0"}),
        cluster_networks=(ip_network("10.9.0.0/16"),),
        audit=True,
        allow_localhost=False,
        trust_ipcache=True,
    )

    snapshot = build(Documents(), settings, 7, {})[0]

    assert (snapshot.revision, snapshot.endpoints) == (7, {})
    assert snapshot.cluster_interfaces == {"eth0"}
    assert snapshot.node_addresses == {4: N1.packed, 6: N1_V6.packed}  # the first address of each family
    assert snapshot.ipcache.lookup(packed("10.9.0.9")) == Peer(WORLD, remote=True)
    assert (snapshot.audit, snapshot.allow_localhost, snapshot.trust_ipcache) == (True, False, True)


def test_without_settings_a_snapshot_has_the_defaults() -> None:
    snapshot = build(Documents(), NodeSettings("n1"), 1, {})[0]

    assert (snapshot.cluster_interfaces, snapshot.node_addresses, len(snapshot.ipcache)) == (frozenset(), {}, 0)
    assert (snapshot.audit, snapshot.allow_localhost, snapshot.trust_ipcache) == (False, True, False)


CIDRS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: outside, namespace: shop}
spec:
  endpointSelector: {}
  egress: [{toCIDRSet: [{cidr: 203.0.113.0/24, except: [203.0.113.128/25]}]}, {toEntities: [cluster]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: block, namespace: shop}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.2.0.11/32}}]}]}
"""


def test_addresses_outside_have_the_identities_that_policies_name() -> None:
    snapshot, names = snapshot_of("n1", CIDRS)
    ipcache, web = snapshot.ipcache, snapshot.endpoints[WEB]

    inside, hole, other = (ipcache.lookup(packed(f"203.0.{end}")).identity for end in ("113.1", "113.129", "114.1"))
    assert [web.egress.lookup(peer, TCP, 80).allowed for peer in (inside, hole, other)] == [True, False, False]
    assert [str(names.labels(peer)) for peer in (inside, hole, other)] == [
        "cidr:203.0.113.0/24;reserved:world",
        "cidr:203.0.113.128/25;reserved:world",
        "reserved:world",
    ]
    assert not any(travels(peer) for peer in (inside, hole))


@pytest.mark.parametrize(
    ("cidr", "group", "named"),
    [
        ("224.0.0.251/32", "224.0.0.251", True),
        ("224.0.0.0/4", "239.1.1.1", True),
        ("255.255.255.255/32", "255.255.255.255", True),
        ("192.0.0.0/2", "224.0.0.251", False),
        ("ff00::/8", "ff02::fb", True),
        ("::/0", "ff02::fb", False),
    ],
)
def test_a_group_is_named_by_a_prefix_that_has_nothing_but_groups(cidr: str, group: str, named: bool) -> None:
    ipcache = snapshot_of("n1", CIDRS.replace("203.0.113.0/24, except: [203.0.113.128/25]", f'"{cidr}"'))[0].ipcache

    assert ipcache.named_group(packed(group)) == (ipcache.lookup(packed(group)).identity if named else None)


def test_an_ip_block_is_found_by_the_address_of_an_endpoint_of_another_node() -> None:
    snapshot, _ = snapshot_of("n1", CIDRS)
    ipcache, web = snapshot.ipcache, snapshot.endpoints[WEB]

    for address, allowed in ((CLIENT, True), (OTHER_WEB, False)):
        identity = ipcache.lookup(address).identity
        assert web.ingress.lookup(identity, TCP, 80, ipcache.local_identities(address)).allowed is allowed


SHOP = "io.kubernetes.pod.namespace"
A, B, C, STRANGER = Identity(300), Identity(301), Identity(302), Identity(999)
KINDS = {one: Labels.parse({"app": app, SHOP: "shop"}) for one, app in ((A, "a"), (B, "b"), (C, "c"))}
X, Y = packed("10.9.0.1"), packed("10.9.0.2")
NAMED, NAMED_TOO = (frozenset({NamedPort("http", TCP, number)}) for number in (80, 8080))
A_TO_B = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a-to-b, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: b}}, ingress: [{fromEndpoints: [{matchLabels: {app: a}}]}]}
"""
TO_NAMED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: to-named, namespace: shop}
spec: {endpointSelector: {}, egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: http}]}]}]}
"""


def endpoint(name: str, identity: Identity = A, *addresses: bytes, node: str = "n2", **more: Any) -> Change:
    record = EndpointRecord("shop", name, node, identity, addresses or (X,), None, Labels(), "default", frozenset())
    return Change(Kind.ENDPOINT, f"shop/{name}", record._replace(**more))


def identity(number: Identity, labels: Labels | None = None) -> Change:
    return Change(Kind.IDENTITY, str(number), KINDS[number] if labels is None else labels)


def gone(change: Change) -> Change:
    return change._replace(record=None)


def document(text: str) -> Change:
    (policy,) = documents(text).policies
    return Change(Kind.DOCUMENT, "/".join(policy.key), policy)


class Node:
    """Node: the replica of node n1, where b is, and its views."""

    def __init__(self, *changes: Change, **settings: Any) -> None:
        self.replica = Replica(NodeSettings("n1", **settings))
        self.here, self.revision = packed("10.1.0.1"), 0
        b = endpoint("b", B, self.here, node="n1")
        self.first = self.after(*map(identity, KINDS), document(A_TO_B), b, *changes)

    def after(self, *changes: Change) -> View:
        """Apply changes; return the next view."""
        self.replica.apply(changes)
        self.revision += 1
        self.view = self.replica.view(self.revision)
        return self.view

    def lets_in(self, peer: Identity) -> bool:
        return self.view.snapshot.endpoints[self.here].ingress.lookup(peer, TCP, 80).allowed


def test_the_first_view_is_new_whatever_is_in_it() -> None:
    view = Replica(NodeSettings("n1")).view(7)

    assert (view.changed, view.snapshot.revision, view.peer_changes, view.policies) == (True, 7, (), ())
    assert len(view.snapshot.ipcache) == 0


def test_an_endpoint_of_a_known_kind_on_another_node_is_a_peer_and_nothing_else() -> None:
    node = Node()
    view = node.after(endpoint("one"))

    assert view.peer_changes == ((X, Peer(A, remote=True)),)
    assert view.snapshot is node.first.snapshot
    assert (view.changed, view.compilations) == (False, node.first.compilations)
    assert node.replica.peers == {X: Peer(A, remote=True)}

    view = node.after(gone(endpoint("one")))
    assert view.peer_changes == ((X, None),)
    assert view.snapshot is node.first.snapshot
    assert (view.changed, view.compilations, node.replica.peers) == (False, node.first.compilations, {})


def test_a_view_that_fails_is_made_good_by_the_next() -> None:
    data = {"apiVersion": "v1", "kind": "Riddle", "metadata": {"name": "a"}}
    riddle = Change(Kind.DOCUMENT, "Riddle//a", PolicyDocument.model_validate(data))
    node, other = Node(), document(A_TO_B.replace("a-to-b", "c-to-b").replace("{app: a}", "{app: c}"))
    for _ in range(2):
        with pytest.raises(AssertionError):
            node.after(endpoint("one"), other, riddle)

    view = node.after(gone(riddle))
    assert (view.changed, view.peer_changes, len(view.policies)) == (True, ((X, Peer(A, remote=True)),), 2)
    assert node.lets_in(C)


def test_nothing_new_is_nothing_new() -> None:
    node = Node(endpoint("one"))
    view = node.after(endpoint("one"), identity(A), gone(endpoint("two")), document(A_TO_B))

    assert (view.changed, view.peer_changes, view.compilations) == (False, (), node.first.compilations)


def test_a_local_endpoint_of_a_known_kind_is_one_more_and_nothing_is_compiled() -> None:
    node = Node()
    view = node.after(endpoint("twin", B, X, node="n1"))

    assert (view.changed, view.peer_changes, view.compilations) == (True, (), node.first.compilations)
    assert {one.name for one in view.snapshot.endpoints.values()} == {"shop/b", "shop/twin"}
    assert view.snapshot.endpoints[X].ingress is view.snapshot.endpoints[node.here].ingress


def test_many_changes_at_once_are_one_compilation() -> None:
    node = Node()
    view = node.after(
        *(identity(Identity(400 + n), Labels.parse({"app": "a", "n": str(n), SHOP: "shop"})) for n in range(50)),
        *(endpoint(f"e{n}", Identity(400 + n), packed(f"10.3.0.{n}")) for n in range(50)),
        document(TO_NAMED),
    )

    assert (view.changed, view.compilations) == (True, node.first.compilations + 1)
    assert len(view.peer_changes) == 50
    assert node.lets_in(Identity(449))


def test_an_identity_that_comes_is_let_in_and_one_that_goes_is_not() -> None:
    node, labels = Node(), Labels.parse({"app": "a", "tier": "x", SHOP: "shop"})
    assert node.after(identity(STRANGER, labels)).changed
    assert node.lets_in(STRANGER)

    assert node.after(Change(Kind.IDENTITY, str(STRANGER), None)).changed
    assert not node.lets_in(STRANGER)


def test_an_identity_that_means_nothing_here_is_compiled_and_leaves_the_snapshot_as_it_is() -> None:
    node = Node()
    view = node.after(identity(STRANGER, Labels.parse({"app": "x", SHOP: "far"})))

    assert view.compilations == node.first.compilations + 1
    assert (view.changed, view.snapshot) == (False, node.first.snapshot)


def test_a_policy_that_comes_is_a_new_snapshot_and_one_that_goes_too() -> None:
    node = Node()
    other = document(A_TO_B.replace("a-to-b", "c-to-b").replace("{app: a}", "{app: c}"))
    assert not node.lets_in(C)

    view = node.after(other)
    assert (view.changed, view.snapshot.revision, node.lets_in(C)) == (True, 2, True)
    assert [policy.name for policy in view.policies] == ["a-to-b", "c-to-b"]

    view = node.after(gone(other))
    assert (view.changed, view.snapshot.revision, node.lets_in(C)) == (True, 3, False)


def test_a_policy_that_says_the_same_elsewhere_is_listed_from_there_and_not_compiled() -> None:
    node = Node()
    view = node.after(document("\n\n\n" + A_TO_B))

    assert [policy.origin for policy in node.first.policies + view.policies] == ["x.yaml:2", "x.yaml:5"]
    assert (view.changed, view.compilations) == (False, node.first.compilations)


@pytest.mark.parametrize("swapped", [False, True])
def test_an_address_that_moves_ends_at_who_has_it_last_in_either_order(swapped: bool) -> None:
    node = Node(endpoint("old", A))
    changes = [gone(endpoint("old", A)), endpoint("new", C)]
    view = node.after(*(reversed(changes) if swapped else changes))

    assert view.peer_changes == ((X, Peer(C, remote=True)),)
    assert node.replica.peers == {X: Peer(C, remote=True)}


def test_an_address_that_moves_among_endpoints_of_one_identity_is_no_change() -> None:
    node = Node(endpoint("old", A))
    view = node.after(endpoint("new", A), gone(endpoint("old", A)))

    assert view.peer_changes == ()
    assert [one.name for one in view.names] == ["b", "new"]


def test_an_address_that_moves_to_another_node_is_a_change_without_another_peer() -> None:
    """Flows that another node has offloaded have to bear stamps again for the new node."""
    node = Node(endpoint("one", A))
    view = node.after(endpoint("one", A, node="n3"))

    assert (view.changed, view.peer_changes) == (False, ((X, Peer(A, remote=True)),))
    assert node.after(endpoint("one", A, node="n3", account="other")).peer_changes == ()


def test_of_two_who_claim_an_address_the_last_has_it_and_when_it_goes_the_other() -> None:
    node = Node(endpoint("one", A))

    assert node.after(endpoint("two", C)).peer_changes == ((X, Peer(C, remote=True)),)
    assert node.after(gone(endpoint("two"))).peer_changes == ((X, Peer(A, remote=True)),)


@pytest.mark.parametrize("first", [True, False])
def test_an_endpoint_of_this_node_has_its_address_whoever_else_claims_it(first: bool) -> None:
    node = Node()
    claims = [endpoint("mine", C, node="n1"), endpoint("theirs", A)]
    view = node.after(*(claims if first else reversed(claims)))

    assert view.snapshot.endpoints[X].name == "shop/mine"
    assert (view.peer_changes, node.replica.peers) == ((), {})

    view = node.after(gone(endpoint("mine")))
    assert X not in view.snapshot.endpoints
    assert view.peer_changes == ((X, Peer(A, remote=True)),)


def test_a_record_that_is_replaced_leaves_nothing_behind() -> None:
    node = Node(endpoint("one", A, X, Y))

    view = node.after(endpoint("one", A, Y))
    assert view.peer_changes == ((X, None),)

    view = node.after(endpoint("one", C, Y))
    assert view.peer_changes == ((Y, Peer(C, remote=True)),)

    view = node.after(endpoint("one", C, Y, node="n1"))
    assert view.peer_changes == ((Y, None),)
    assert view.snapshot.endpoints[Y].name == "shop/one"

    view = node.after(endpoint("one", C, Y, node="n3"))
    assert view.peer_changes == ((Y, Peer(C, remote=True)),)
    assert Y not in view.snapshot.endpoints
    assert view.compilations == node.first.compilations


def test_other_nodes_are_peers_until_they_go_or_are_somebody() -> None:
    node, n2 = Node(), Change(Kind.NODE, "n2", NodeRecord((N2, N2_V6)))
    peer = Peer(REMOTE_NODE, remote=True, is_node=True)
    view = node.after(n2, Change(Kind.NODE, "n1", NodeRecord((N1,))))
    assert set(view.peer_changes) == {(N2.packed, peer), (N2_V6.packed, peer)}

    host = Peer(C, remote=True, is_node=True)
    assert node.after(endpoint("host", C, N2.packed)).peer_changes == ((N2.packed, host),)
    assert node.after(n2._replace(record=NodeRecord((N2,)))).peer_changes == ((N2_V6.packed, None),)
    assert node.after(gone(n2)).peer_changes == ((N2.packed, Peer(C, remote=True)),)
    assert node.after(gone(endpoint("host"))).peer_changes == ((N2.packed, None),)
    assert list(node.first.names.nodes) == ["n1"]


def test_an_address_of_two_nodes_is_a_nodes_while_either_has_it() -> None:
    n2, n3 = (Change(Kind.NODE, name, NodeRecord((N2,))) for name in ("n2", "n3"))
    node = Node(n2, n3)

    assert node.after(gone(n2)).peer_changes == ()
    assert node.after(gone(n3)).peer_changes == ((N2.packed, None),)


def test_an_endpoint_counts_with_a_number_that_is_not_known_yet_and_gets_its_labels_later() -> None:
    node = Node()
    view = node.after(endpoint("early", STRANGER))
    assert view.peer_changes == ((X, Peer(STRANGER, remote=True)),)
    assert (view.changed, view.names.labels(STRANGER), node.lets_in(STRANGER)) == (False, None, False)

    labels = Labels.parse({"app": "a", "tier": "x", SHOP: "shop"})
    view = node.after(identity(STRANGER, labels))
    assert (view.peer_changes, view.names.labels(STRANGER), node.lets_in(STRANGER)) == ((), labels, True)


def test_an_identity_may_go_before_the_endpoints_that_use_it() -> None:
    node = Node(endpoint("one", A), endpoint("two", A, Y, node="n1"))
    view = node.after(gone(identity(A)))

    assert (view.peer_changes, node.lets_in(A)) == ((), False)
    assert not view.snapshot.endpoints[Y].egress.lookup(B, TCP, 80).allowed
    assert node.after(gone(endpoint("one")), gone(endpoint("two"))).peer_changes == ((X, None),)


@pytest.mark.parametrize(
    ("mode", "policy", "closed"),
    [
        (Enforcement.AUTO, True, True),
        (Enforcement.AUTO, False, False),
        (Enforcement.PER_ENDPOINT, True, True),
        (Enforcement.PER_ENDPOINT, False, False),
        (Enforcement.ALWAYS, False, True),
        (Enforcement.NEVER, True, False),
    ],
)
def test_a_local_endpoint_whose_labels_are_not_known_is_closed_where_there_is_policy(
    mode: Enforcement, policy: bool, closed: bool
) -> None:
    node = Node(endpoint("early", STRANGER, node="n1"), enforcement=mode)
    if not policy:
        node.after(gone(document(A_TO_B)))
    early = node.view.snapshot.endpoints[X]

    outcomes = [side.lookup(peer, TCP, 80) for side in (early.ingress, early.egress) for peer in (A, HOST, WORLD)]
    assert [outcome.allowed for outcome in outcomes] == [not closed] * 6


def test_a_local_endpoint_is_judged_by_its_labels_as_soon_as_they_are_known() -> None:
    node = Node(endpoint("early", STRANGER, node="n1"))
    assert not node.first.snapshot.endpoints[X].ingress.lookup(A, TCP, 80).allowed

    view = node.after(identity(STRANGER, Labels.parse({"app": "b", "tier": "x", SHOP: "shop"})))
    assert view.changed
    assert view.snapshot.endpoints[X].ingress.lookup(A, TCP, 80).allowed


def test_a_local_endpoint_may_have_a_reserved_identity() -> None:
    view = Node(endpoint("init", Identity(5), node="n1")).first

    assert view.snapshot.endpoints[X].ingress.enforced
    assert not view.snapshot.endpoints[X].egress.enforced


def test_two_numbers_for_the_same_labels_are_the_lower_one_in_any_order() -> None:
    for order in ((A, STRANGER), (STRANGER, A)):
        node = Node(*(Change(Kind.IDENTITY, str(number), KINDS[A]) for number in order))

        assert (node.lets_in(A), node.lets_in(STRANGER)) == (True, False)


def test_a_number_that_is_given_again_stands_for_its_new_labels() -> None:
    node = Node()
    node.after(identity(A, KINDS[C]), identity(C, KINDS[A]))

    assert (node.lets_in(A), node.lets_in(C)) == (False, True)


def test_named_ports_of_an_identity_are_compiled_when_they_change_and_only_then() -> None:
    node = Node(document(TO_NAMED), endpoint("one", C, ports=NAMED))

    def out(port: int) -> bool:
        return node.view.snapshot.endpoints[node.here].egress.lookup(C, TCP, port).allowed

    assert (out(80), out(8080)) == (True, False)

    view = node.after(endpoint("two", C, Y, ports=NAMED))
    assert (view.changed, view.compilations) == (False, node.first.compilations)

    view = node.after(gone(endpoint("one")), endpoint("two", C, Y, ports=NAMED_TOO))
    assert (view.changed, view.compilations) == (True, node.first.compilations + 1)
    assert (out(80), out(8080)) == (False, True)


def test_endpoints_of_one_identity_are_told_apart_by_their_named_ports() -> None:
    node = Node(document(TO_NAMED), endpoint("one", C, X, ports=NAMED), endpoint("two", C, Y, ports=NAMED_TOO))

    def out(address: bytes, port: int) -> bool:
        snapshot = node.view.snapshot
        also = snapshot.ipcache.local_identities(address)
        return snapshot.endpoints[node.here].egress.lookup(C, TCP, port, also).allowed

    assert [out(X, 80), out(X, 8080), out(Y, 80), out(Y, 8080)] == [True, False, False, True]

    three = endpoint("three", C, packed("10.9.0.3"), ports=NAMED)
    view = node.after(three)
    assert (view.changed, view.compilations) == (
        True,
        node.first.compilations,
    )  # nothing was compiled, but a site is new
    assert out(packed("10.9.0.3"), 80)

    assert node.after(gone(three)).changed
    assert not out(packed("10.9.0.3"), 80)
    assert not node.after(endpoint("plain", A, packed("10.9.0.4"))).changed

    view = node.after(gone(endpoint("two")))
    assert (view.changed, view.compilations) == (True, node.first.compilations + 1)
    assert view.snapshot.ipcache.local_identities(X) == ()
    assert out(X, 80)


def test_the_directory_follows_and_names_labels_of_namespace_and_account() -> None:
    node = Node(endpoint("one", A, X, labels=Labels.parse({"app": "a", "version": "7"}), account="tester"))
    text = ENDPOINTS.rsplit("---", maxsplit=1)[-1]
    (space,) = documents(text).namespaces
    node.replica.apply([Change(Kind.DOCUMENT, "Namespace//shop", space)])

    one = node.first.names.endpoint(X, A)
    assert one is not None
    assert str(one.labels).split(";") == [
        "k8s:app=a",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=blue",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=tester",
        "k8s:io.kubernetes.pod.namespace=shop",
        "k8s:version=7",
    ]

    node.replica.apply([Change(Kind.DOCUMENT, "Namespace//shop", None)])
    one = node.first.names.endpoint(X, A)
    assert one is not None
    assert "team" not in str(one.labels)


def test_the_directory_knows_who_has_which_address() -> None:
    node = Node(endpoint("one"), Change(Kind.NODE, "n2", NodeRecord((N2,))))

    assert set(node.first.names.addresses()) == {
        KnownAddress("10.1.0.1", B, "n1", "shop/b"),
        KnownAddress("10.9.0.1", A, "n2", "shop/one"),
        KnownAddress(str(N2), REMOTE_NODE, "n2", ""),
    }


def test_a_snapshot_that_was_handed_out_does_not_change() -> None:
    node = Node()
    endpoints, copy = node.first.snapshot.endpoints, dict(node.first.snapshot.endpoints)
    node.after(endpoint("more", B, X, node="n1"), gone(endpoint("b")))

    assert endpoints == copy
    assert replace(node.first.snapshot, revision=5).endpoints == copy


@pytest.mark.parametrize("record", [KINDS[A], NodeRecord(())])
def test_a_record_of_another_kind_is_a_mistake(record: Record) -> None:
    with pytest.raises(TypeError, match="a record of another kind"):
        Node(Change(Kind.ENDPOINT, "shop/x", record))


def test_the_api_server_is_known_by_its_configured_addresses() -> None:
    settings = NodeSettings("n1", cluster="east", kube_apiserver=frozenset(map(ip_address, ("192.0.2.9", str(N2)))))
    replica = Replica(settings)
    replica.apply([Change(Kind.NODE, "n2", NodeRecord((N2,)))])
    view = replica.view(1)
    ipcache = replica.ipcache(replica.peers)

    assert ipcache.lookup(packed("192.0.2.9")).identity == ipcache.lookup(N2.packed).identity == KUBE_APISERVER
    assert view.snapshot.ipcache.lookup(packed("192.0.2.9")).identity == KUBE_APISERVER
    assert set(view.names.addresses()) == {
        KnownAddress("192.0.2.9", KUBE_APISERVER, "", ""),
        KnownAddress(str(N2), KUBE_APISERVER, "n2", ""),
    }


def test_the_api_server_is_known_by_the_backends_of_its_own_service_too() -> None:
    settings = NodeSettings("n1", kube_apiserver=frozenset((ip_address("192.0.2.9"),)))
    replica = replica_of(documents(ENDPOINTS, TO_APISERVER, API_SERVER), settings, NODES)
    backends = "Endpoints/default/kubernetes"

    def servers(revision: int) -> list[bool]:
        ipcache = replica.view(revision).snapshot.ipcache
        addresses = ("192.0.2.9", "198.51.100.1", "2001:db8::1")
        return [ipcache.lookup(packed(address)).identity == KUBE_APISERVER for address in addresses]

    assert servers(1) == [True, True, True]
    assert KnownAddress("198.51.100.1", KUBE_APISERVER, "", "") in set(replica.view(2).names.addresses())
    replica.apply([Change(Kind.DOCUMENT, backends, None)])
    assert servers(3) == [True, False, False]
    replica.apply([document(API_SERVER.replace("198.51.100.1", "198.51.100.2"))])
    assert servers(4) == [True, False, True]


OF_GATEWAYS = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: gateways}
spec: {nodeSelector: {matchLabels: {role: gateway}}, ingress: [{fromEntities: [remote-node]}]}
"""


def test_labels_of_the_node_may_change() -> None:
    settings = NodeSettings("n1", NODES["n1"], own_addresses=frozenset(NODES["n1"]))
    replica = replica_of(documents(OF_GATEWAYS), settings, NODES)
    snapshots = [replica.view(1).snapshot]
    for revision, labels in ((2, {"role": "gateway"}), (3, {"role": "other"})):
        replica.use_labels(Labels.parse(labels))
        snapshots.append(replica.view(revision).snapshot)

    assert [N1.packed in snapshot.endpoints for snapshot in snapshots] == [False, True, False]
    assert [snapshot.revision for snapshot in snapshots] == [1, 2, 3]


TO_APISERVER = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: to-api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toEntities: [kube-apiserver]}]
  ingress: [{fromEntities: [kube-apiserver]}]
"""


@pytest.mark.parametrize(
    ("address", "to_host", "allowed"),
    [
        (packed("192.0.2.9"), False, True),
        (N1.packed, True, True),  # this node itself
        (N2.packed, False, True),  # another node
        (packed("192.0.2.8"), False, False),
        (N1_V6.packed, True, False),
    ],
)
def test_policy_on_the_api_server_holds_for_each_of_its_addresses(address: bytes, to_host: bool, allowed: bool) -> None:
    servers = frozenset((N1, N2, ip_address("192.0.2.9")))
    settings = NodeSettings("n1", NODES["n1"], own_addresses=frozenset(NODES["n1"]), kube_apiserver=servers)
    replica = replica_of(documents(ENDPOINTS, TO_APISERVER), settings, NODES)
    snapshot = with_peers(replica, 1)
    web = WEB if len(address) == 4 else packed("fd01::10")

    def passes(source: bytes, target: bytes, origin: Origin, to_host: bool) -> bool:
        opening = Opening(source, target, TCP, 1000, 443, 0, 0, to_host, WORLD, WORLD)
        try:
            return evaluate(snapshot, opening, origin).refused is None
        except PolicyDenied:
            return False

    assert passes(web, address, Origin("veth-web", None), to_host) is allowed
    if not to_host:
        assert passes(address, web, Origin("eth0", None), False) is allowed


MANY_CIDRS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: many}
spec: {endpointSelector: {}, ingress: [{fromCIDR: [10.0.0.0/24, 10.0.1.0/24]}]}
"""


def test_the_log_names_the_prefix_of_an_address_also_if_many_prefixes_share_an_identity() -> None:
    replica = Replica(NodeSettings("n1"))
    replica.apply([document(MANY_CIDRS)])
    view = replica.view(1)
    address, here = packed("10.0.1.7"), packed("10.1.0.10")

    identity = view.snapshot.ipcache.lookup(address).identity
    end, _ = view.names.ends(Opening(address, here, TCP, 1, 2, 0, 0, True, identity, WORLD))

    assert str(end.labels) == "cidr:10.0.1.0/24;reserved:world"
    assert str(view.names.labels(identity)) == "cidr:10.0.0.0/24;cidr:and-1-more;reserved:world"


def test_the_policy_of_an_endpoint_can_be_asked_for_on_every_node() -> None:
    node = Node(endpoint("far", B, Y, node="n2"), endpoint("early", STRANGER))

    here, far = (node.replica.policy_of(f"shop/{name}")().ingress for name in ("b", "far"))
    assert here is node.view.snapshot.endpoints[node.here].ingress
    assert (far.enforced, far.entries) == (here.enforced, here.entries)
    assert not node.replica.policy_of("shop/early")().ingress.lookup(A, TCP, 80).allowed
    assert not node.replica.policy_of("host")().ingress.enforced
    with pytest.raises(KeyError):
        node.replica.policy_of("shop/nobody")
