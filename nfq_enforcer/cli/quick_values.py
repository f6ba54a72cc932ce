"""Values of options and arguments without pydantic.

Typer converts values by pydantic, whose import takes longer than all else of a command that only asks the agent.
A value whose conversion is plain (a text, a path, a number, a member of an enumeration, lists of these) is converted
here; Typer converts every other one, and all that are wrong, so that its error messages are those of all commands.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

_SLOW = object()  # stands for a value that Typer has to convert


def set_up(function: Callable[..., Any], parameters: Sequence[Any]) -> None:
    """Let the parameters of a command, made by Typer of a function, convert plain values on their own."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in parameters:
        if parameter.name in hints and parameter.callback is None:
            parameter.process_value = _processor(parameter, *split(hints[parameter.name]))


def split(hint: Any) -> tuple[Any, Any]:
    """Return the type of a parameter by its annotation, without ``| None``, and the option or argument in it."""
    kind, info = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    present = [one for one in get_args(kind) if one is not NoneType]
    return (present[0] if NoneType in get_args(kind) and len(present) == 1 else kind), info


def _processor(parameter: Any, kind: Any, info: Any) -> Callable[[Any, Any], Any]:
    by_typer = parameter.process_value

    def process(context: Any, value: Any) -> Any:
        converted = _SLOW if parameter.required and not value else convert(value, kind, vars(info) if info else {})
        return by_typer(context, value) if converted is _SLOW else converted

    return process


def convert(value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    """Return a value of this type; _SLOW if that is not plain.

    ``limits`` has ``min`` and ``max`` of a number, and ``case_sensitive`` of an enumeration.
    """
    if get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            return () if value is None else _SLOW
        items = [convert(item, get_args(kind)[0], limits) for item in value]
        return _SLOW if any(item is _SLOW for item in items) else tuple(items)
    if value is None:
        return None
    if kind is int:
        return _number(value, limits.get("min"), limits.get("max"))
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    if isinstance(value, str) and isinstance(kind, type) and issubclass(kind, Enum):
        return _member(value, kind, case_sensitive=limits.get("case_sensitive", True))
    return Path(value) if kind is Path and isinstance(value, str) else _SLOW


def _number(value: Any, least: float | None, most: float | None) -> Any:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        value = int(value)
    elif type(value) is not int:
        return _SLOW
    return value if (least is None or least <= value) and (most is None or value <= most) else _SLOW


def _member(value: str, kind: type[Enum], *, case_sensitive: bool) -> Any:
    fold = str if case_sensitive else str.casefold
    members = [member for member in kind if fold(str(member.value)) == fold(value)]
    return members[0] if members else _SLOW
