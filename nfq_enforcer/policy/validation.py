"""From plain data to a model: what pydantic objects to, told as a user needs it, with the place in the file."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy.yaml_source import Located, Path

Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Strict(False)]  # a strict tuple would refuse the list that a document has


class Part(BaseModel):
    """A mapping in a document: unknown fields are refused, types are not guessed, null counts as missing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=to_camel)

    unsupported: ClassVar[frozenset[str]] = frozenset()  # what upstream has here and this version refuses
    removed: ClassVar[frozenset[str]] = frozenset()  # what upstream had here once; an empty list of it says nothing

    @classmethod
    def fields(cls) -> Mapping[str, Any]:
        """Return the type of each field by its name in a document."""
        return {str(field.alias): field.annotation for field in cls.model_fields.values()}

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = cls.unsupported.union(cls.removed, cls.fields())
        return {
            name: value
            for name, value in data.items()
            if (value is not None or name not in known) and (value != [] or name not in cls.removed)
        }


Model = TypeVar("Model", bound=Part)


def validate(model: type[Model], data: object, located: Located, base: Path = ()) -> Model:
    """Return the model of the data that stands at ``base``; raise DocumentErrors for all that is wrong with it."""
    try:
        return model.model_validate(data)
    except ValidationError as invalid:
        problems = [_problem(model, dict(detail), located, base) for detail in invalid.errors(include_url=False)]
        raise DocumentErrors(sorted(problems, key=lambda problem: (problem.line, problem.column))) from None


def unknown(name: str, names: Iterable[str], what: str = "field", allowed: str = "") -> str:
    """Return the sentence about a name that does not exist, with the one that was probably meant."""
    known = list(names)
    close = get_close_matches(name, known, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {what} '{name}'; {hint}allowed: {allowed or ', '.join(known)}"


def _problem(model: type[Part], detail: dict[str, Any], located: Located, base: Path) -> DocumentError:
    where: Path = detail["loc"]
    if where[-1:] == ("[key]",):
        return located.error(base + where[:-1], _sentence(detail, ""), at_key=True)
    if detail["type"] == "extra_forbidden":
        name = str(where[-1])
        return located.error(base + where, _no_such_field(_part_at(model, where[:-1]), name), at_key=True)
    return located.error(base + where, _sentence(detail, located.place(base + where).written))


def _no_such_field(part: type[Part], name: str) -> str:
    if name in part.unsupported:
        return f"{name} is not supported by this version"
    if name in part.removed:
        return f"{name} was removed upstream, and is refused rather than ignored; allowed: {', '.join(part.fields())}"
    return unknown(name, part.fields())


def _part_at(model: type[Part], path: Path) -> type[Part]:
    for name in path:
        if isinstance(name, str):
            model = _part_in(model.fields()[name]) or model
    return model


def _part_in(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next(filter(None, map(_part_in, get_args(annotation))), None)


_WANTED = {
    "string_type": "a string",
    "int_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
}
_GIVEN = {str: "a string", bool: "a boolean", int: "a number", float: "a fraction", list: "a list", dict: "a mapping"}


def _sentence(detail: dict[str, Any], written: str) -> str:
    kind, given = detail["type"], detail["input"]
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {_GIVEN.get(type(given), 'null')}{_remedy(kind, given, written)}"
    if kind == "literal_error":
        return f"{given!r} is not allowed; allowed: {detail['ctx']['expected']}"
    if kind == "missing":
        return "required field is missing"
    return str(detail["ctx"]["error"])  # raised by a validator of ours


def _remedy(kind: str, given: object, written: str) -> str:
    if kind == "string_type" and given is None:
        return '; write "" for an empty one'
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f'; quote it: "{written}"'
    return ""
