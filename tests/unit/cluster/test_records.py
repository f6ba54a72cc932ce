"""Records: of documents, an endpoint's document from its record, and the changes between two states."""

import json

import pytest

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, changes_between, records_of
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.wire.packet import TCP, UDP
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.rules import NamedPort
from tests.support.packets import packed

PLAIN = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: plain}
spec: {ips: [10.1.0.11]}
"""
FULL = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web, "container:tier": front, plain: ""}}
spec:
  node: n2
  ips: [10.1.0.10, "fd01::10"]
  interface: veth-web
  serviceAccount: tester
  ports: [{name: HTTP, port: 80}, {name: dns, port: 53, protocol: UDP}]
"""
SPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: blue}}\n"
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {endpointSelector: {}, ingress: [{}]}
"""


def documents(*texts: str) -> Documents:
    return loader.group_documents(one.document for text in texts for one in loader.parse(text, "x.yaml"))


def record(text: str) -> EndpointRecord:
    (endpoint,) = documents(text).endpoints
    (found,) = (one for one in records_of(documents(text), "n1").values() if isinstance(one, EndpointRecord))
    assert found == EndpointRecord.of(endpoint, found.identity, "n1")
    return found


def test_a_record_has_what_the_document_says() -> None:
    web = record(FULL)

    assert (web.full_name, web.node, web.interface, web.account) == ("shop/web", "n2", "veth-web", "tester")
    assert web.addresses == (packed("10.1.0.10"), packed("fd01::10"))
    assert web.labels == Labels.parse({"app": "web", "container:tier": "front", "plain": ""})
    assert web.ports == {NamedPort("http", TCP, 80), NamedPort("dns", UDP, 53)}


def test_what_a_document_does_not_say_is_as_ever() -> None:
    plain = record(PLAIN)

    assert (plain.full_name, plain.node, plain.interface, plain.account) == ("default/plain", "n1", None, "default")
    assert (plain.labels, plain.ports) == (Labels(), frozenset())


@pytest.mark.parametrize("text", [PLAIN, FULL])
def test_what_is_written_of_a_record_is_read_as_that_record(text: str) -> None:
    before = record(text)
    (again,) = loader.parse(json.dumps(before.document()), "y.yaml")

    assert isinstance(again.document, Endpoint)
    assert EndpointRecord.of(again.document, before.identity, "elsewhere") == before


def test_documents_make_records_of_all_they_name() -> None:
    state = records_of(documents(FULL, PLAIN, SPACE, POLICY), "n1")
    web, plain = record(FULL), record(PLAIN)

    assert [key for key in state if key[0] is not Kind.IDENTITY] == [
        (Kind.DOCUMENT, "Namespace//shop"),
        (Kind.DOCUMENT, "CiliumNetworkPolicy/shop/closed"),
        (Kind.ENDPOINT, "shop/web"),
        (Kind.ENDPOINT, "default/plain"),
    ]
    assert state[Kind.ENDPOINT, "default/plain"] == plain
    made = state[Kind.ENDPOINT, "shop/web"]
    assert isinstance(made, EndpointRecord)
    assert made.identity != web.identity  # with a label of its namespace
    assert "k8s:io.cilium.k8s.namespace.labels.team=blue" in str(state[Kind.IDENTITY, str(made.identity)])


def test_changes_are_what_is_gone_and_then_what_is_new_or_different() -> None:
    before, now = records_of(documents(PLAIN, POLICY), "n1"), records_of(documents(PLAIN, SPACE), "n2")

    assert changes_between(before, before) == []
    assert changes_between(before, now) == [
        Change(Kind.DOCUMENT, "CiliumNetworkPolicy/shop/closed", None),
        Change(Kind.DOCUMENT, "Namespace//shop", now[Kind.DOCUMENT, "Namespace//shop"]),
        Change(Kind.ENDPOINT, "default/plain", now[Kind.ENDPOINT, "default/plain"]),
    ]
