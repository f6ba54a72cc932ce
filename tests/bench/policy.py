"""What compiling costs at scale: 1,000 policies, 5,000 identities and 50 endpoints here, at once and by changes."""

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
_PASSES = 5  # over all look-ups: the quickest is the figure, the others were disturbed
_CHANGES = 20  # of each kind, in a repetition: their median is its figure

COLD, PEAK = "compiled cold, s", "its peak memory with the interpreter's, MiB"
COMES, GOES = "one identity more, ms", "one identity less, ms"
CHANGED, ADDED = "one policy changed, ms", "one policy more, ms"
AMONG_FEW, AMONG_MANY = f"look-up among {_FEW} policies, ns", f"look-up among {_MANY:,} policies, ns"


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return figures for each case, one a repetition."""
    documents = [_document(number) for number in range(_POLICIES)]
    policy = _ready(_compiled(documents))
    figures: dict[str, list[float]] = {}
    for _ in range(repetitions):
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            cold = child.submit(_cold).result()
        names = (COLD, PEAK, COMES, GOES, CHANGED, ADDED)
        for name, figure in zip(names, (*cold, *_identities(policy), *_policies(policy, documents)), strict=True):
            figures.setdefault(name, []).append(figure)
    few, many = (
        _compiled([_document(number) for number in range(count)]).maps_for(_HERE[0]).ingress for count in (_FEW, _MANY)
    )
    for _ in range(repetitions):
        figures.setdefault(AMONG_FEW, []).append(_lookup(few))
        figures.setdefault(AMONG_MANY, []).append(_lookup(many))
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure, and how much more a look-up costs among many policies than among few."""
    rows = [(name, f"{median(of):.2f} ({min(of):.2f} to {max(of):.2f})") for name, of in figures.items()]
    ratio = median(figures[AMONG_MANY]) / median(figures[AMONG_FEW])
    return [*rows, ("look-up among many policies to among few, ratio", f"{ratio:.2f}")]


def _cold() -> tuple[float, float]:
    """Return seconds and MiB of a compilation in a process of its own."""
    documents = [_document(number) for number in range(_POLICIES)]
    seconds = _time(lambda: _ready(_compiled(documents)))
    status = Path("/proc/self/status").read_text()  # what getrusage says of a child begins with its parent's peak
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return seconds, peak / 1024


def _identities(policy: Policy) -> tuple[float, float]:
    comes, goes = [], []
    for number in range(_IDENTITIES, _IDENTITIES + _CHANGES):
        labels, identity = _labels(number), Identity(300 + number)
        comes.append(_time(partial(_comes, policy, labels, identity)))
        goes.append(_time(partial(_goes, policy.with_identity(labels, identity), labels)))
    return median(comes) * 1e3, median(goes) * 1e3


def _comes(policy: Policy, labels: Labels, identity: Identity) -> Policy:
    return _ready(policy.with_identity(labels, identity))


def _goes(policy: Policy, labels: Labels) -> Policy:
    return _ready(policy.without_identity(labels))


def _policies(policy: Policy, documents: list[CiliumNetworkPolicy]) -> tuple[float, float]:
    changed, added = [], []
    for number in range(_CHANGES):
        other = [*documents[:number], _document(number, port=9000), *documents[number + 1 :]]
        changed.append(_time(partial(_read, policy, other)))
        added.append(_time(partial(_read, policy, [*documents, _document(_POLICIES + number)])))
    return median(changed) * 1e3, median(added) * 1e3


def _read(policy: Policy, documents: list[CiliumNetworkPolicy]) -> Policy:
    return _ready(policy.with_documents(documents))


def _lookup(policy: PolicyMap) -> float:
    """Return nanoseconds of a look-up; half of them find an entry."""
    known = [(key.identity, key.port) for key in policy.entries]
    keys = list(
        islice(cycle([*islice(cycle(known), 200), *((Identity(99_999), port) for port in range(200))]), _LOOKUPS)
    )

    def every() -> None:
        for identity, port in keys:
            policy.lookup(identity, TCP, port)

    return min(_time(every) for _ in range(_PASSES)) / _LOOKUPS * 1e9


def _compiled(documents: list[CiliumNetworkPolicy]) -> Policy:
    identities = {_labels(number): Identity(300 + number) for number in range(_IDENTITIES)}
    return compile_policy(documents, identities, Enforcement.AUTO)


def _ready(policy: Policy) -> Policy:
    """Return the policy with the maps of all endpoints here."""
    for number in range(_LOCAL):
        policy.maps_for(_HERE[number])
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


_HERE = [_labels(number) for number in range(_LOCAL)]


def _document(number: int, port: int = 80) -> CiliumNetworkPolicy:
    """Return a policy for 25 endpoints and more than 250 peers of them, and for a prefix of its own."""
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
    made = case()  # what it made is let go of later
    seconds = time.perf_counter() - begin
    del made
    return seconds
