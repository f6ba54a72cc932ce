"""Marks of unrendered templates in documents: Helm and Go templates, variables and placeholders, with the remedy."""

import re
from collections.abc import Iterable, Iterator, Mapping

from nfq_enforcer.errors import DocumentError
from nfq_enforcer.policy.yaml_source import FieldPath, YamlDocument

_DELIMITERS = (("{{", "}}"), ("{%", "%}"))
_ACTION = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{\{|\{%", re.DOTALL)
_VARIABLE = re.compile(r"\$\{[^{}\s]+\}|\$\([A-Za-z_][A-Za-z0-9_]*\)|^\$[A-Za-z_][A-Za-z0-9_]*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"(?<![?P])<[A-Za-z][^<>]*>")  # no named group of a regular expression
_PLACEHOLDER_OF_WORDS = re.compile(r"(?<![?P])<[A-Za-z][-A-Za-z0-9_ ]*>")  # no address, as in a header Link
_MARK_OR_COMMENT = re.compile(r"\{\{|\{%|\$\{|(?<!\S)#")
_UNQUOTED = re.compile(rf"""{_MARK_OR_COMMENT.pattern}|"[^"]*"?|(?<!\w)'[^']*'?""")
_MARKS = frozenset(("{{", "{%", "${"))
_MAX_SHOWN = 60  # characters of a mark in a message

_REMEDIES = (
    (_ACTION, "is an unrendered template, as of Helm or Go", "render it first, as with 'helm template'"),
    (_VARIABLE, "is a variable without its value", "substitute it first, as with envsubst or by Flux"),
    (_PLACEHOLDER, "is a placeholder", "write the value in its place"),
)


def sentence(text: str) -> str:
    """Return a sentence that names the first mark of a template in the text, and the remedy; empty without a mark."""
    for pattern, noun, remedy in _REMEDIES:
        found = pattern.search(text)
        if found:
            shown = " ".join(found[0].split())
            shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"
            return f"'{shown}' {noun}; {remedy}"
    return ""


def certain(text: str) -> str:
    """Return the sentence as above for a text that may have braces, dollars and angles of its own.

    Only marks count that have no other meaning, in a literal text as in the literal parts of a regular expression.
    """
    is_action = any(0 <= text.find(opening) <= text.rfind(closing) - 2 for opening, closing in _DELIMITERS)
    return sentence(text) if is_action or _VARIABLE.search(text) or _PLACEHOLDER_OF_WORDS.search(text) else ""


def explain_syntax_error(error: DocumentError, text: str) -> DocumentError:
    """Return an error about the first template mark that can cause a syntax error, or the error.

    In the line of the error a mark may be within quotes, which a template can close, as in ``"{{ trim "x" }}"``.
    """
    for number, line in enumerate(text.split("\n")[: error.line], 1):
        start = _first_mark(_UNQUOTED, line)
        if start < 0 and number == error.line:
            start = _first_mark(_MARK_OR_COMMENT, line)
        message = sentence(line[start:]) if start >= 0 else ""
        if message:
            return DocumentError(error.file, message, line=number, column=start + 1)
    return error


def _first_mark(tokens: re.Pattern[str], line: str) -> int:
    """Return the place of the first mark among the tokens of a line, before a comment; -1 without one."""
    without_escapes = line.replace("\\\\", "__").replace('\\"', "__")
    for token in tokens.finditer(without_escapes):
        if token[0] == "#":
            break
        if token[0] in _MARKS:
            return token.start()
    return -1


def explain_errors(
    errors: Iterable[tuple[FieldPath, DocumentError]], source: YamlDocument, base: FieldPath, data: object
) -> list[DocumentError]:
    """Return the errors of one document, with one sentence in place of those that a template causes.

    A document with a template action has no other error: the rest of it is not final either.
    """
    remaining: list[DocumentError] = []
    marked: dict[str, DocumentError] = {}
    for path, error in errors:
        message = sentence(_text_at(source, path))
        if message:
            marked.setdefault(message.rpartition("; ")[2], source.error(path, message))
        else:
            remaining.append(error)
    action = next(((path, text) for path, text in _texts(data, base) if _ACTION.search(text)), None)
    if action is not None:
        return [source.error(action[0], sentence(action[1]))]
    return sorted([*remaining, *marked.values()], key=lambda error: (error.line, error.column))


def _text_at(source: YamlDocument, path: FieldPath) -> str:
    """Return the text of a scalar and of its key; empty for a field that is missing."""
    if path not in source.places:
        return ""
    key = path[-1] if path and isinstance(path[-1], str) else ""
    return f"{key}\n{source.place(path).text}"


def _texts(data: object, path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield (*path, key), key
            yield from _texts(value, (*path, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _texts(value, (*path, number))
