"""Parameters of the API's methods, checked where they enter: each function returns a value, or refuses the request."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from nfq_enforcer.errors import BadInput
from nfq_enforcer.text import shorten

Params = Mapping[str, Any]

_MAX_TEXT = 1000  # characters of a name


def text(params: Params, name: str, default: str = "") -> str:
    """Return a name."""
    value = params.get(name, default)
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise BadInput(f"{name} must be a string of at most {_MAX_TEXT} characters, not {_shown(value)}")
    return value


def texts(params: Params, name: str) -> list[str]:
    """Return a list of names."""
    value = params.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= _MAX_TEXT for item in value):
        raise BadInput(f"{name} must be a list of strings of at most {_MAX_TEXT} characters, not {_shown(value)}")
    return value


def flag(params: Params, name: str) -> bool:
    """Return a truth value, False by default."""
    value = params.get(name, False)
    if not isinstance(value, bool):
        raise BadInput(f"{name} must be true or false, not {_shown(value)}")
    return value


def count(params: Params, name: str) -> int | None:
    """Return a number of items, None if there is none in the request."""
    value = params.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise BadInput(f"{name} must be a whole number, 0 or more, not {_shown(value)}")
    return value


def seconds(params: Params, name: str, at_most: float) -> float | None:
    """Return a duration, None if there is none in the request; a longer one counts as ``at_most``."""
    value = params.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise BadInput(f"{name} must be a number of seconds, 0 or more, or null")
    return min(float(value), at_most)


def time(params: Params, name: str) -> float | None:
    """Return a time in seconds since the epoch, None if there is none in the request."""
    value = params.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value)):
        raise BadInput(f"{name} must be a number of seconds since 1970, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return shorten(repr(value), 50)
