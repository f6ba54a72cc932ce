"""Selectors select as upstream: label sources, expressions, and the scope of a namespace."""

from typing import Any

import pytest

from nfq_enforcer.core.identity import HOST, RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.documents import LabelSelector
from nfq_enforcer.policy.selectors import Selector, SelectorIndex, peer_selector, subject_selector

SHOP = Labels.parse(
    {
        "app": "web",
        "container:app": "db",
        "io.kubernetes.pod.namespace": "shop",
        "io.cilium.k8s.namespace.labels.team": "a",
    }
)
OTHER = Labels.parse({"app": "web", "io.kubernetes.pod.namespace": "other", "io.cilium.k8s.namespace.labels.team": "a"})
IDENTITIES = {SHOP: Identity(256), OTHER: Identity(257), **{labels: number for number, labels in RESERVED.items()}}
ALL_ENDPOINTS = {256, 257}
ALL = set(IDENTITIES.values())


def written(labels: dict[str, str] | None = None, *expressions: tuple[str, str, list[str]]) -> LabelSelector:
    fields: dict[str, Any] = {"matchLabels": labels or {}, "matchExpressions": []}
    for key, operator, values in expressions:
        fields["matchExpressions"].append({"key": key, "operator": operator, "values": values})
    return LabelSelector.model_validate(fields)


def selected(selector: Selector) -> set[Identity]:
    """Return the selected identities; assert that SelectorIndex.select and Selector.matches agree."""
    found = set(SelectorIndex(IDENTITIES).select(selector))
    assert found == {number for labels, number in IDENTITIES.items() if selector.matches(labels)}
    return found


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        (written(), True),
        (written({"app": "web"}), True),
        (written({"app": "db"}), True),  # no prefix: any source
        (written({"any:app": "db"}), True),
        (written({"k8s:app": "db"}), False),
        (written({"container:app": "db"}), True),
        (written({"vm:app": "db"}), False),
        (written({"app": "web", "tier": "x"}), False),
        (written({}, ("app", "In", ["x", "web"])), True),
        (written({}, ("app", "In", ["x"])), False),
        (written({}, ("app", "NotIn", ["x"])), True),
        (written({}, ("app", "NotIn", ["x", "db"])), False),
        (written({}, ("tier", "NotIn", ["x"])), True),  # the key is absent
        (written({}, ("app", "Exists", [])), True),
        (written({}, ("tier", "Exists", [])), False),
        (written({}, ("tier", "DoesNotExist", [])), True),
        (written({}, ("vm:app", "DoesNotExist", [])), True),
        (written({}, ("container:app", "DoesNotExist", [])), False),
        (written({"app": "web"}, ("tier", "DoesNotExist", []), ("app", "NotIn", ["x"])), True),
    ],
)
def test_labels_and_expressions_must_all_hold(selector: LabelSelector, matches: bool) -> None:
    assert (256 in selected(subject_selector(selector, ""))) is matches


def test_selectors_that_say_the_same_are_equal_however_written() -> None:
    one = peer_selector(written({"app": "web"}, ("tier", "In", ["a", "b"])), "shop")
    other = peer_selector(written({}, ("any:tier", "In", ["b", "a", "a"]), ("any:app", "In", ["web"])), "shop")

    assert one == other
    assert hash(one) == hash(other)


def test_a_subject_is_of_the_policys_namespace() -> None:
    assert selected(subject_selector(written(), "shop")) == {256}
    assert selected(subject_selector(written({"app": "web"}), "other")) == {257}


def test_a_subject_that_names_another_namespace_is_of_the_policys_all_the_same() -> None:
    assert selected(subject_selector(written({"k8s:io.kubernetes.pod.namespace": "other"}), "shop")) == {256}


def test_a_subject_that_contradicts_the_policys_namespace_is_nobody() -> None:
    assert selected(subject_selector(written({}, ("io.kubernetes.pod.namespace", "NotIn", ["shop"])), "shop")) == set()


def test_a_clusterwide_subject_is_of_any_namespace() -> None:
    assert selected(subject_selector(written({"app": "web"}), "")) == {256, 257}


def test_an_empty_peer_is_the_namespace_or_all_endpoints_and_never_world_or_host() -> None:
    assert selected(peer_selector(written(), "shop")) == {256}
    assert selected(peer_selector(written(), "")) == ALL_ENDPOINTS


@pytest.mark.parametrize("key", ["io.kubernetes.pod.namespace", "k8s:io.kubernetes.pod.namespace"])
def test_a_peer_that_names_a_namespace_is_of_that_one(key: str) -> None:
    assert selected(peer_selector(written({key: "other"}), "shop")) == {257}
    assert selected(peer_selector(written({}, (key, "Exists", [])), "shop")) == ALL_ENDPOINTS


@pytest.mark.parametrize("namespace", ["shop", ""])
def test_a_negative_mention_of_the_namespace_matches_world_and_host_too(namespace: str) -> None:
    assert selected(
        peer_selector(written({}, ("io.kubernetes.pod.namespace", "NotIn", ["shop"])), namespace)
    ) == ALL - {256}
    assert (
        selected(peer_selector(written({}, ("io.kubernetes.pod.namespace", "DoesNotExist", [])), namespace))
        == ALL - ALL_ENDPOINTS
    )


def test_a_peer_that_names_a_label_of_its_namespace_is_of_any() -> None:
    assert selected(peer_selector(written({"k8s:io.cilium.k8s.namespace.labels.team": "a"}), "shop")) == ALL_ENDPOINTS
    assert WORLD in selected(
        peer_selector(written({}, ("io.cilium.k8s.namespace.labels.team", "NotIn", ["a"])), "shop")
    )


def test_a_clusterwide_peer_that_names_no_namespace_is_an_endpoint() -> None:
    assert selected(peer_selector(written({}, ("app", "NotIn", ["x"])), "")) == ALL_ENDPOINTS
    assert (
        selected(peer_selector(written({}, ("io.cilium.k8s.namespace.labels.team", "NotIn", ["x"])), ""))
        == ALL_ENDPOINTS
    )


@pytest.mark.parametrize("namespace", ["shop", ""])
def test_a_peer_may_be_a_reserved_identity(namespace: str) -> None:
    assert selected(peer_selector(written({"reserved:host": ""}), namespace)) == {HOST}


def test_another_sources_namespace_does_not_lift_the_bond() -> None:
    assert selected(
        peer_selector(written({}, ("container:io.kubernetes.pod.namespace", "DoesNotExist", [])), "shop")
    ) == {256}


def test_equal_selectors_share_one_answer() -> None:
    index = SelectorIndex(IDENTITIES)

    assert index.select(peer_selector(written(), "shop")) is index.select(peer_selector(written({}), "shop"))


def test_an_updated_index_corrects_the_answers_that_changed_and_shares_the_others() -> None:
    index = SelectorIndex(IDENTITIES)
    web, host, team = (
        peer_selector(written({"app": "web"}), ""),
        peer_selector(written({"reserved:host": ""}), ""),
        peer_selector(written(), "shop"),
    )
    before = [index.select(one) for one in (web, host, team)]
    new = Labels.parse({"app": "web", "tier": "x", "io.kubernetes.pod.namespace": "new"})

    after = index.updated({SHOP: Identity(256)}, {new: Identity(258)})

    assert [after.select(one) for one in (web, host, team)] == [{257, 258}, {HOST}, set()]
    assert after.select(host) is before[1]
    assert after.select(peer_selector(written({"tier": "x"}), "")) == {258}
    assert after.select(peer_selector(written({"container:app": "db"}), "")) == set()
    assert [index.select(one) for one in (web, host, team)] == before
    assert index.select(peer_selector(written({"app": "db"}), "")) == {256}
