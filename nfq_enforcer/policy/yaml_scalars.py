"""Plain scalars of YAML as kubectl reads them: the rules of go-yaml, which differ from PyYAML's.

Both follow YAML 1.1, where ``y``, ``no`` and ``on`` are booleans. go-yaml also reads ``1e3``, ``0o17`` and ``08`` as
numbers, and reads numbers of base 60 (``12:30``) as text. A float that is integral is an integer, as in the JSON that
kubectl makes of it.
"""

import math
import re
from collections.abc import Mapping

_WORDS: Mapping[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_INTEGERS = (
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), 16),
    (re.compile(r"[-+]?0[bB][01]+"), 2),
    (re.compile(r"[-+]?0[oO]?[0-7]+"), 8),
    (re.compile(r"[-+]?[0-9]+"), 10),
)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_FIRST = frozenset("+-.0123456789")
_LEAST_EXPONENT = 1e21  # from here on, JSON has the float with an exponent


def value(text: str) -> object:
    """Return the boolean, number or null of a plain scalar, or its text; raise ValueError for a number too long."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _FIRST:
        return text
    digits = text.replace("_", "")
    for pattern, base in _INTEGERS:
        if pattern.fullmatch(digits):
            return int(digits, base)
    if not _FLOAT.fullmatch(digits):
        return text
    number = float(digits)
    if math.isinf(number):  # as in the label 12e3456, the beginning of a commit
        return text
    return int(number) if number.is_integer() and abs(number) < _LEAST_EXPONENT else number
