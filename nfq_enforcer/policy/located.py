"""YAML (and so JSON) as plain data, with the place of every field.

Any text gives documents or one DocumentError that says where it is. Refused are: what does not parse, a key that is
given twice or is no string, tags beyond YAML's own scalars, merge keys, and aliases or nesting without measure (a few
hundred bytes of aliases can stand for billions of nodes). Timestamps stay the text they are, as for kubectl.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from nfq_enforcer.errors import DocumentError

MAX_DEPTH = 64
MAX_ALIASED = 100_000  # nodes that the aliases of one document stand for

Path = tuple[str | int, ...]

_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_STANDARD = "tag:yaml.org,2002:"
_STRING, _MAPPING, _SEQUENCE = f"{_STANDARD}str", f"{_STANDARD}map", f"{_STANDARD}seq"
_AS_TEXT = {f"{_STANDARD}timestamp", f"{_STANDARD}value"}
_SCALARS = {_STRING, *(f"{_STANDARD}{name}" for name in ("int", "float", "bool", "null"))}


class Position(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int


class Place(NamedTuple):
    """Where a field stands and how its value is written there."""

    key: Position  # of an item of a list: of its value
    value: Position
    written: str = ""  # a scalar as it is written, without quotes


@dataclass(frozen=True)
class Located:
    """One document: its data, and the place of each field by its path."""

    file: str
    data: object
    places: Mapping[Path, Place]

    def place(self, path: Path) -> Place:
        """Return where the field stands, or where the nearest field around it does if it is missing."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def error(self, path: Path, message: str, *, at_key: bool = False) -> DocumentError:
        """Return the error that says this of the field."""
        place = self.place(path)
        position = place.key if at_key else place.value
        return DocumentError(self.file, message, line=position.line, column=position.column, field=render_path(path))


def render_path(path: Path) -> str:
    """Render as ``spec.ingress[0].toPorts``; a key that is no plain word in brackets and quotes."""
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
    """Return the text of a file; raise DocumentError for what is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position_of(raw[: error.start].decode("utf-8", "replace"))
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; documents are UTF-8 text"
        raise DocumentError(file, message, line=line, column=column) from None


def parse(text: str, file: str) -> list[Located]:
    """Return the documents of a text, without the empty ones; raise DocumentError for the first thing refused."""
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable:
        line, column = _position_of(text[: unprintable.start()])
        message = f"character U+{ord(unprintable[0]):04X} is not allowed in YAML"
        raise DocumentError(file, message, line=line, column=column)
    try:
        return list(_documents(text, file))
    except yaml.MarkedYAMLError as error:
        assert error.problem_mark is not None  # of the scanner's and the parser's errors
        _check_nesting(text[: error.problem_mark.index], file)
        position = _position(error.problem_mark)
        message = f"not valid YAML: {error.problem}{f' ({error.context})' if error.context else ''}"
        raise DocumentError(file, message, line=position.line, column=position.column) from None


def _documents(text: str, file: str) -> Iterator[Located]:
    events = yaml.parse(text, Loader=_Loader)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            root = _Composer(events, file).node(next(events), depth=0)
            if root.data is not None:
                places: dict[Path, Place] = {}
                _spread(root, (), root.position, places)
                yield Located(file, root.data, places)


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
    """A part of a document; an aliased one is shared by all places that name it."""

    data: object
    position: Position
    written: str = ""
    size: int = 1
    height: int = 0
    children: list[tuple[str | int, Position, "_Node"]] = field(default_factory=list)

    def add(self, part: str | int, position: Position, child: "_Node") -> None:
        self.children.append((part, position, child))
        self.size += child.size
        self.height = max(self.height, child.height + 1)


def _spread(node: _Node, path: Path, key: Position, places: dict[Path, Place]) -> None:
    places[path] = Place(key, node.position, node.written)
    for part, position, child in node.children:
        _spread(child, (*path, part), position, places)


class _Composer:
    """Builds the nodes of one document from the events of the parser."""

    def __init__(self, events: Iterator[Any], file: str) -> None:
        self._events = events
        self._file = file
        self._anchors: dict[str, _Node] = {}
        self._aliased = 0
        self._scalars: Any = yaml.SafeLoader("")  # resolves and constructs; reads nothing

    def node(self, event: Any, depth: int) -> _Node:
        """Return the node that begins with this event."""
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
        node = _Node(data, _position(event.start_mark))
        while not isinstance(key_event := next(self._events), yaml.MappingEndEvent):
            key = self._key(key_event, depth)
            if key in data:
                first = next(position for part, position, _ in node.children if part == key)
                raise self._error(key_event, f"duplicate key '{key}'; it is already given in line {first.line}")
            value = self.node(next(self._events), depth + 1)
            node.add(key, _position(key_event.start_mark), value)
            data[key] = value.data
        return node

    def _key(self, event: Any, depth: int) -> str:
        node = self.node(event, depth + 1)
        if not isinstance(node.data, str):
            quoted = f'; quote it: "{node.written}"' if node.written else ""
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
        tag = event.tag
        if tag in {None, "!"}:
            tag = self._scalars.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag == f"{_STANDARD}merge":
            raise self._error(event, "merge keys (<<) are not allowed; write the fields out")
        tag = _STRING if tag in _AS_TEXT else tag
        self._check_tag(event, tag, _SCALARS)
        return _Node(self._value(event, tag), _position(event.start_mark), event.value)

    def _value(self, event: Any, tag: str) -> object:
        if tag == _STRING:
            return event.value
        try:
            return self._scalars.construct_object(yaml.ScalarNode(tag, event.value))
        except (ValueError, LookupError, ArithmeticError):  # what PyYAML makes of !!int x, !!bool x, 1:1:…:1.0
            raise self._error(event, f"'{event.value[:40]}' is not a value of its type") from None

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
