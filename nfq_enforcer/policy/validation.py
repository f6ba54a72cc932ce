"""Validation of plain data against a model: pydantic's errors as messages for users, with the place in the file."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import templates
from nfq_enforcer.policy.yaml_source import FieldPath, YamlDocument

ItemT = TypeVar("ItemT")
Items = Annotated[tuple[ItemT, ...], Strict(False)]  # a strict tuple would refuse the lists of documents


class Part(BaseModel):
    """Part: a mapping in a document; unknown fields are refused, types are not converted, null counts as missing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=to_camel)

    unsupported: ClassVar[frozenset[str]] = frozenset()  # fields of upstream that this version refuses
    removed: ClassVar[frozenset[str]] = (
        frozenset()
    )  # fields that upstream removed; an empty list is accepted and has no effect
    elsewhere: ClassVar[Mapping[str, str]] = {}  # fields of a similar mapping only, and that mapping

    @classmethod
    def fields(cls) -> Mapping[str, Any]:
        """Return the type of each field, by the field's name in a document."""
        return {str(field.alias): field.annotation for field in cls.model_fields.values()}

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = cls.unsupported.union(cls.removed, cls.elsewhere, cls.fields())
        return {
            name: value
            for name, value in data.items()
            if (value is not None or name not in known) and (value != [] or name not in cls.removed)
        }


Model = TypeVar("Model", bound=Part)


def validate(
    model: type[Model], data: object, source: YamlDocument, base: FieldPath = (), *, explain: bool = False
) -> Model:
    """Return the validated model of the data at ``base``; raise DocumentErrors with all errors.

    ``explain``: name the marks of templates in the data, which must hold no secrets, in place of the errors they cause.
    """
    try:
        return model.model_validate(data)
    except ValidationError as invalid:
        details = _without_consequences(model, [dict(detail) for detail in invalid.errors(include_url=False)])
        errors = [(_place(detail, base), _error(model, detail, source, base)) for detail in details]
        if explain:
            raise DocumentErrors(templates.explain_errors(errors, source, base, data)) from None
        raise DocumentErrors(sorted((error for _, error in errors), key=lambda e: (e.line, e.column))) from None


def unknown_name(name: str, names: Iterable[str], noun: str = "field", allowed: str = "") -> str:
    """Return the message about an unknown name, with the closest known name as a suggestion."""
    known = list(names)
    close = get_close_matches(name, known, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {noun} '{name}'; {hint}allowed: {allowed or ', '.join(known)}"


def _without_consequences(model: type[Part], details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the errors without those about a missing field beside an unsupported one, which stands in its place."""
    unsupported = {
        path[:-1]
        for path in (detail["loc"] for detail in details if detail["type"] == "extra_forbidden")
        if path[-1] in _part_at(model, path[:-1]).unsupported
    }
    return [detail for detail in details if detail["type"] != "missing" or detail["loc"][:-1] not in unsupported]


def _place(detail: dict[str, Any], base: FieldPath) -> FieldPath:
    path: FieldPath = detail["loc"]
    return base + (path[:-1] if path[-1:] == ("[key]",) else path)


def _error(model: type[Part], detail: dict[str, Any], source: YamlDocument, base: FieldPath) -> DocumentError:
    path: FieldPath = detail["loc"]
    if path[-1:] == ("[key]",):
        return source.error(base + path[:-1], _message(detail, ""), at_key=True)
    if detail["type"] == "extra_forbidden":
        name = str(path[-1])
        return source.error(base + path, _unknown_field(_part_at(model, path[:-1]), name), at_key=True)
    return source.error(base + path, _message(detail, source.place(base + path).text))


def _unknown_field(part: type[Part], name: str) -> str:
    if name in part.unsupported:
        return f"{name} is not supported by this version"
    if name in part.elsewhere:
        return f"{name} exists in {part.elsewhere[name]} only; allowed: {', '.join(part.fields())}"
    if name in part.removed:
        return f"{name} was removed upstream, and is refused rather than ignored; allowed: {', '.join(part.fields())}"
    return unknown_name(name, part.fields())


def _part_at(model: type[Part], path: FieldPath) -> type[Part]:
    for name in path:
        if isinstance(name, str):
            model = _part_in(model.fields()[name]) or model
    return model


def _part_in(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next(filter(None, map(_part_in, get_args(annotation))), None)


_EXPECTED_TYPES = {
    "string_type": "a string",
    "int_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
}
_ACTUAL_TYPES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a fraction",
    list: "a list",
    dict: "a mapping",
}


def _message(detail: dict[str, Any], text: str) -> str:
    kind, value = detail["type"], detail["input"]
    if kind in _EXPECTED_TYPES:
        actual = _ACTUAL_TYPES.get(type(value), "null")
        return f"must be {_EXPECTED_TYPES[kind]}, not {actual}{_hint(kind, value, text)}"
    if kind == "literal_error":
        return f"{value!r} is not allowed; allowed: {detail['ctx']['expected']}"
    if kind == "missing":
        return "required field is missing"
    return str(detail["ctx"]["error"])  # a ValueError of one of this package's validators


def _hint(kind: str, value: object, text: str) -> str:
    if kind == "string_type" and value is None:
        return '; write "" for an empty one'
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'; quote it: "{text}"'
    return ""
