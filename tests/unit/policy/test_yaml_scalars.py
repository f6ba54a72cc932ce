"""Plain scalars have the values that go-yaml gives them, which kubectl reads documents with."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.policy.yaml_scalars import value

VALUES: list[tuple[object, str]] = [
    (True, "y Y yes Yes YES true True TRUE on On ON"),
    (False, "n N no No NO false False FALSE off Off OFF"),
    (None, "~ null Null NULL"),
    (math.inf, ".inf .Inf .INF +.inf +.Inf +.INF"),
    (-math.inf, "-.inf -.Inf -.INF"),
    (15, "15 +15 1_5 0xF 0XF 0x_f 0o17 0O17 017 0b1111 0B1111 0_17 15. 15.0 1.5e1 1.5E+1 150e-1 015."),
    (-15, "-15 -0xf -0o17 -017 -0b1111 -15.0"),
    (8, "8 08 008 8e0 0o10"),
    (0, "0 00 -0 0.0 0e5 .0"),
    (0.5, ".5 0.5 +.5 5e-1 00.5"),
    (1000, "1e3 1E3 1000 1_000"),
]
TEXTS = (
    "12:30 1:30:00 1:30.5 190:20:30.15 yEs oN tRue nULL nan inf .Nan -.nan _1 1__x 0o 0x 0o8 0b2 1e 1e+ e3 . + - "
    "-- +- 1.2.3 1-2 2026-01-01 2026-01-01T00:00:00Z 12e3456 1.0e+400 0x1p4 ١ ٣.٥ 1,000 << = a 1a Y1 ye "
)


@pytest.mark.parametrize(
    ("text", "expected"), [(text, expected) for expected, texts in VALUES for text in texts.split(" ")]
)
def test_a_scalar_has_the_value_of_go_yaml(text: str, expected: object) -> None:
    assert (value(text), type(value(text))) == (expected, type(expected))


@pytest.mark.parametrize("text", ["", *TEXTS.split()])
def test_any_other_scalar_is_text(text: str) -> None:
    assert value(text) == (text or None)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_not_a_number_is_a_number(text: str) -> None:
    number = value(text)

    assert isinstance(number, float)
    assert math.isnan(number)


@settings(derandomize=True, database=None, deadline=None)
@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_a_scalar_of_json_has_its_value(data: object) -> None:
    assert value(json.dumps(data)) == data
