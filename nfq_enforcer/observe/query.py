"""Query of flows: filters, a range of time, and a number, as the agent's method ``observe`` takes them."""

import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.filters import BY_NAME, OPTIONS, FlowFilter, Given
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.text import shorten

T = TypeVar("T")

_MAX_VALUES = 1000  # of all filters of one kind
_MAX_TEXT = 4096  # characters of a value
SHORT = {option.short: option.name for option in OPTIONS if option.short}


class Query:
    """Query: selects flows of a log."""

    def __init__(
        self,
        allow: Given | None = None,
        deny: Given | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> None:
        """Compile the filters; raise BadInput.

        ``first`` and ``last`` limit the number of flows, ``since`` and ``until`` their times, in s since the epoch.
        """
        if first is not None and last is not None:
            raise BadInput("first and last exclude each other")
        self._allow = FlowFilter(allow or {})
        self._deny = FlowFilter(deny) if deny else None
        self._first, self._last = first, last
        self._since, self._until = since, until

    def admits(self, logged: Logged) -> bool:
        """Return whether a flow is in the range of time, and the filters leave it in."""
        if self._since is not None and logged.wall_time < self._since:
            return False
        if self._until is not None and logged.wall_time > self._until:
            return False
        return self._allow.matches(logged) and not (self._deny is not None and self._deny.matches(logged))

    def select(self, flows: Iterable[T], event: Callable[[T], Logged]) -> Iterator[T]:
        """Yield the flows that the query selects from a log, oldest first; ``event`` returns the event of a flow."""
        admitted = (flow for flow in flows if self.admits(event(flow)))
        if self._first is not None:
            return islice(admitted, self._first)
        return iter(admitted if self._last is None else deque(admitted, maxlen=self._last))


def read_filters(value: object, name: str) -> dict[str, list[str]]:
    """Return filters of a request, values by the name of their option; raise BadInput for any other value."""
    allowed = f"{name} must be an object with a list of strings for each filter"
    if not isinstance(value, Mapping):
        raise BadInput(allowed)
    filters: dict[str, list[str]] = {}
    for option, values in value.items():
        if not isinstance(values, list) or not values or not all(_is_text(text) for text in values):
            raise BadInput(f"{allowed}; '{shorten(str(option))}' has none")
        filters[option] = values
    if sum(map(len, filters.values())) > _MAX_VALUES:
        raise BadInput(f"{name} must have at most {_MAX_VALUES} values")
    return filters


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def parse_words(text: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the filters of a line of words as on the command line, allowing and denying ones; raise BadInput.

    The dashes may be left out: ``from-label role=frontend not to-port 53``.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        raise BadInput("a quotation mark is not closed") from None
    return _sort(words)


def _sort(words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    allow: dict[str, list[str]] = {}
    deny: dict[str, list[str]] = {}
    rest, given = deque(words), allow
    while rest:
        word = rest.popleft()
        name, equals, value = word.lstrip("-").partition("=")
        name = SHORT.get(name, name)
        if name == "not" and not equals:
            if given is deny:
                raise BadInput("not is followed by another not; allowed: a filter")
            given = deny
            continue
        if name not in BY_NAME:
            raise BadInput(f"unknown filter '{shorten(name)}'; allowed: not, {', '.join(BY_NAME)}")
        constant = BY_NAME[name].constant
        if not constant and not equals and not rest:
            raise BadInput(f"{name} has no value; allowed: {name} {BY_NAME[name].metavar}")
        given.setdefault(name, []).append(constant or (value if equals else rest.popleft()))
        given = allow
    if given is deny:
        raise BadInput("not is the last word; allowed: a filter after it")
    return allow, deny


def parameters(allow: Given, deny: Given, **others: Any) -> dict[str, Any]:
    """Return the parameters of the agent's method ``observe``, without those that have no value."""
    given = {"allow": allow or None, "deny": deny or None, **others}
    return {name: value for name, value in given.items() if value is not None}
