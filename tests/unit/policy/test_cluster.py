"""The cluster: what has changed since is compiled, and comes to what a fresh compilation comes to."""

import pytest

from nfq_enforcer.core.identity import derive
from nfq_enforcer.policy import cluster, loader
from nfq_enforcer.policy.cluster import Cluster, gather
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import Documents


def endpoint(name: str, role: str, address: str, port: int = 80) -> str:
    return (
        f"---\napiVersion: nfq-enforcer.io/v1\nkind: Endpoint\nmetadata: {{name: {name}, labels: {{role: {role}}}}}\n"
        f"spec: {{ips: [{address}], ports: [{{name: web, port: {port}}}]}}\n"
    )


def policy(name: str, to: str, peer: str) -> str:
    return (
        f"---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n"
        f"spec: {{endpointSelector: {{matchLabels: {{role: {to}}}}},\n"
        f"  ingress: [{{fromEndpoints: [{{matchLabels: {{role: {peer}}}}}],\n"
        "    toPorts: [{ports: [{port: web}]}]}]}\n"
    )


WEB, DB, ADMIN = endpoint("web", "web", "10.0.0.1"), endpoint("db", "db", "10.0.0.2"), endpoint("ad", "ad", "10.0.0.3")
WEB_TO_DB, AD_TO_WEB = policy("web-to-db", "db", "web"), policy("ad-to-web", "web", "ad")
BEFORE = WEB + DB + WEB_TO_DB


def contents(whole: Cluster) -> dict[str, list[tuple[object, ...]]]:
    """Return what the maps of every endpoint hold."""
    return {
        one.name: [(side.entries, side.enforced, side.enforced_by) for side in whole.maps(one)] for one in whole.members
    }


def documents(*texts: str) -> Documents:
    return loader.gather(one.document for one in loader.parse("".join(texts), "f.yaml"))


def made(*texts: str, before: Cluster | None = None) -> Cluster:
    return gather(documents(*texts), Enforcement.PER_ENDPOINT, before=before)


@pytest.mark.parametrize(
    "after",
    [
        [BEFORE],
        [BEFORE, ADMIN],
        [BEFORE, AD_TO_WEB],
        [BEFORE, ADMIN, AD_TO_WEB],
        [WEB, DB],
        [WEB, WEB_TO_DB],
        [DB, WEB_TO_DB, ADMIN],
        [WEB, endpoint("db", "db", "10.0.0.2", 81), WEB_TO_DB],
        [BEFORE, endpoint("db2", "db", "10.0.0.4", 81)],
        [WEB, DB, policy("web-to-db", "db", "ad"), ADMIN],
    ],
)
@pytest.mark.parametrize("many", [0, 100])
def test_steps_come_to_what_a_fresh_compilation_comes_to(
    after: list[str], many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_MANY", many)

    assert contents(made(*after, before=made(BEFORE))) == contents(made(*after))


def test_what_a_change_does_not_touch_stays_the_very_same() -> None:
    before = made(BEFORE)
    web, db = (before.maps(one).ingress for one in before.members)
    after = made(BEFORE, ADMIN, AD_TO_WEB, before=before)

    assert after.policies[0] is before.policies[0]
    assert after.maps(after.members[0]).ingress is not web
    assert after.maps(after.members[1]).ingress is db


def test_numbers_that_move_are_compiled_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(BEFORE)
    monkeypatch.setattr(cluster, "derive", lambda sets: {labels: number + 1 for labels, number in derive(sets).items()})
    moved = made(BEFORE, before=before)

    assert contents(moved) == contents(made(BEFORE))
    assert {one.identity for one in moved.members}.isdisjoint(one.identity for one in before.members)
