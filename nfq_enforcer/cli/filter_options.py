"""Options for the filters of ``observe``, each of which may follow ``--not``."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer

from nfq_enforcer.cli import names
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.filters import BY_NAME, OPTIONS, FilterOption
from nfq_enforcer.observe.query import SHORT

_NOT = "--not"
_DENIED = "--not-"  # begins the hidden twin of each option, for a value after --not
_LIVE = {"pod": names.endpoints, "identity": names.identities, "node-name": names.nodes}  # offered by completion
_LEAVE_OUT = "Leave out the flows that match the next filter."


class Filters(NamedTuple):
    """Filters of a command line: the allowing and the denying ones, values by the name of their option."""

    allow: dict[str, list[str]]
    deny: dict[str, list[str]]


def _rewrite(args: list[str]) -> list[str]:
    return list(_joined(args))


def _joined(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with ``--not --to-port`` as ``--not-to-port``."""
    rest = iter(args)
    for argument in rest:
        if argument == "--":
            yield from (argument, *rest)
        elif argument == _NOT:
            yield _denied(next(rest, ""))
        else:
            yield argument


def _denied(option: str) -> str:
    name, equals, value = option.partition("=")
    plain = name[2:] if name.startswith("--") else SHORT.get(name[1:], "")
    if plain not in BY_NAME:
        filters = ", ".join(f"--{known}" for known in BY_NAME)
        raise BadInput(f"--not is followed by {option or 'nothing'}; allowed: a filter ({filters})")
    return f"{_DENIED}{plain}{equals}{value}"


def with_filters(*, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the filter options in place of its parameter ``filters``, except those named in ``without``."""
    options = [option for option in OPTIONS if option.name not in without]
    return lambda function: _with_options(function, options)


def _with_options(function: Callable[..., None], options: Sequence[FilterOption]) -> Callable[..., None]:
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "filters"]
    added = list(_parameters(options))

    @wraps(function)
    def command(**values: Any) -> None:
        filters = Filters({}, {})
        values.pop("negate")
        for prefix, kind in (("allow", filters.allow), ("deny", filters.deny)):
            for option in options:
                given = values.pop(_parameter_name(prefix, option))
                if given:
                    kind[option.name] = [option.constant] if option.constant else list(given)
        function(filters=filters, **values)

    parameters = [*own, *added]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.rewrite = _rewrite  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameters(options: Sequence[FilterOption]) -> Iterator[inspect.Parameter]:
    negate = typer.Option(_NOT, help=_LEAVE_OUT)
    yield _parameter("negate", Annotated[bool, negate], default=False)
    for option in options:
        written = [f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
        for prefix, declared in (("allow", written), ("deny", [f"{_DENIED}{option.name}"])):
            name, hidden = _parameter_name(prefix, option), prefix == "deny"
            form: dict[str, Any] = {"help": option.help, "hidden": hidden}
            if option.constant:
                yield _parameter(name, Annotated[bool, typer.Option(*declared, **form)], default=False)
            else:
                metavar = option.metavar
                live = _LIVE.get(option.name.removeprefix("from-").removeprefix("to-"))
                given = typer.Option(*declared, metavar=metavar, show_default=False, autocompletion=live, **form)
                yield _parameter(name, Annotated[list[str] | None, given], default=None)


def _parameter_name(prefix: str, option: FilterOption) -> str:
    return f"{prefix}_{option.name.replace('-', '_')}"


def _parameter(name: str, annotation: Any, *, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
