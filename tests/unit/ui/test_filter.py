"""Filter of the page: the words of observe, and one sentence for a mistake."""

import pytest

from nfq_enforcer.errors import BadInput
from nfq_enforcer.ui.filter import MAX_TEXT, read


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("", {}),
        ("--verdict DROPPED", {"allow": {"verdict": ["DROPPED"]}}),
        (
            "--from-label 'role in (a, b)' --to-port 53 --to-port 80 --not --namespace shop",
            {"allow": {"from-label": ["role in (a, b)"], "to-port": ["53", "80"]}, "deny": {"namespace": ["shop"]}},
        ),
    ],
)
def test_words_of_observe_are_parameters_of_the_agent(text: str, params: dict[str, object]) -> None:
    assert read(text) == params


@pytest.mark.parametrize("text", ["--verdict NONE", "--to-port x", "nonsense", "'", "--not", "--to-port 1 " * MAX_TEXT])
def test_a_mistake_is_one_sentence(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        read(text)

    assert "\n" not in str(refused.value)
