"""Rules with nodeSelector: the host is an endpoint at its own addresses while a rule selects it."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.core.identity import HOST, REMOTE_NODE, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.policy_verdict import PolicyDenied, PolicyVerdict, evaluate
from nfq_enforcer.core.tables.conntrack import Opening, Origin
from nfq_enforcer.core.tables.snapshot import HOST_NAME, Snapshot
from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.documents import PolicyDocument
from tests.support.packets import packed

OWN, FLOATING, OTHER_NODE, WEB, FAR, WORLD = map(
    packed, ("172.16.0.1", "172.16.0.9", "172.16.0.2", "10.1.0.10", "10.2.0.10", "198.51.100.7")
)
NUMBER = Identity(7000)
WEB_LABELS = Labels.parse({"app": "web", "io.kubernetes.pod.namespace": "default"})
SETTINGS = NodeSettings(
    "n1", (ip_address(OWN),), frozenset(map(ip_address, (OWN, FLOATING))), frozenset({"eth0"}), labels=Labels()
)
CLOSED = "{nodeSelector: {}, ingress: [{}]}"
FROM_WEB = "{nodeSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}"


def policy(spec: str) -> PolicyDocument:
    text = f"apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    return loader.group_documents(one.document for one in loader.parse(text, "f")).policies[0]


def endpoint(name: str, address: bytes, node: str, interface: str | None = "veth") -> Change:
    labels = Labels.parse({"app": "web"})
    record = EndpointRecord("default", name, node, NUMBER, (address,), interface, labels, "default", frozenset())
    return Change(Kind.ENDPOINT, record.full_name, record)


def node(name: str, address: bytes) -> Change:
    return Change(Kind.NODE, name, NodeRecord((ip_address(address),)))


def snapshot(*specs: str, settings: NodeSettings = SETTINGS, more: tuple[Change, ...] = ()) -> Snapshot:
    replica = Replica(settings)
    replica.apply([Change(Kind.IDENTITY, str(NUMBER), WEB_LABELS), node("n1", OWN), node("n2", OTHER_NODE)])
    replica.apply([endpoint("web", WEB, "n1"), endpoint("far", FAR, "n2"), *more])
    replica.apply([Change(Kind.DOCUMENT, f"p{number}", policy(spec)) for number, spec in enumerate(specs)])
    return replica.view(1).snapshot.with_tables(replica.peers, {NUMBER})


def verdict(of: Snapshot, src: bytes, dst: bytes, origin: Origin, *, to_host: bool = True) -> PolicyVerdict:
    opening = Opening(src, dst, TCP, 40000, 22, -1, -1, to_host, Identity(0), Identity(0))
    return evaluate(of, opening, origin, None if to_host else "eth0")


FROM_FAR, UNSTAMPED, LOCAL, OF_HOST = (
    Origin("eth0", NUMBER),
    Origin("eth0", None),
    Origin("veth", None),
    Origin(None, None),
)


@pytest.mark.parametrize("mode", Enforcement)
def test_without_a_rule_that_selects_it_the_host_is_no_endpoint(mode: Enforcement) -> None:
    settings = replace(SETTINGS, enforcement=mode)

    assert OWN not in snapshot("{endpointSelector: {}, ingress: [{}]}", settings=settings).endpoints
    assert OWN not in snapshot(settings=settings).endpoints


def test_the_host_is_one_endpoint_at_each_of_its_addresses() -> None:
    endpoints = snapshot(CLOSED).endpoints

    assert endpoints[OWN] is endpoints[FLOATING]
    host = endpoints[OWN]
    assert (host.name, host.identity, host.interface, host.is_host) == (HOST_NAME, HOST, None, True)
    assert host.ingress.enforced and not host.egress.enforced


def test_an_endpoint_with_a_document_keeps_its_address() -> None:
    endpoints = snapshot(CLOSED, more=(endpoint("gate", FLOATING, "n1", None),)).endpoints

    assert (endpoints[OWN].name, endpoints[FLOATING].name) == (HOST_NAME, "default/gate")
    assert not endpoints[FLOATING].ingress.enforced


def test_a_rule_names_the_peers_that_reach_the_host() -> None:
    of = snapshot(FROM_WEB)

    for src, origin in ((FAR, FROM_FAR), (WEB, LOCAL)):
        assert verdict(of, src, OWN, origin).opening.destination == HOST
    for src, origin in ((WORLD, UNSTAMPED), (OTHER_NODE, UNSTAMPED)):
        with pytest.raises(PolicyDenied) as denied:
            verdict(of, src, OWN, origin)
        assert denied.value.reason is DropReason.POLICY_DENIED


def test_a_node_is_no_peer_by_the_address_of_another() -> None:
    of = snapshot("{nodeSelector: {}, ingress: [{fromEntities: [remote-node]}]}")

    assert verdict(of, OTHER_NODE, OWN, UNSTAMPED).opening.source == REMOTE_NODE
    with pytest.raises(PolicyDenied):
        verdict(of, FAR, OWN, FROM_FAR)


def test_packets_of_the_host_bear_no_stamp_and_replies_to_it_none_of_its_own() -> None:
    of = snapshot(CLOSED)

    assert verdict(of, OWN, FAR, OF_HOST, to_host=False).stamp is None
    with pytest.raises(PolicyDenied):
        verdict(of, FAR, OWN, FROM_FAR)
    assert verdict(snapshot(FROM_WEB), FAR, OWN, FROM_FAR).reply_stamp is None


def test_the_host_reaches_itself() -> None:
    of = snapshot("{nodeSelector: {}, ingress: [{}], egress: [{}]}")

    assert verdict(of, OWN, FLOATING, OF_HOST).refused is None


def test_egress_rules_limit_the_host() -> None:
    of = snapshot("{nodeSelector: {}, egress: [{toEndpoints: [{matchLabels: {app: web}}]}]}")

    assert verdict(of, OWN, FAR, OF_HOST, to_host=False).opening.source == HOST
    with pytest.raises(PolicyDenied):
        verdict(of, OWN, WORLD, OF_HOST, to_host=False)


@pytest.mark.parametrize(("labels", "selected"), [({"role": "gateway"}, True), ({"role": "store"}, False), ({}, False)])
@pytest.mark.parametrize("mode", [Enforcement.AUTO, Enforcement.PER_ENDPOINT, Enforcement.ALWAYS])
def test_labels_of_the_node_select_it(labels: dict[str, str], selected: bool, mode: Enforcement) -> None:
    settings = replace(SETTINGS, labels=Labels.parse(labels), enforcement=mode)
    of = snapshot("{nodeSelector: {matchLabels: {role: gateway}}, ingress: [{}]}", settings=settings)

    assert (OWN in of.endpoints) is selected
    assert of.endpoints[WEB].ingress.enforced is (mode is Enforcement.ALWAYS)


def test_other_addresses_of_the_host_count_from_the_next_view_on() -> None:
    replica = Replica(SETTINGS)
    replica.apply([Change(Kind.DOCUMENT, "p", policy(CLOSED))])
    before = replica.view(1).snapshot.endpoints
    replica.use(replace(SETTINGS, own_addresses=frozenset({ip_address(OWN)})))

    assert (set(before), set(replica.view(2).snapshot.endpoints)) == ({OWN, FLOATING}, {OWN})
