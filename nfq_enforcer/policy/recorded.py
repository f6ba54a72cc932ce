"""Recorded flows: connections and requests that were observed, as input of ``policy suggest`` and ``policy impact``.

A flow has no port of its opener: connections between two ends to one port are one flow, which was seen several times.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from nfq_enforcer.core.labels import DEFAULT_SOURCE, Label, Labels
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.fields import ACCOUNT_KEY, NAMESPACE_LABELS, Address
from nfq_enforcer.policy.loader import Documents, from_data
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.writing import entity_of, namespace_of, own_labels

_NO_ENDPOINT = frozenset(("reserved", "cidr", "fqdn"))  # sources of labels that no endpoint is given by a person
_NAME_LABEL = "kubernetes.io/metadata.name"


class RecordedEnd(NamedTuple):
    """RecordedEnd: one end of a recorded flow, with its names at that time."""

    address: Address
    labels: Labels | None  # of its identity; None: not known to the node that recorded the flow
    namespace: str = ""
    name: str = ""  # empty: not an endpoint, or one without a name
    fqdns: tuple[str, ...] = ()  # names that DNS answers gave to the address, for the opener of the flow

    @property
    def written_labels(self) -> Labels:
        """Return the labels that a person has written for it."""
        return _written(self.labels) if self.labels is not None else Labels()

    @property
    def is_endpoint(self) -> bool:
        """Return whether it is an endpoint, so that policies can select it."""
        return self.labels is not None and bool(self.namespace or namespace_of(self.labels) or self.written_labels)

    @property
    def entity(self) -> str | None:
        """Return the entity that it is, such as ``host``; None for an endpoint and an address outside."""
        return None if self.labels is None or self.is_endpoint else entity_of(self.labels)

    @property
    def home(self) -> str:
        """Return the namespace of an endpoint."""
        return (self.labels and namespace_of(self.labels)) or self.namespace or "default"

    def is_same_endpoint(self, other: "RecordedEnd") -> bool:
        """Return whether both are one endpoint, maybe at two of its addresses."""
        if self.name and other.name:
            return (self.namespace, self.name) == (other.namespace, other.name)
        return self.is_endpoint and self.address == other.address

    def __str__(self) -> str:
        """Render as ``default/front1``, as the labels of an endpoint without a name, as an entity or an address."""
        if self.name:
            return f"{self.namespace}/{self.name}"
        return str(self.entity or (self.written_labels if self.is_endpoint else self.address))


@lru_cache(maxsize=1 << 12)
def _written(labels: Labels) -> Labels:
    return own_labels(label for label in labels if label.source not in _NO_ENDPOINT)


class RecordedFlow(NamedTuple):
    """RecordedFlow: both ends, and the port (or ICMP type) at the target; with a request, that of layer 7."""

    source: RecordedEnd
    target: RecordedEnd
    traffic: TrafficSpec


class Seen(NamedTuple):
    """Seen: how often and when a flow was observed."""

    times: int  # connections, or requests of a flow with a request
    last: float  # s since the epoch
    refused: Mapping[Direction, int]  # those that policy did not allow at that time, by the side that refused


class RecordedCluster(NamedTuple):
    """RecordedCluster: documents in which every end of recorded flows exists."""

    documents: Documents
    references: Mapping[RecordedEnd, str]  # as the simulation takes them
    unknown: tuple[RecordedEnd, ...]  # endpoints of which no document can be made


def with_ends(documents: Documents, ends: Iterable[RecordedEnd]) -> RecordedCluster:
    """Return documents, and an Endpoint document for each end that is an endpoint and has none by its name.

    It has the labels and the address of the flow. An address may have belonged to several endpoints in turn.
    """
    references: dict[RecordedEnd, str] = {}
    endpoints, namespaces = list(documents.endpoints), {one.name: one for one in documents.namespaces}
    names = {f"{one.namespace}/{one.name}" for one in endpoints}
    unknown: list[RecordedEnd] = []
    known, same = frozenset(names), Counter[tuple[str, str]]()
    for end in dict.fromkeys(ends):
        if f"{end.namespace}/{end.name}" in known:
            references[end] = f"{end.namespace}/{end.name}"
        elif not end.is_endpoint:
            references[end] = f"reserved:{end.entity}" if end.entity else f"ip:{end.address}"
        else:
            try:
                made = from_data(_endpoint_and_namespace(end, names, same))
            except ValidationError:
                unknown.append(end)
                continue
            endpoints += made.endpoints
            references[end] = f"{made.endpoints[0].namespace}/{made.endpoints[0].name}"
            names.add(references[end])
            namespaces.setdefault(end.home, made.namespaces[0])
    all_documents = Documents(tuple(endpoints), tuple(namespaces.values()), documents.policies)
    return RecordedCluster(all_documents, references, tuple(unknown))


def _endpoint_and_namespace(
    end: RecordedEnd, taken: Container[str], same: Counter[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the documents; ``same`` counts the ends of a name, so that the next number is found at once."""
    stem = name = end.name or "endpoint"
    while f"{end.home}/{name}" in taken:
        same[end.home, stem] += 1
        name = f"{stem}-{same[end.home, stem] + 1}"
    written = {f"{label.source}:{label.key}": label.value for label in end.written_labels}
    inherited = {
        f"{label.source}:{label.key.removeprefix(NAMESPACE_LABELS)}": label.value
        for label in end.labels or ()
        if label.key.startswith(NAMESPACE_LABELS) and label.key != NAMESPACE_LABELS + _NAME_LABEL
    }
    spec = {"ips": [str(end.address)], "serviceAccount": _account(end.labels or Labels())}
    metadata = {"name": name, "namespace": end.home, "labels": written}
    return [
        {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": end.home, "labels": inherited}},
    ]


def _account(labels: Labels) -> str:
    found: tuple[Label, ...] = labels.find(DEFAULT_SOURCE, ACCOUNT_KEY)
    return found[0].value if found else "default"
