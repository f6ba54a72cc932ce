"""Incremental compilation: compiles the changes only, with the same result as a fresh compilation."""

from collections import defaultdict

import pytest

from nfq_enforcer.cluster import compilation
from nfq_enforcer.cluster.compilation import Compilation
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.model import EndpointModel, build_model, model_endpoints
from nfq_enforcer.policy.rules import PortSet


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


MODE = Enforcement.PER_ENDPOINT


def documents(*texts: str) -> Documents:
    return loader.group_documents(one.document for one in loader.parse("".join(texts), "f.yaml"))


def numbered(*texts: str, by: int = 0) -> tuple[EndpointModel, ...]:
    """Return the endpoints of documents, with the derived numbers increased by ``by``."""
    return tuple(one._replace(identity=Identity(one.identity + by)) for one in model_endpoints(documents(*texts)))


def made(*texts: str, before: Compilation | None = None, by: int = 0) -> Compilation:
    found, policies = numbered(*texts, by=by), documents(*texts).policies
    ports: dict[Identity, set[PortSet]] = defaultdict(set)
    for one in found:
        ports[one.identity].add(one.ports)
    numbers = {one.identity_labels: one.identity for one in found}
    if before is None:
        return Compilation.fresh(policies, numbers, ports, MODE)
    return before.followed_by(policies, numbers, ports, MODE)


def contents(compiled: Compilation, *texts: str) -> dict[str, list[tuple[object, ...]]]:
    """Return the contents of the maps of every endpoint of the documents."""
    return {
        one.name: [
            (side.entries, side.enforced, side.enforced_by)
            for side in compiled.policy.maps_for(one.identity_labels, one.ports)
        ]
        for one in numbered(*texts)
    }


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
    monkeypatch.setattr(compilation, "_MANY", many)

    assert contents(made(*after, before=made(BEFORE)), *after) == contents(made(*after), *after)


def test_what_a_change_does_not_touch_stays_the_very_same() -> None:
    before, (web, db) = made(BEFORE), numbered(BEFORE)
    maps = [before.policy.maps_for(one.identity_labels, one.ports).ingress for one in (web, db)]
    after = made(BEFORE, ADMIN, AD_TO_WEB, before=before)

    assert after.policies[0] is before.policies[0]
    assert after.policy.maps_for(web.identity_labels, web.ports).ingress is not maps[0]
    assert after.policy.maps_for(db.identity_labels, db.ports).ingress is maps[1]


def test_what_says_the_same_as_before_is_the_very_same() -> None:
    before = made(BEFORE)

    assert made(BEFORE, before=before) is before
    assert before.followed_by(before.policies, before.numbers, before.ports, MODE) is before


def test_documents_that_say_the_same_in_another_order_are_read_in_that_order() -> None:
    before = made(BEFORE, AD_TO_WEB)

    after = made(WEB, DB, AD_TO_WEB, WEB_TO_DB, before=before)

    assert after.policies == before.policies[::-1]
    assert after.policies[0] is before.policies[1]


def test_numbers_that_move_are_compiled_afresh() -> None:
    moved = made(BEFORE, before=made(BEFORE), by=1)

    assert contents(moved, BEFORE) == contents(made(BEFORE, by=1), BEFORE)
    assert contents(moved, BEFORE) != contents(made(BEFORE), BEFORE)


def test_a_cluster_of_documents_has_the_policy_that_they_make() -> None:
    whole = build_model(documents(BEFORE), MODE)

    assert {
        one.name: [(side.entries, side.enforced, side.enforced_by) for side in whole.maps(one)]
        for one in whole.endpoints
    } == contents(made(BEFORE), BEFORE)
