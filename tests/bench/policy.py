"""Cost of the policy compiler: 1,000 policies, 5,000 identities and 50 local endpoints, at once and incrementally."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.cilium import CiliumNetworkPolicy
from nfq_enforcer.policy.compiler import Enforcement, Policy, compile_policy

_POLICIES, _IDENTITIES, _LOCAL = 1000, 5000, 50
_FEW, _MANY = 10, 10_000
_LOOKUPS = 20_000
_PASSES = 5  # over all look-ups: the fastest pass is the figure, because other load only slows a pass down
_CHANGES = 20  # of each kind in a repetition, whose figure is their median

COLD, PEAK = "full compilation, s", "its peak memory with the interpreter's, MiB"
IDENTITY_ADDED, IDENTITY_REMOVED = "identity added, ms", "identity removed, ms"
POLICY_CHANGED, POLICY_ADDED = "policy changed, ms", "policy added, ms"
LOOKUP_FEW, LOOKUP_MANY = f"look-up with {_FEW} policies, ns", f"look-up with {_MANY:,} policies, ns"


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return figures for each case, one for each repetition."""
    documents = [_document(number) for number in range(_POLICIES)]
    policy = _with_maps(_compile(documents))
    figures: dict[str, list[float]] = {}
    for _ in range(repetitions):
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            cold = child.submit(_cold).result()
        names = (COLD, PEAK, IDENTITY_ADDED, IDENTITY_REMOVED, POLICY_CHANGED, POLICY_ADDED)
        for name, figure in zip(names, (*cold, *_identities(policy), *_policies(policy, documents)), strict=True):
            figures.setdefault(name, []).append(figure)
    few, many = (
        _compile([_document(number) for number in range(count)]).maps_for(_LOCAL_LABELS[0]).ingress
        for count in (_FEW, _MANY)
    )
    for _ in range(repetitions):
        figures.setdefault(LOOKUP_FEW, []).append(_lookup(few))
        figures.setdefault(LOOKUP_MANY, []).append(_lookup(many))
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure, and the ratio of a look-up's cost with many policies to that with few."""
    rows = [
        (name, f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})") for name, values in figures.items()
    ]
    ratio = median(figures[LOOKUP_MANY]) / median(figures[LOOKUP_FEW])
    return [*rows, ("look-up with many policies to one with few, ratio", f"{ratio:.2f}")]


def _cold() -> tuple[float, float]:
    """Return seconds and peak MiB of a full compilation in a process of its own."""
    documents = [_document(number) for number in range(_POLICIES)]
    seconds = _time(lambda: _with_maps(_compile(documents)))
    status = Path("/proc/self/status").read_text()  # the peak of getrusage(2) in a child starts at its parent's peak
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return seconds, peak / 1024


def _identities(policy: Policy) -> tuple[float, float]:
    added, removed = [], []
    for number in range(_IDENTITIES, _IDENTITIES + _CHANGES):
        labels, identity = _labels(number), Identity(300 + number)
        added.append(_time(partial(_add_identity, policy, labels, identity)))
        removed.append(_time(partial(_remove_identity, policy.with_identity(labels, identity), labels)))
    return median(added) * 1e3, median(removed) * 1e3


def _add_identity(policy: Policy, labels: Labels, identity: Identity) -> Policy:
    return _with_maps(policy.with_identity(labels, identity))


def _remove_identity(policy: Policy, labels: Labels) -> Policy:
    return _with_maps(policy.without_identity(labels))


def _policies(policy: Policy, documents: list[CiliumNetworkPolicy]) -> tuple[float, float]:
    changed, added = [], []
    for number in range(_CHANGES):
        other = [*documents[:number], _document(number, port=9000), *documents[number + 1 :]]
        changed.append(_time(partial(_set_documents, policy, other)))
        added.append(_time(partial(_set_documents, policy, [*documents, _document(_POLICIES + number)])))
    return median(changed) * 1e3, median(added) * 1e3


def _set_documents(policy: Policy, documents: list[CiliumNetworkPolicy]) -> Policy:
    return _with_maps(policy.with_documents(documents))


def _lookup(policy: PolicyMap) -> float:
    """Return the nanoseconds of a look-up; half of the look-ups find an entry."""
    known = [(key.identity, key.port) for key in policy.entries]
    keys = list(
        islice(cycle([*islice(cycle(known), 200), *((Identity(99_999), port) for port in range(200))]), _LOOKUPS)
    )

    def every() -> None:
        for identity, port in keys:
            policy.lookup(identity, TCP, port)

    return min(_time(every) for _ in range(_PASSES)) / _LOOKUPS * 1e9


def _compile(documents: list[CiliumNetworkPolicy]) -> Policy:
    identities = {_labels(number): Identity(300 + number) for number in range(_IDENTITIES)}
    return compile_policy(documents, identities, Enforcement.AUTO)


def _with_maps(policy: Policy) -> Policy:
    """Compile the maps of all local endpoints; return the policy."""
    for labels in _LOCAL_LABELS:
        policy.maps_for(labels)
    return policy


def _labels(number: int) -> Labels:
    return Labels.parse(
        {
            "app": f"a{number % 200}",
            "tier": f"t{number % 10}",
            "id": str(number),
            "io.kubernetes.pod.namespace": f"ns{number % 20}",
        }
    )


_LOCAL_LABELS = [_labels(number) for number in range(_LOCAL)]


def _document(number: int, port: int = 80) -> CiliumNetworkPolicy:
    """Return a policy for 25 endpoints with more than 250 peers, and with a prefix of its own."""
    peers = [{"app": f"a{number % 200}"}, {"io.kubernetes.pod.namespace": f"ns{(number + 1) % 20}"}]
    ports = [{"port": str(port + number % 7), "protocol": "TCP"}]
    tier = {"matchLabels": {"tier": f"t{number % 10}"}}
    return CiliumNetworkPolicy.model_validate(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": f"p{number}", "namespace": f"ns{number % 20}"},
            "spec": {
                "endpointSelector": tier,
                "ingress": [
                    {"fromEndpoints": [{"matchLabels": peer} for peer in peers], "toPorts": [{"ports": ports}]}
                ],
                "egress": [
                    {"toEndpoints": [tier], "toPorts": [{"ports": [{"port": "443"}]}]},
                    {"toCIDR": [f"10.{number % 250}.{number // 250}.0/24"]},
                ],
            },
        }
    )


def _time(case: Callable[[], object]) -> float:
    begin = time.perf_counter()
    result = case()  # kept, so that its deallocation is not measured
    seconds = time.perf_counter() - begin
    del result
    return seconds
