"""Text form of selectors, as kubectl and Hubble read it."""

import pytest

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.requirements import parse_requirements

FRONT = Labels.parse({"role": "frontend", "container:tier": "web", "empty": ""})


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("role=frontend", True),
        ("role==frontend", True),
        ("role = frontend", True),
        ("role!=frontend", False),
        ("none!=frontend", True),
        ("k8s:role=frontend", True),
        ("container:role=frontend", False),
        ("tier=web", True),
        ("k8s:tier=web", False),
        ("role", True),
        ("!role", False),
        ("! none", True),
        ("empty=", True),
        ("role=", False),
        ("role in (backend, frontend)", True),
        ("role in (backend)", False),
        ("role notin (backend,db)", True),
        ("none notin (a)", True),
        ("role in (frontend),tier=web,!none", True),
        ("role=frontend,tier=db", False),
    ],
)
def test_labels_match_all_conditions(text: str, matches: bool) -> None:
    assert all(one.matches(FRONT) for one in parse_requirements(text)) is matches


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is no condition on a label; allowed: KEY, !KEY"),
        ("a,", "'' is no condition on a label; allowed: KEY, !KEY"),
        ("a=b=c", "'a=b=c' is no condition"),
        ("a in b", "'a in b' is no condition"),
        ("a in (b", "'a in (b' is no condition"),
        ("-a", "'-a' is not a label key"),
        ("a=-b", "'-b' is not a label value"),
        ("a in (-b)", "'-b' is not a label value"),
    ],
)
def test_other_texts_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="is n") as refused:
        parse_requirements(text)

    assert str(refused.value).startswith(reason)
