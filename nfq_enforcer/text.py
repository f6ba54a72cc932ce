"""Text forms of values for people and for JSON: times, text without control characters, JSON in both directions.

Names, labels and error messages come from documents, from the store and from packets. On a terminal, a control
character in one of them moves the cursor, changes colours or hides text, so the program prints none.
"""

import json
import re
from datetime import UTC, datetime
from math import isfinite
from typing import Any

MAX_INTEGER = 2**63 - 1  # the largest integer of a JSON text that is accepted; the smallest one is its negative
NUMBERS = f"allowed: finite numbers, integers from {-MAX_INTEGER} to {MAX_INTEGER}"
_SHOWN = 100  # characters of a wrong text that an error repeats
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # a surrogate; without its other half it cannot be encoded


def utc_time(seconds: float) -> str:
    """Return a time (seconds since the epoch) in UTC, to the second, as in 2026-11-26T03:22:18Z (RFC 3339)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    r"""Return one line of text with every character escaped that is not printable, as in ``\x1b``.

    These are C0 and C1 control characters (a line break and ESC among them), format characters (bidirectional controls,
    zero-width characters), separators other than the blank, and surrogates.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Return lines of text with every character escaped that is not printable; line breaks stay."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def shorten(text: str, at_most: int = _SHOWN) -> str:
    """Return the beginning of a text for an error message, printable and of limited length."""
    shown = printable(text[: at_most + 1])  # an escaped character is longer than the character
    return shown if len(shown) <= at_most else f"{shown[:at_most]}…"


def dump_json(data: object, indent: int | None = None) -> str:
    r"""Return data as JSON in readable Unicode; characters that are not printable are escaped, as in ``\u202e``."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    lines = text.split("\n")
    return text if all(map(str.isprintable, lines)) else "\n".join("".join(map(_json_escaped, line)) for line in lines)


def _json_escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def read_json(data: bytes | str) -> Any:
    """Return the value of a JSON text (RFC 8259); raise ValueError with the reason for any other text.

    Python's own reader accepts more: NaN and infinity, integers of any length, half a surrogate pair. It also fails
    on deep nesting. None of these can be stored, computed with, or written again.
    """
    try:
        encoded = data if isinstance(data, bytes) else data.encode()
        value = _DECODER.decode(encoded.decode())
        if _HALF.search(encoded):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise ValueError("it is not valid Unicode (UTF-8)") from None
    except json.JSONDecodeError:
        raise ValueError("it is not JSON") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def is_readable(value: object) -> bool:
    """Tell whether ``read_json`` accepts a scalar again that was written as JSON: a number must be one of NUMBERS."""
    if isinstance(value, int):
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return not isinstance(value, float) or isfinite(value)


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= len(str(-MAX_INTEGER)) else MAX_INTEGER + 1
    if not is_readable(number):
        raise ValueError(f"the number {shorten(digits, 20)} is too large")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if not is_readable(number):
        raise ValueError(f"the number {shorten(digits, 20)} is too large")
    return number


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_int=_integer, parse_float=_float)
