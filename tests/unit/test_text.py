"""Text for people and for JSON: no control character in it, and no JSON that cannot be written again."""

import json

import pytest

from nfq_enforcer.text import MAX_INTEGER, dump_json, printable, printable_lines, read_json, shorten

ODD = "a\x1b[2J\x07\x7f\x9b1m\u202e\u2066\u200b\u2028\ud800é"


def test_each_character_that_is_not_printable_is_escaped() -> None:
    assert printable(ODD) == r"a\x1b[2J\x07\x7f\x9b1m\u202e\u2066\u200b\u2028\ud800é"
    assert printable("two\nlines\r") == r"two\nlines\r"
    assert printable("plain text, é → ✓") == "plain text, é → ✓"


def test_lines_stay_lines() -> None:
    assert printable_lines("one\x1b\ntwo\r\n") == "one\\x1b\ntwo\\r\n"


def test_a_long_text_is_shown_in_part() -> None:
    assert shorten("x" * 200) == "x" * 100 + "…"
    assert shorten("\x1b" + "x" * 9) == r"\x1bxxxxxxxxx"
    assert shorten("\x1b" * 9, 12) == r"\x1b\x1b\x1b…"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_readable_without_control_characters(indent: int | None) -> None:
    text = dump_json({"é": [ODD, "\U000e0001"]}, indent)

    assert json.loads(text) == {"é": [ODD, "\U000e0001"]}
    assert "é" in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 1_000_000, "it is nested too deeply"),
        (b'{"a":' * 200_000, "it is nested too deeply"),
        (b"NaN", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"9" * 5000, f"the number {'9' * 20}… is too large"),
        (str(2**80).encode(), "the number 12089258196146291747… is too large"),
        (str(MAX_INTEGER + 1).encode(), "the number 9223372036854775808 is too large"),
        (b"1e999", "the number 1e999 is too large"),
        (b"\xff\xfe", "it is not valid Unicode (UTF-8)"),
        (rb'"\ud800"', "it is not valid Unicode (UTF-8)"),
        (b"{", "it is not JSON"),
        (b"", "it is not JSON"),
    ],
    ids=range(12),
)
def test_a_text_that_is_not_json_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_json(data)

    assert str(refused.value) == reason


@pytest.mark.parametrize("value", [None, [1, 2.5, "é\U0001f600"], {"a": MAX_INTEGER, "b": -MAX_INTEGER}, "\x00"])
def test_any_other_value_is_read(value: object) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value
