"""Labels: what may be written, how they compare, and which of them make an identity."""

import pytest

from nfq_enforcer.core.labels import Label, Labels, check_value, split_key


@pytest.mark.parametrize(
    ("text", "source", "key"),
    [
        ("app", "k8s", "app"),
        ("container:app", "container", "app"),
        ("example.com/app_1.x", "k8s", "example.com/app_1.x"),
        ("any:a/b", "any", "a/b"),
        ("a" * 63, "k8s", "a" * 63),
    ],
)
def test_a_key_has_a_source_and_k8s_is_the_default(text: str, source: str, key: str) -> None:
    assert split_key(text) == (source, key)


def test_another_source_may_be_the_default() -> None:
    assert split_key("app", "any") == ("any", "app")


@pytest.mark.parametrize(
    "text",
    ["", "a b", "-a", "a" * 64, ":a", "K8S:a", "k8s:", "/a", "a/", "A/b", "a..b/c", f"{'a' * 254}/b", "a/b/c", "a\n"],
)
def test_what_is_no_key_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a label key: a key is \[source:\]\[prefix/\]name"):
        split_key(text)


@pytest.mark.parametrize("text", ["", "a", "A_b-c.9", "a" * 63])
def test_a_value_may_be_empty(text: str) -> None:
    assert check_value(text) == text


@pytest.mark.parametrize("text", ["a b", "-", "a" * 64, "a/b", "ä", "a\n"])
def test_what_is_no_value_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is not a label value: a value is empty or has 1 to 63"):
        check_value(text)


def test_labels_are_equal_whatever_their_order() -> None:
    one = Labels([Label("k8s", "a", "1"), Label("vm", "a", ""), Label("k8s", "b", "2")])
    other = Labels.parse({"b": "2", "vm:a": "", "a": "1"})

    assert one == other
    assert {one: "x"}[other] == "x"
    assert str(one) == "k8s:a=1;k8s:b=2;vm:a"
    assert repr(one) == "Labels('k8s:a=1;k8s:b=2;vm:a')"
    assert len(one) == 3
    assert set(one) == set(other) == {Label("k8s", "a", "1"), Label("vm", "a", ""), Label("k8s", "b", "2")}


def test_labels_are_no_text() -> None:
    assert Labels() != ""


def test_a_bad_label_in_a_document_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a label key"):
        Labels.parse({"a b": "c"})
    with pytest.raises(ValueError, match="is not a label value"):
        Labels.parse({"a": "b c"})


def test_a_key_is_found_by_its_source_or_by_any() -> None:
    labels = Labels.parse({"app": "web", "vm:app": "db"})

    assert labels.find("vm", "app") == (Label("vm", "app", "db"),)
    assert labels.find("any", "app") == (Label("k8s", "app", "web"), Label("vm", "app", "db"))
    assert labels.find("container", "app") == labels.find("any", "tier") == ()


def test_in_a_union_the_others_value_counts() -> None:
    assert Labels.parse({"a": "1", "b": "1"}).union(Labels.parse({"b": "2"})) == Labels.parse({"a": "1", "b": "2"})
