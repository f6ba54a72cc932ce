"""The label filter: which labels make an identity, by default and by patterns."""

import pytest

from nfq_enforcer.core.labels import Label, Labels, split_key
from nfq_enforcer.policy import label_filter
from nfq_enforcer.policy.label_filter import LabelFilter


def relevant(*patterns: str, labels: tuple[str, ...]) -> set[str]:
    found = LabelFilter(patterns).apply(Labels(Label(*split_key(key), "") for key in labels))
    return {f"{label.source}:{label.key}" for label in found}


def test_by_default_roles_make_an_identity_and_roll_outs_do_not() -> None:
    role = ("app", "io.kubernetes.pod.namespace", "io.cilium.k8s.policy.serviceaccount", "app.kubernetes.io/name")
    roll_out = ("pod-template-hash", "io.kubernetes.container", "beta.kubernetes.io/arch", "kubernetes.io/hostname")
    number = ("apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index", "controller-uid", "etcd_node")

    assert relevant(labels=role + roll_out + number) == {f"k8s:{key}" for key in role}
    assert relevant(labels=("batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name")) == {
        "k8s:batch.kubernetes.io/job-name"
    }


def test_the_reserved_label_always_counts() -> None:
    assert relevant("k8s:app", labels=("reserved:host", "app", "tier")) == {"reserved:host", "k8s:app"}


def test_a_pattern_that_excludes_leaves_the_rest_in() -> None:
    assert relevant("!tier", labels=("app", "tier", "vm:tier")) == {"k8s:app"}
    assert relevant("!vm:tier", labels=("app", "tier", "vm:tier")) == {"k8s:app", "k8s:tier"}


def test_the_longest_match_decides() -> None:
    assert relevant("!team", "team-a", labels=("team-a", "team-b")) == {"k8s:team-a"}


def test_a_pattern_of_alternatives_is_one_pattern() -> None:
    assert relevant("app|role", labels=("app", "role", "tier")) == {"k8s:app", "k8s:role"}


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'app\(' is not a regular expression: "):
        LabelFilter(["app("])


@pytest.mark.parametrize("pattern", [r"app\Z", r"(?=app)", r"a++", r"!\C"])
def test_a_pattern_that_re2_or_go_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression: "):
        LabelFilter([pattern])


def test_a_pattern_takes_linear_time() -> None:
    assert relevant("!(k+)+:(a+)+$", labels=(f"{'a' * 60}.b",)) == {f"k8s:{'a' * 60}.b"}


def test_results_are_kept_for_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_filter, "_MAX_KNOWN", 3)
    chosen = LabelFilter(["app"])

    for _ in range(2):
        assert [key for key in ("app", "a", "b", "c", "d") if chosen.includes("k8s", key)] == ["app"]
