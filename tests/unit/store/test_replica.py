"""The replica: from documents and nodes to what the workers of one node judge by."""

from ipaddress import ip_address, ip_network

import pytest

from nfq_enforcer.core.identity import REMOTE_NODE, WORLD, travels
from nfq_enforcer.core.ipcache import Ipcache, Peer
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.core.packet import TCP
from nfq_enforcer.errors import DocumentErrors
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.store.replica import NodeSettings, View, build
from tests.packets import packed

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
    return loader.gather(one.document for text in texts for one in loader.parse(text, "x.yaml"))


def view(name: str = "n1", *texts: str, enforcement: Enforcement = Enforcement.AUTO) -> View:
    settings = NodeSettings(name, NODES.get(name, ()), enforcement=enforcement)
    return build(documents(ENDPOINTS, *texts), settings, 3, NODES)


def ipcache_of(one: View) -> Ipcache:
    """Return what a worker makes of the view."""
    return one.snapshot.over(one.peers).ipcache


def test_the_endpoints_of_a_node_are_local_to_it_under_each_address() -> None:
    endpoints = view("n1").snapshot.endpoints

    assert {address: (one.name, one.interface) for address, one in endpoints.items()} == {
        WEB: ("shop/web", "veth-web"),
        packed("fd01::10"): ("shop/web", "veth-web"),
        HERE: ("shop/here", None),
    }


def test_an_endpoint_without_a_node_is_local_to_whoever_loads_it() -> None:
    endpoints = view("n2").snapshot.endpoints

    assert {one.name for one in endpoints.values()} == {"other/web", "shop/client", "shop/here"}


def test_endpoints_of_other_nodes_and_those_nodes_are_peers_to_be_stamped() -> None:
    one = view("n1")
    identities = {f"{e.namespace}/{e.name}": e.identity for e in one.directory.endpoints}

    ipcache = ipcache_of(one)
    assert len(ipcache) == 5
    assert ipcache.lookup(OTHER_WEB) == Peer(identities["other/web"], remote=True)
    assert ipcache.lookup(packed("fd02::10")) == Peer(identities["other/web"], remote=True)
    assert ipcache.lookup(CLIENT) == Peer(identities["shop/client"], remote=True)
    assert ipcache.lookup(N2.packed) == ipcache.lookup(N2_V6.packed) == Peer(REMOTE_NODE, remote=True)


@pytest.mark.parametrize("address", [WEB, HERE, N1.packed, N1_V6.packed, packed("203.0.113.9")])
def test_what_is_on_this_node_and_what_nobody_knows_is_no_peer(address: bytes) -> None:
    assert ipcache_of(view("n1")).lookup(address) == Peer(WORLD, remote=False)


def test_an_endpoint_that_has_an_address_of_the_host_is_the_host_itself() -> None:
    settings = NodeSettings("n1", own_addresses=frozenset({ip_address("192.168.7.7")}))

    endpoints = build(documents(ENDPOINTS), settings, 1, {}).snapshot.endpoints

    assert (endpoints[HERE].is_host, endpoints[WEB].is_host) == (True, False)


def test_a_node_that_is_an_endpoint_is_known_as_the_endpoint() -> None:
    settings = NodeSettings("n1", (N1,))
    text = ENDPOINTS.replace("10.2.0.11", str(N2))

    peer = ipcache_of(build(documents(text), settings, 1, NODES)).lookup(N2.packed)

    assert travels(peer.identity)
    assert peer.remote


def test_two_nodes_with_the_same_documents_agree_on_every_identity() -> None:
    first, second = view("n1").directory, view("n2").directory

    assert first.identities == second.identities
    assert {(e.namespace, e.name): e.identity for e in first.endpoints} == {
        (e.namespace, e.name): e.identity for e in second.endpoints
    }


def test_equal_labels_are_one_identity_and_a_namespace_is_a_label() -> None:
    two = ENDPOINTS.replace("name: client, namespace: shop", "name: twin, namespace: shop").replace(
        "10.2.0.11", "10.2.0.12"
    )
    settings = NodeSettings("n1")
    known = build(documents(ENDPOINTS, two.split("---")[2]), settings, 1, {}).directory

    identities = {f"{e.namespace}/{e.name}": e.identity for e in known.endpoints}
    assert identities["shop/client"] == identities["shop/twin"]
    assert len({identities[name] for name in ("shop/web", "other/web", "shop/client", "shop/here")}) == 4


def test_only_relevant_labels_make_an_identity_and_the_others_are_shown() -> None:
    settings = NodeSettings("n1", relevant=LabelFilter(["!version"]))

    known = build(documents(ENDPOINTS), settings, 1, {}).directory

    web = next(e for e in known.endpoints if (e.namespace, e.name) == ("shop", "web"))
    made = known.labels(web.identity)
    assert made == Labels.parse(
        {
            "app": "web",
            "io.kubernetes.pod.namespace": "shop",
            "io.cilium.k8s.policy.serviceaccount": "default",
            "io.cilium.k8s.namespace.labels.team": "blue",
            "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "shop",
        }
    )
    assert web.labels == made.union(Labels.parse({"version": "7"}))


def test_the_directory_names_every_endpoint_of_the_cluster_by_each_address() -> None:
    known = view("n1").directory

    assert [(e.namespace, e.name, e.node, e.addresses, e.interface) for e in known.endpoints] == [
        ("shop", "web", "n1", ("10.1.0.10", "fd01::10"), "veth-web"),
        ("other", "web", "n2", ("10.2.0.10", "fd02::10"), "veth-web"),
        ("shop", "client", "n2", ("10.2.0.11",), None),
        ("shop", "here", "n1", ("192.168.7.7",), None),
    ]
    web = known.endpoints[0]
    assert known.endpoint(WEB, web.identity) is known.endpoint(packed("fd01::10"), web.identity) is web


def test_policy_guards_the_endpoints_of_this_node() -> None:
    one = view("n1", POLICY)
    client = next(e.identity for e in one.directory.endpoints if e.name == "client")

    web = one.snapshot.endpoints[WEB]
    assert [str(rule) for rule in web.ingress.lookup(client, TCP, 80).rules] == ["shop/clients-to-web ingress[0]"]
    assert not web.ingress.lookup(client, TCP, 81).allowed
    assert not web.ingress.lookup(WORLD, TCP, 80).allowed
    assert (web.ingress.enforced, web.egress.enforced) == (True, False)
    assert one.snapshot.endpoints[HERE].ingress.enforced


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
    endpoints = view("n1", POLICY, enforcement=mode).snapshot.endpoints

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
        believe_ipcache=True,
    )

    snapshot = build(Documents(), settings, 7, {}).snapshot

    assert (snapshot.revision, snapshot.endpoints) == (7, {})
    assert snapshot.cluster_interfaces == {"eth0"}
    assert snapshot.node_addresses == {4: N1.packed, 6: N1_V6.packed}  # the first of each family
    assert snapshot.ipcache.lookup(packed("10.9.0.9")) == Peer(WORLD, remote=True)
    assert (snapshot.audit, snapshot.allow_localhost, snapshot.believe_ipcache) == (True, False, True)


def test_without_settings_a_snapshot_has_the_defaults() -> None:
    one = build(Documents(), NodeSettings("n1"), 1, {})
    snapshot = one.snapshot

    assert (snapshot.cluster_interfaces, snapshot.node_addresses, one.peers) == (frozenset(), {}, {})
    assert (snapshot.audit, snapshot.allow_localhost, snapshot.believe_ipcache) == (False, True, False)


def test_a_view_has_the_documents_it_was_made_of() -> None:
    given = documents(ENDPOINTS, POLICY)

    assert build(given, NodeSettings("n1"), 1, {}).documents is given


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
    one = view("n1", CIDRS)
    ipcache, web = ipcache_of(one), one.snapshot.endpoints[WEB]

    inside, hole, other = (ipcache.lookup(packed(f"203.0.{end}")).identity for end in ("113.1", "113.129", "114.1"))
    assert [web.egress.lookup(peer, TCP, 80).allowed for peer in (inside, hole, other)] == [True, False, False]
    assert [str(one.directory.labels(peer)) for peer in (inside, hole, other)] == [
        "cidr:203.0.113.0/24;reserved:world",
        "cidr:203.0.113.128/25;reserved:world",
        "reserved:world",
    ]
    assert not any(travels(peer) for peer in (inside, hole))


def test_an_ip_block_is_found_by_the_address_of_an_endpoint_of_another_node() -> None:
    one = view("n1", CIDRS)
    ipcache, web = ipcache_of(one), one.snapshot.endpoints[WEB]

    for address, allowed in ((CLIENT, True), (OTHER_WEB, False)):
        identity = ipcache.lookup(address).identity
        assert web.ingress.lookup(identity, TCP, 80, ipcache.local_identities(address)).allowed is allowed


UNENFORCEABLE = {
    "http": "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: a, protocol: TCP}], rules: {http: [{}]}}]}]}",
    "dns": "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: a}]}}]}]}",
    "nodeSelector": "{nodeSelector: {}, ingress: [{}]}",
}


@pytest.mark.parametrize("what", UNENFORCEABLE)
def test_what_is_understood_but_not_enforced_yet_is_refused(what: str) -> None:
    text = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: a}\nspec: "

    with pytest.raises(DocumentErrors) as caught:
        view("n1", text + UNENFORCEABLE[what])

    assert str(caught.value).startswith("x.yaml:1: CiliumClusterwideNetworkPolicy a: ")
    assert what in str(caught.value)
    assert "validate, trace and matrix, but this version has no" in str(caught.value)
