"""Counts of flow events by source and destination workload, of limited number. Pure.

A workload is the namespace with the labels of an identity, so its name depends neither on nodes nor on replicas:
``shop/app=web``. An identity without an endpoint has its reserved name: ``world``. Pairs beyond the limit count
together as ``(other)``, so labels from documents cannot grow the metrics of a node without end.
"""

from collections.abc import Iterable, Iterator

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.labels import Label
from nfq_enforcer.observe.http_counts import OTHER
from nfq_enforcer.observe.status import WorkloadFlowCount

_UNKNOWN = "unknown"
_RESERVED = "reserved"
_DERIVED = "io."  # a part of the keys that Cilium adds: io.kubernetes.pod.namespace, io.cilium.k8s.policy.cluster
_NAMESPACE = "io.kubernetes.pod.namespace"
_LONGEST = 128  # characters of a name


class WorkloadFlows:
    """Workload flows: events by pair of workloads and verdict."""

    def __init__(self, limit: int) -> None:
        """Count the first so many pairs by themselves."""
        self._limit = limit
        self._pairs: set[tuple[str, str]] = set()
        self._counts: dict[tuple[str, str, str], int] = {}

    def add(self, event: FlowEvent, ends: Ends) -> None:
        """Count a new flow or a drop; a message of a flow with layer-7 rules and the end of a flow are none of both."""
        if event.l7 is not None or event.end is not None:
            return
        pair = workload(ends.source), workload(ends.destination)
        if pair not in self._pairs:
            if len(self._pairs) >= self._limit:
                pair = OTHER, OTHER
            else:
                self._pairs.add(pair)
        key = (*pair, str(event.verdict))
        self._counts[key] = self._counts.get(key, 0) + 1

    def read(self) -> Iterator[WorkloadFlowCount]:
        """Yield the counts, in the order of their first events."""
        yield from (WorkloadFlowCount(*key, count) for key, count in self._counts.items())


def workload(end: End) -> str:
    """Return the name of the workload at one end of a flow."""
    if not end.labels:
        return _UNKNOWN
    labels = list(end.labels)
    if reserved := [label.key for label in labels if label.source == _RESERVED]:
        return reserved[0]
    namespace = next((label.value for label in labels if label.key == _NAMESPACE), end.namespace or "")
    return f"{namespace}/{','.join(_own(labels))}"[:_LONGEST]


def _own(labels: Iterable[Label]) -> list[str]:
    """Return the labels that a user has written, without their source."""
    return sorted(
        f"{label.key}={label.value}" if label.value else label.key
        for label in labels
        if not label.key.startswith(_DERIVED)
    )
