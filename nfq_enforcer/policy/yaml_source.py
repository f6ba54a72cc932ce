"""Parser of YAML (and so JSON) to plain data, with the place of every field.

Any text yields documents, or one DocumentError with its place. The parser refuses text that is not YAML, keys that are
duplicate or not strings, tags other than those of YAML's own scalars, numbers that JSON lacks or no store can hold, and
too many aliases or levels of nesting (a few hundred bytes of aliases can stand for billions of nodes). Plain scalars
are as for kubectl (``yaml_scalars``). A merge key (``<<``) adds the fields of one mapping, or of several in a list,
that the mapping does not have itself; of several, the first counts (https://yaml.org/type/merge.html). In JSON, two
surrogates as escapes are one character, as ``json.dumps`` writes it; YAML lacks this form.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from nfq_enforcer.errors import DocumentError
from nfq_enforcer.policy import yaml_scalars
from nfq_enforcer.text import NUMBERS, is_readable

MAX_DEPTH = 64
MAX_ALIASED = 100_000  # nodes that the aliases of one document expand to
MAX_VALUES = 3_000_000  # nodes in one text; each takes up to 1 KiB of memory, however few bytes it has in the text

FieldPath = tuple[str | int, ...]

_STRING_OR_NOT_JSON = re.compile(r'"[^"]*"|[^\s{}\[\]:,+.0-9Eaeflnrstu-]')  # in a text without escapes
_SURROGATES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_BACKSLASH_OR_SURROGATES = re.compile(rf"\\\\|{_SURROGATES.pattern}")

_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_STANDARD = "tag:yaml.org,2002:"
_STRING, _MAPPING, _SEQUENCE = f"{_STANDARD}str", f"{_STANDARD}map", f"{_STANDARD}seq"
_MERGE = f"{_STANDARD}merge"
_AS_TEXT = {_MERGE, f"{_STANDARD}timestamp", f"{_STANDARD}value"}
_SCALARS = {_STRING, *(f"{_STANDARD}{name}" for name in ("int", "float", "bool", "null"))}


class Position(NamedTuple):
    """Position: a line and column in a text, both counted from 1."""

    line: int
    column: int


class Place(NamedTuple):
    """Place: the positions of a field's key and value, and the text of the value."""

    key: Position  # for an item of a list: the position of its value
    value: Position
    text: str = ""  # of a scalar, as in the source, without quotes


@dataclass(frozen=True)
class YamlDocument:
    """YamlDocument: the data of one document, and the place of each field by the field's path."""

    file: str
    data: object
    places: Mapping[FieldPath, Place]

    def place(self, path: FieldPath) -> Place:
        """Return the place of a field; for a missing field, the place of the nearest field that contains it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def error(self, path: FieldPath, message: str, *, at_key: bool = False) -> DocumentError:
        """Return an error with this message about a field."""
        place = self.place(path)
        position = place.key if at_key else place.value
        return DocumentError(self.file, message, line=position.line, column=position.column, field=render_path(path))


def render_path(path: FieldPath) -> str:
    """Render as ``spec.ingress[0].toPorts``, with a key that is not an identifier in brackets and quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text


def decode(raw: bytes, file: str) -> str:
    """Return the text of a file; raise DocumentError if it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position_of(raw[: error.start].decode("utf-8", "replace"))
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; documents are UTF-8 text"
        raise DocumentError(file, message, line=line, column=column) from None


def parse(text: str, file: str) -> list[YamlDocument]:
    """Return the documents of a text, without empty ones; raise DocumentError for the first error."""
    return list(documents(text, file))


def documents(text: str, file: str, on_characters: Callable[[int], None] = lambda _: None) -> Iterator[YamlDocument]:
    """Yield the documents of a text, without empty ones; raise DocumentError at the first error.

    The places of a document take several times the memory of its data, so the caller should keep none of a long text.
    ``on_characters`` is called after each document with the number of characters since the one before.
    """
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable:
        line, column = _position_of(text[: unprintable.start()])
        message = f"character U+{ord(unprintable[0]):04X} is not allowed in YAML"
        raise DocumentError(file, message, line=line, column=column)
    text = _without_surrogates(text)
    try:
        yield from _documents(text, file, on_characters)
    except yaml.MarkedYAMLError as error:
        assert error.problem_mark is not None  # of the scanner's and the parser's errors
        _check_nesting(text[: error.problem_mark.index], file)
        position = _position(error.problem_mark)
        message = f"not valid YAML: {error.problem}{f' ({error.context})' if error.context else ''}"
        raise DocumentError(file, message, line=position.line, column=position.column) from None


def _without_surrogates(text: str) -> str:
    r"""Return JSON with a YAML escape (``\U0001f600``) in place of each two surrogates, and any other text unchanged.

    In JSON each backslash is within double quotes. Columns behind the escape are two smaller.
    """
    if not _SURROGATES.search(text) or not _has_json_tokens(text):
        return text
    return _BACKSLASH_OR_SURROGATES.sub(_joined, text)


def _has_json_tokens(text: str) -> bool:
    """Return whether a text has only strings in double quotes, and outside of them no character that JSON lacks."""
    without_escapes = text.replace("\\\\", "##").replace('\\"', "##")
    return all(len(token[0]) > 1 for token in _STRING_OR_NOT_JSON.finditer(without_escapes))


def _joined(token: re.Match[str]) -> str:
    if token[1] is None:
        return token[0]
    return f"\\U{ord(bytes.fromhex(token[1] + token[2]).decode('utf-16-be')):08x}"


def _documents(text: str, file: str, on_characters: Callable[[int], None]) -> Iterator[YamlDocument]:
    events, done = _limited(yaml.parse(text, Loader=_Loader), file), 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            root = _Composer(events, file).node(next(events), depth=0)
            if root.data is not None:
                places: dict[FieldPath, Place] = {}
                _collect_places(root, (), root.position, places)
                yield YamlDocument(file, root.data, places)
        elif isinstance(event, yaml.DocumentEndEvent):
            assert event.end_mark is not None  # of the parser's events
            on_characters(event.end_mark.index - done)
            done = event.end_mark.index


def _limited(events: Iterator[Any], file: str) -> Iterator[Any]:
    """Yield the events; raise DocumentError at the first one beyond ``MAX_VALUES`` nodes."""
    values = 0
    for event in events:
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_VALUES:
            raise _error_at(event, file, f"too many values; a file has at most {MAX_VALUES} (scalars, lists, mappings)")
        yield event


def _check_nesting(text: str, file: str) -> None:
    """Raise DocumentError if the text, as far as it parses, is nested deeper than ``MAX_DEPTH``.

    The scanner reads up to 1,024 characters ahead of the events, and PyYAML 6.0.4 has a nesting limit of its own
    in the scanner. An error from the scanner can thus precede the event of a node that ``_Composer`` refuses.
    """
    depth = 0
    with contextlib.suppress(yaml.MarkedYAMLError):
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.NodeEvent) and depth > MAX_DEPTH:
                raise _too_deep(event, file)
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1


@dataclass
class _Node:
    """Node: a part of a document; an anchored node is shared by all its aliases."""

    data: object
    position: Position
    text: str = ""
    size: int = 1
    height: int = 0
    children: list[tuple[str | int, Position, "_Node"]] = field(default_factory=list)

    def add(self, part: str | int, position: Position, child: "_Node") -> None:
        self.children.append((part, position, child))
        self.size += child.size
        self.height = max(self.height, child.height + 1)


def _collect_places(node: _Node, path: FieldPath, key: Position, places: dict[FieldPath, Place]) -> None:
    places[path] = Place(key, node.position, node.text)
    for part, position, child in node.children:
        _collect_places(child, (*path, part), position, places)


class _Composer:
    """Composer: builds the nodes of one document from the events of the parser."""

    def __init__(self, events: Iterator[Any], file: str) -> None:
        self._events = events
        self._file = file
        self._anchors: dict[str, _Node] = {}
        self._aliased = 0
        self._scalars: Any = yaml.SafeLoader("")  # constructs scalars with a tag; its own input is empty

    def node(self, event: Any, depth: int) -> _Node:
        """Return the node that begins with this event; read its further events."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        self._check_depth(event, depth)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(event, depth)
        else:
            node = self._sequence(event, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, depth: int) -> _Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            raise self._error(event, f"alias *{event.anchor} has no anchor &{event.anchor} that ends before it")
        self._check_depth(event, depth + node.height)
        self._aliased += node.size
        if self._aliased > MAX_ALIASED:
            message = f"the aliases stand for too much; written out, at most {MAX_ALIASED} nodes are allowed"
            raise self._error(event, message)
        return node

    def _mapping(self, event: Any, depth: int) -> _Node:
        self._check_tag(event, event.tag, {_MAPPING})
        data: dict[str, object] = {}
        merges: list[_Node] | None = None
        node = _Node(data, _position(event.start_mark))
        while not isinstance(key_event := next(self._events), yaml.MappingEndEvent):
            if self._is_merge(key_event):
                merged = self.node(next(self._events), depth + 1)
                if merges is not None:
                    raise self._error(key_event, "duplicate key '<<'; a list of mappings merges several")
                merges = self._merged(merged, key_event)
                continue
            key = self._key(key_event, depth)
            if key in data:
                first = next(position for part, position, _ in node.children if part == key)
                raise self._error(key_event, f"duplicate key '{key}'; it is already given in line {first.line}")
            value = self.node(next(self._events), depth + 1)
            node.add(key, _position(key_event.start_mark), value)
            data[key] = value.data
        for mapping in merges or ():
            for part, position, child in mapping.children:
                if part not in data:
                    node.add(part, position, child)
                    data[part] = child.data  # type: ignore[index]  # the parts of a mapping are strings
        return node

    def _is_merge(self, event: Any) -> bool:
        if not isinstance(event, yaml.ScalarEvent):
            return False
        return event.tag == _MERGE or (event.tag is None and event.implicit[0] and event.value == "<<")

    def _merged(self, node: _Node, event: Any) -> list[_Node]:
        """Return the mappings that a merge key names: one, or those of a list."""
        mappings = [child for _, _, child in node.children] if isinstance(node.data, list) else [node]
        if not all(isinstance(mapping.data, dict) for mapping in mappings):
            raise self._error(event, "a merge key (<<) merges a mapping, or a list of mappings")
        return mappings

    def _key(self, event: Any, depth: int) -> str:
        node = self.node(event, depth + 1)
        if not isinstance(node.data, str):
            quoted = f'; quote it: "{node.text}"' if node.text else ""
            raise self._error(event, f"a key must be a string{quoted}")
        return node.data

    def _sequence(self, event: Any, depth: int) -> _Node:
        self._check_tag(event, event.tag, {_SEQUENCE})
        data: list[object] = []
        node = _Node(data, _position(event.start_mark))
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            value = self.node(item, depth + 1)
            node.add(len(data), _position(item.start_mark), value)
            data.append(value.data)
        return node

    def _scalar(self, event: Any) -> _Node:
        tag = _STRING if event.tag in _AS_TEXT else event.tag
        self._check_tag(event, tag, _SCALARS)
        return _Node(self._value(event, tag), _position(event.start_mark), event.value)

    def _value(self, event: Any, tag: str | None) -> object:
        is_plain = tag in {None, "!"} and event.implicit[0]
        if not is_plain and tag in {None, "!", _STRING}:
            return event.value
        try:
            value = (
                yaml_scalars.value(event.value)
                if is_plain
                else self._scalars.construct_object(yaml.ScalarNode(tag or "", event.value))
            )
        except (ValueError, LookupError, ArithmeticError):  # PyYAML raises these for !!int x, !!bool x
            raise self._error(event, f"'{event.value[:40]}' is not a value of its type") from None
        if not is_readable(value):
            raise self._error(event, f"the number '{event.value[:40]}' is out of range; {NUMBERS}")
        return value

    def _check_depth(self, event: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _too_deep(event, self._file)

    def _check_tag(self, event: Any, tag: str | None, allowed: set[str]) -> None:
        if tag is not None and tag not in {"!", *allowed}:
            raise self._error(event, f"tag '{tag.replace(_STANDARD, '!!')}' is not allowed here")

    def _error(self, event: Any, message: str) -> DocumentError:
        return _error_at(event, self._file, message)


def _too_deep(event: Any, file: str) -> DocumentError:
    return _error_at(event, file, f"nested too deep; at most {MAX_DEPTH} levels are allowed")


def _error_at(event: Any, file: str, message: str) -> DocumentError:
    position = _position(event.start_mark)
    return DocumentError(file, message, line=position.line, column=position.column)


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _position_of(before: str) -> Position:
    return Position(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
