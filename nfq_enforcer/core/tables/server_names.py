"""Patterns of TLS server names (SNI), as ``serverNames`` of Cilium's documents has them, as regular expressions of RE2.

In a pattern, ``*`` stands for any number of letters, digits, hyphens and underscores, so it stays within a label. A
label ``**`` stands for one or more labels, and ``*`` alone for every name. Unlike a pattern of DNS names, it may have
``**`` in any place, and a trailing dot is not allowed.
"""

import re
import string

_MAX_LENGTH = 255  # as upstream
_CHARACTER = "[-a-z0-9_]"
_LABELS = rf"{_CHARACTER}+([.]{_CHARACTER}+)*"
_LABEL = r"(?:\*{1,2}|\*?[-a-zA-Z0-9_]+(?:\*[-a-zA-Z0-9_]+)*\*?)"
_PATTERN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_WILDCARD = re.compile(r"\*\*?|\.")
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_EXPRESSIONS = {"**": _LABELS, "*": f"{_CHARACTER}*", ".": "[.]"}


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern, or a name without wildcards."""
    return len(text) <= _MAX_LENGTH and _PATTERN.fullmatch(text) is not None


def expression(pattern: str) -> str:
    """Return the regular expression of the names that a pattern stands for, in their canonical form."""
    if pattern == "*":
        return _LABELS
    return _WILDCARD.sub(lambda found: _EXPRESSIONS[found[0]], canonical(pattern))


def canonical(name: str) -> str:
    """Return a name with its ASCII letters in lower case; no other character has a case in a name."""
    return name.translate(_LOWER)
