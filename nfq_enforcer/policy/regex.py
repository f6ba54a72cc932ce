r"""Regular expressions of policies and of the label filter: RE2's, which match in linear time.

Upstream accepts an expression if Go's ``regexp`` compiles it, and Envoy matches requests with RE2. Both have one syntax
(https://github.com/google/re2/wiki/Syntax) with small differences. An expression is accepted here if both accept it:
RE2 compiles it, and it has none of the constructs that RE2 adds to Go's syntax (``\C``, a group name with letters
outside ASCII, more than a thousand nested groups).
"""

from functools import lru_cache
from typing import Any

import re2

_MAX_MEMORY = 128 << 20  # bytes for a compiled expression, as Go's limit; RE2's default of 8 MiB refuses more than Go
_PROXY_MEMORY = 8 << 20  # bytes for a compiled expression in Envoy: RE2's default
_MAX_DEPTH = 1000  # nested groups, as in Go
_RANGE = 64  # bytes of the texts between which all matches stand
_AFTER_ALL = b"\xff"  # no text in UTF-8 has this byte
_QUANTIFIERS = frozenset("?*+{")
_MAX_SHOWN = 200  # characters of an expression in an error message

_TOKENS = re2.compile(
    r"(?s)\\Q.*?(?:\\E|\z)"  # quoted text
    r"|\\."
    r"|\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\]"  # a class
    r"|\{[0-9]+(?:,[0-9]*)?\}"
    r"|\(\?P?<(?P<name>[^>]*)>"
    r"|\(\??|\)"
)


def check(expression: str) -> str:
    """Return the expression unchanged; raise ValueError with the reason if it is not one of RE2 and of Go."""
    _compile(expression)
    return expression


def check_for_proxy(expression: str) -> str:
    """Return the expression unchanged; raise ValueError as ``check``, or if Envoy has no room for it."""
    check(expression)
    try:
        re2.compile(expression.encode(), _options(_PROXY_MEMORY))
    except re2.error:
        raise ValueError(f"'{_shorten(expression)}' is too large for the proxy; allowed: fewer repetitions") from None
    return expression


def matches_whole(expression: str, text: str) -> bool:
    """Return whether a valid expression matches the whole text."""
    octets, (first, last) = _bytes(text), _range(expression)
    return first <= octets <= last and _compile(expression).fullmatch(octets) is not None


def match_end(expression: str, text: str) -> int:
    """Return the end of the match at the start of the text, -1 without a match."""
    found = _compile(expression).match(_bytes(text))
    return -1 if found is None else found.end()


def literals(expression: str) -> str:
    """Return the expression with blanks in place of escapes, quoted text, classes, repetitions and names of groups.

    A group that may be absent or repeated has no parentheses either.
    """
    return str(_TOKENS.sub(lambda token: token[0] if _is_plain_group(token) else " " * len(token[0]), expression))


def _is_plain_group(token: Any) -> bool:
    return token[0] == "(" or (token[0] == ")" and token.string[token.end() : token.end() + 1] not in _QUANTIFIERS)


@lru_cache(maxsize=4096)
def _range(expression: str) -> tuple[bytes, bytes]:
    """Return two texts between which all texts that an expression matches stand: a comparison is faster than RE2."""
    try:
        first, last = _compile(expression).possiblematchrange(_RANGE)
    except re2.error:  # RE2 knows no such texts
        return b"", _AFTER_ALL
    return first, last


@lru_cache(maxsize=4096)
def _compile(expression: str) -> Any:
    compiled = None
    try:
        compiled = re2.compile(expression.encode(), _options(_MAX_MEMORY))
        reason = _not_in_go(expression)
    except re2.error as error:
        reason = _text(error.args[0])
    except UnicodeEncodeError:
        reason = "a surrogate is not a character"
    if reason:
        raise ValueError(
            f"'{_shorten(expression)}' is not a regular expression: {reason}; allowed: the syntax of RE2 and Go"
        )
    return compiled


def _options(memory: int) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = memory
    return options


def _shorten(expression: str) -> str:
    return expression if len(expression) <= _MAX_SHOWN else f"{expression[:_MAX_SHOWN]}…"


def _not_in_go(expression: str) -> str:
    """Return the first construct that Go's ``regexp`` refuses and RE2 accepts; empty without one."""
    depth = 0
    for token in _TOKENS.finditer(expression):
        text, name = token[0], token["name"]
        if text == r"\C":
            return r"invalid escape sequence: \C"
        if name is not None and not name.isascii():
            return f"invalid named capture group: {text}"
        depth += text.startswith("(") - (text == ")")
        if depth > _MAX_DEPTH:
            return "nested too deep"
    return ""


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(message: bytes | str) -> str:
    return message.decode("utf-8", "replace") if isinstance(message, bytes) else message
