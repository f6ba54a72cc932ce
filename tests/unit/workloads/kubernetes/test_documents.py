"""Objects of the API as documents that the loader accepts, and events about those that it refuses."""

import json
from typing import Any

import pytest

from nfq_enforcer.policy import loader, registry
from nfq_enforcer.workloads.kubernetes import documents, events
from nfq_enforcer.workloads.kubernetes.documents import WatchedKind

KINDS: dict[str, WatchedKind] = {watched.kind: watched for watched in documents.KINDS}
META = {
    "name": "db",
    "namespace": "shop",
    "uid": "u1",
    "resourceVersion": "17",
    "generation": 2,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "labels": {"a": "b"},
    "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "nfq-enforcer.io/note": "x"},
    "managedFields": [{"manager": "kubectl"}],
}
KEPT = {key: META[key] for key in ("name", "namespace", "uid", "resourceVersion", "generation")}
SPEC = {"podSelector": {}, "policyTypes": ["Ingress"]}


def document(kind: str, **fields: Any) -> dict[str, Any]:
    made = documents.project(KINDS[kind], {"metadata": META, **fields})
    ((parsed),) = loader.parse(json.dumps(made), "api")  # every projection is a document
    assert parsed.document.kind == kind
    return made


def test_a_policy_is_its_spec_and_its_version() -> None:
    assert document("NetworkPolicy", spec=SPEC, status={"conditions": []}) == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**KEPT, "annotations": {"nfq-enforcer.io/note": "x"}},
        "spec": SPEC,
    }


def test_a_policy_may_have_specs() -> None:
    specs: list[dict[str, Any]] = [{"endpointSelector": {}, "ingress": [{}]}]

    assert document("CiliumNetworkPolicy", specs=specs, spec=None)["specs"] == specs


def test_a_namespace_has_the_labels_that_endpoints_can_have() -> None:
    meta = {"name": "shop", "labels": {"team": "blue", "io.cilium.k8s.policy.cluster": "other", "k8s:x": "y"}}

    made = documents.project(KINDS["Namespace"], {"metadata": meta, "spec": {"finalizers": ["kubernetes"]}})

    assert made == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": made["metadata"]["labels"]},
    }
    assert made["metadata"]["labels"]["team"] == "blue"
    assert "io.cilium.k8s.policy.cluster" not in made["metadata"]["labels"]


def test_a_service_is_its_labels_and_selector() -> None:
    made = document("Service", spec={"selector": {"role": "db"}, "clusterIP": "10.96.0.1", "ports": [{"port": 80}]})

    assert made["spec"] == {"selector": {"role": "db"}}
    assert made["metadata"]["labels"] == {"a": "b"}
    assert document("Service", spec={"type": "ExternalName", "externalName": "example.com"})["spec"] == {}


def test_a_slice_is_its_addresses() -> None:
    backends = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "nodeName": "n1"}]

    made = document("EndpointSlice", addressType="IPv4", endpoints=backends, ports=[{"port": 80}])

    assert made["addressType"] == "IPv4"
    assert made["endpoints"] == [{"addresses": ["10.0.0.1"]}]
    assert document("EndpointSlice", addressType="IPv4", endpoints=None)["endpoints"] == []


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_one_of_the_loaders(kind: str) -> None:
    assert KINDS[kind].api_version == registry.KINDS[kind][0]


def test_an_event_names_its_object_and_is_the_same_on_every_node() -> None:
    refused = document("NetworkPolicy", spec=SPEC)

    event = events.refused(refused, "spec.x: unknown field 'x'", "2026-01-01T00:00:00Z")

    assert event["involvedObject"] == {
        **{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop", "name": "db"},
        **{"uid": "u1", "resourceVersion": "17"},
    }
    assert (event["type"], event["reason"], event["message"]) == (
        *("Warning", "PolicyRefused"),
        "spec.x: unknown field 'x'",
    )
    later = events.refused(refused, "spec.x: unknown field 'x'", "2026-01-02T00:00:00Z")
    assert later["metadata"] == event["metadata"]
    assert event["metadata"]["namespace"] == "shop"


def test_another_generation_or_reason_has_an_event_of_its_own() -> None:
    first = document("NetworkPolicy", spec=SPEC)
    second = {**first, "metadata": {**first["metadata"], "generation": 3}}

    names = {
        events.refused(one, reason, "now")["metadata"]["name"]
        for one, reason in ((first, "a"), (first, "b"), (second, "a"))
    }

    assert len(names) == 3


def test_an_event_of_a_clusterwide_object_is_short_and_in_the_default_namespace() -> None:
    refused = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "n" * 253}}

    event = events.refused(refused, "x" * 5000, "now")

    assert event["metadata"]["namespace"] == "default"
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) <= 1024
    assert "namespace" not in event["involvedObject"]


def test_a_group_of_prefixes_keeps_the_labels_by_which_rules_select_it() -> None:
    assert document("CiliumCIDRGroup", spec={"externalCIDRs": []})["metadata"]["labels"] == {"a": "b"}
