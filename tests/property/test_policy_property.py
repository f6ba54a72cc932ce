"""A naive reader of policy documents and the compiled maps agree on every probe; and any text is answered.

The naive reader works on the plain data of the documents, one probe at a time, and shares nothing with the compiler.
"""

import json
from contextlib import suppress
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.core.identity import RESERVED, derive
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import located
from nfq_enforcer.policy.compiler import Enforcement, compile_policy
from nfq_enforcer.policy.documents import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from nfq_enforcer.policy.loader import parse

Spec = dict[str, Any]
NAMESPACES = ["one", "two"]
NAMESPACE = "io.kubernetes.pod.namespace"
TEAM = "io.cilium.k8s.namespace.labels.team"
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
PROBES = [(6, 80), (6, 443), (17, 80), (132, 443), (1, 0)]
ENDPOINTS = [
    Labels([Label("k8s", NAMESPACE, namespace), Label("k8s", TEAM, namespace[0]), *own])
    for namespace, own in product(
        NAMESPACES,
        [
            (),
            (Label("k8s", "app", "a"),),
            (Label("k8s", "app", "b"), Label("vm", "tier", "x")),
            (Label("k8s", "app", "a"), Label("vm", "app", "b"), Label("k8s", "tier", "")),
        ],
    )
]
IDENTITIES = derive(ENDPOINTS)
PEERS = {**IDENTITIES, **{labels: number for number, labels in RESERVED.items()}}


# --- the naive reader ---


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


def matches(selector: Spec, labels: Labels) -> bool:
    wanted = [(key, "In", [value]) for key, value in selector.get("matchLabels", {}).items()]
    wanted += [(one["key"], one["operator"], one.get("values", [])) for one in selector.get("matchExpressions", [])]
    return all(holds(labels, *one) for one in wanted)


def keys(selector: Spec) -> list[tuple[str, str]]:
    written = [*selector.get("matchLabels", {}), *(one["key"] for one in selector.get("matchExpressions", []))]
    return [written_key(key) for key in written]


def namespace_of(labels: Labels) -> str | None:
    return next((label.value for label in labels if label.key == NAMESPACE), None)


def is_subject(selector: Spec, namespace: str, labels: Labels) -> bool:
    if not namespace:
        return matches(selector, labels)
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


def covers(port: Spec, proto: int, number: int) -> bool:
    protocol = port.get("protocol", "ANY")
    return (
        proto in PROTOCOLS.values()
        and (protocol == "ANY" or PROTOCOLS[protocol] == proto)
        and port["port"] in {"0", str(number)}
    )


def opens(entry: Spec, namespace: str, peer: Labels, proto: int, number: int) -> bool:
    peers = entry.get("fromEndpoints", entry.get("toEndpoints"))
    ports = entry.get("toPorts") or []
    allowed = bool(ports) if peers is None else any(is_peer(selector, namespace, peer) for selector in peers)
    return allowed and (not ports or any(covers(port, proto, number) for one in ports for port in one.get("ports", [])))


Entry = tuple[Spec, str, Spec, tuple[str, int, int]]  # selector, namespace, entry, (name, spec, number)


def entries_of(policies: list[tuple[str, list[Spec]]], direction: str) -> list[Entry]:
    return [
        (spec["endpointSelector"], namespace, entry, (f"p{number}", index, place))
        for number, (namespace, specs) in enumerate(policies)
        for index, spec in enumerate(specs)
        for place, entry in enumerate(spec.get(direction, []))
    ]


def is_enforced(entries: list[Entry], mode: Enforcement, endpoint: Labels) -> bool:
    return {
        Enforcement.AUTO: bool(entries),
        Enforcement.PER_ENDPOINT: any(is_subject(selector, space, endpoint) for selector, space, _, _ in entries),
        Enforcement.ALWAYS: True,
        Enforcement.NEVER: False,
    }[mode]


# --- random documents ---

KEYS = st.sampled_from(
    ["app", "k8s:app", "vm:app", "any:tier", "tier", NAMESPACE, f"k8s:{NAMESPACE}", TEAM, "reserved:world"]
)
VALUES = st.sampled_from(["a", "b", "x", "", "one", "two", "o"])
EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(VALUES, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(KEYS, VALUES, max_size=2),
        "matchExpressions": st.lists(EXPRESSIONS, max_size=2),
    },
)
PORTS = st.fixed_dictionaries(
    {"port": st.sampled_from(["0", "80", "443"])}, optional={"protocol": st.sampled_from([*PROTOCOLS, "ANY"])}
)
TO_PORTS = st.lists(st.fixed_dictionaries({}, optional={"ports": st.lists(PORTS, max_size=3)}), max_size=2)


def directed(peers: str) -> st.SearchStrategy[list[Spec]]:
    optional = {peers: st.lists(SELECTORS, max_size=2), "toPorts": TO_PORTS}
    return st.lists(st.fixed_dictionaries({}, optional=optional), max_size=2)


SPECS = st.fixed_dictionaries(
    {"endpointSelector": SELECTORS, "ingress": directed("fromEndpoints"), "egress": directed("toEndpoints")}
).filter(lambda spec: bool(spec["ingress"] or spec["egress"]))
POLICIES = st.lists(st.tuples(st.sampled_from(["", *NAMESPACES]), st.lists(SPECS, min_size=1, max_size=2)), max_size=3)


def document(number: int, namespace: str, specs: list[Spec]) -> CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy:
    model = CiliumNetworkPolicy if namespace else CiliumClusterwideNetworkPolicy
    metadata = {"name": f"p{number}", **({"namespace": namespace} if namespace else {})}
    return model.model_validate(
        {"apiVersion": "cilium.io/v2", "kind": model.__name__, "metadata": metadata, "specs": specs}
    )


@settings(max_examples=300, deadline=None)
@given(POLICIES, st.sampled_from(Enforcement), st.sampled_from(ENDPOINTS))
def test_a_naive_reading_of_the_documents_agrees_with_the_compiled_maps(
    policies: list[tuple[str, list[Spec]]], mode: Enforcement, endpoint: Labels
) -> None:
    documents = [document(number, namespace, specs) for number, (namespace, specs) in enumerate(policies)]
    maps = compile_policy(documents, IDENTITIES, mode).maps_for(endpoint)

    for direction, compiled in maps._asdict().items():
        entries = entries_of(policies, direction)
        assert compiled.enforced == is_enforced(entries, mode, endpoint)
        for (peer, identity), (proto, number) in product(PEERS.items(), PROBES):
            expected = {
                place
                for selector, namespace, entry, place in entries
                if is_subject(selector, namespace, endpoint) and opens(entry, namespace, peer, proto, number)
            }
            found = compiled.lookup(identity, proto, number)
            if mode is not Enforcement.NEVER:
                assert {(ref.name, ref.spec, ref.number) for ref in found} == expected
                assert len(found) == len(expected)


@settings(max_examples=500, deadline=None)
@given(st.text() | st.text(alphabet="[]{}:,-&*!|>%@?# \n\t'\"ab<0.~"))
def test_any_text_gives_documents_or_errors(text: str) -> None:
    with suppress(DocumentErrors):
        parse(text, "x.yaml")


@settings(max_examples=200, deadline=None)
@given(st.binary())
def test_any_bytes_give_text_or_an_error(raw: bytes) -> None:
    with suppress(DocumentError):
        located.decode(raw, "x.yaml")


FIELDS = st.sampled_from(
    ["name", "labels", "ips", "ports", "port", "endpointSelector", "matchLabels", "ingress", "toPorts", "x"]
)
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=12,
)
KINDS = st.sampled_from(["Endpoint", "Namespace", "CiliumNetworkPolicy", "List"]) | SHAPES
VERSIONS = st.sampled_from(["v1", "cilium.io/v2", "nfq-enforcer.io/v1"]) | SHAPES


@settings(max_examples=500, deadline=None)
@given(
    st.fixed_dictionaries(
        {"kind": KINDS, "apiVersion": VERSIONS},
        optional=dict.fromkeys(("metadata", "spec", "specs", "items", "x"), SHAPES),
    )
)
def test_a_document_of_any_shape_is_taken_or_refused(data: Spec) -> None:
    with suppress(DocumentErrors):
        parse(json.dumps(data), "x.yaml")
