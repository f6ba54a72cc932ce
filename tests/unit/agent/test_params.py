"""Parameters of the API: a value of the right type, or a sentence."""

from collections.abc import Callable
from typing import Any

import pytest

from nfq_enforcer.agent import params
from nfq_enforcer.errors import BadInput

BAD: list[tuple[Callable[..., Any], list[Any]]] = [
    (lambda values: params.text(values, "a"), [None, 3, {"a": 1}, ["x"], "x" * 1001]),
    (lambda values: params.texts(values, "a"), [None, "x", [1], [["x"]], ["x" * 1001], {"a": "b"}]),
    (lambda values: params.flag(values, "a"), [None, 0, "true", []]),
    (lambda values: params.count(values, "a"), ["x", -5, 1.5, True, []]),
    (lambda values: params.time(values, "a"), ["x", True, float("nan"), float("-inf"), [], {}]),
    (lambda values: params.seconds(values, "a", 600.0), ["x", -1, True, float("nan"), float("inf"), [], {}]),
]


@pytest.mark.parametrize(("read", "value"), [(read, value) for read, values in BAD for value in values])
def test_a_value_of_another_type_is_refused_with_its_name(read: Callable[..., Any], value: Any) -> None:
    with pytest.raises(BadInput, match=r"^a must be ") as refused:
        read({"a": value})

    assert len(str(refused.value)) < 200


def test_a_value_of_the_type_is_returned() -> None:
    values = {"text": "x", "texts": ["x"], "flag": True, "count": 3, "seconds": 5000, "time": 1.5}

    assert params.text(values, "text") == "x"
    assert params.texts(values, "texts") == ["x"]
    assert params.flag(values, "flag") is True
    assert params.count(values, "count") == 3
    assert params.seconds(values, "seconds", 600.0) == 600.0
    assert params.time(values, "time") == 1.5


def test_a_missing_value_is_the_default() -> None:
    assert (params.text({}, "a"), params.texts({}, "a"), params.flag({}, "a")) == ("", [], False)
    assert params.count({}, "a") is params.seconds({}, "a", 1.0) is params.time({}, "a") is None
