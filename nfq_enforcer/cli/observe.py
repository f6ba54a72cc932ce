"""``nfq-enforcer observe``: new flows and drops, from the flow log, as they come, or from a file."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from nfq_enforcer import input_file
from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.filter_options import Filters, with_filters
from nfq_enforcer.cli.options import DEFAULT, Socket
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.query import Query, parameters
from nfq_enforcer.observe.text import COLUMNS, TextForm
from nfq_enforcer.observe.times import parse_time

_LAST = 20  # flows without another limit, as ``hubble observe``
_SEPARATOR = "------------"

Item = Mapping[str, Any]


class ObserveFormat(StrEnum):
    """Output format of flows."""

    COMPACT = "compact"
    DICT = "dict"
    TAB = "tab"
    TABLE = "table"
    JSON = "json"
    JSONPB = "jsonpb"


@with_filters()
def observe(
    filters: Filters,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new flows as they come.")] = False,
    last: Annotated[
        int | None, typer.Option(min=0, help=f"The last N flows that match. Default: {_LAST}, 0 with --follow.")
    ] = None,
    first: Annotated[int | None, typer.Option(min=0, help="The first N flows of the log that match.")] = None,
    all_flows: Annotated[bool, typer.Option("--all", help="All flows of the log that match.")] = False,
    since: Annotated[str | None, typer.Option(help="Flows since a time, or an age: 5m, 2026-11-28T09:30:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Flows until a time, or an age; not with --follow.")] = None,
    all_nodes: Annotated[
        bool, typer.Option("--all-nodes", help="Flows of all nodes by time; new ones are held for 0.2 s for that.")
    ] = False,
    saved_flows: Annotated[
        str | None,
        typer.Option(
            "--input-file", help="Read flows from a file of -o json, of -o jsonpb or of Hubble; - is the input."
        ),
    ] = None,
    form: Annotated[
        ObserveFormat,
        typer.Option("--output", "-o", help="compact, dict, tab; json: one flow a line; jsonpb: Hubble's own form."),
    ] = ObserveFormat.COMPACT,
    numeric: Annotated[bool, typer.Option("--numeric", help="Show addresses and numbers, no names.")] = False,
    socket: Socket = DEFAULT,
) -> None:
    """Show new flows, ends of flows and drops: both ends, the verdict, and the documents that decided it.

    Several values of one filter are alternatives; a flow has to match all filters. --not before a filter leaves out the
    flows that match it.
    """
    _check(first=first, last=last, all_flows=all_flows, follow=follow, form=form, is_file=saved_flows is not None)
    if all_nodes and saved_flows is not None:
        raise BadInput("--input-file and --all-nodes exclude each other")
    times = _times(since=since, until=None if follow else until)
    limited = first is not None or last is not None or all_flows or times or saved_flows is not None
    if not limited:
        last = 0 if follow else _LAST
    params = parameters(*filters, first=first, last=last, **times)
    query = Query(**params)  # a mistake is found without an agent
    if saved_flows is not None:
        batches: Iterator[list[Item]] = ([item] for item in _saved(saved_flows, query))
    else:
        whole = {"all_nodes": True} if all_nodes else {}
        batches = map(_noted, client.batches(socket, "observe", **params, **whole, follow=follow))
    try:
        _print(batches, form, TextForm(numeric))
    except (KeyboardInterrupt, BrokenPipeError):  # the user, or the reader of the output, ended it
        return


def _times(**written: str | None) -> dict[str, Any]:
    now = time.time()
    return {name: parse_time(text, now) for name, text in written.items() if text is not None}


def _check(
    *, first: int | None, last: int | None, all_flows: bool, follow: bool, form: ObserveFormat, is_file: bool
) -> None:
    """Raise BadInput for options that exclude each other."""
    limits = {"--first": first is not None, "--last": last is not None, "--all": all_flows}
    given = [name for name, is_given in limits.items() if is_given]
    if is_file and follow:
        given = ["--input-file"]
    if follow and (first is not None or is_file):
        given.append("--follow")
    if len(given) > 1:
        raise BadInput(f"{given[0]} and {given[1]} exclude each other")
    if follow and form in {ObserveFormat.TAB, ObserveFormat.TABLE}:
        raise BadInput("a table has no end with --follow; allowed: -o compact, dict, json, jsonpb")


def _noted(items: list[Item]) -> list[Item]:
    """Return the items but notices, which are printed beside the output."""
    for item in items:
        if "notice" in item:
            output.note(str(item["notice"]))
    return [item for item in items if "notice" not in item]


def _saved(name: str, query: Query) -> Iterator[Item]:
    """Return the flows of a file that the query selects; a line that is no flow is noted."""
    from nfq_enforcer.observe import saved

    lines = input_file.lines(Path(name), input_file.FLOW_SIZE)
    return (flow.item for flow in saved.select(lines, query, output.note))


def _print(batches: Iterator[list[Item]], form: ObserveFormat, text: TextForm) -> None:
    if form in {ObserveFormat.TAB, ObserveFormat.TABLE}:
        output.display(output.table(COLUMNS, map(text.row, chain.from_iterable(batches))))
        return
    lines_of = _lines_of(form, text)
    separator: list[str] = []
    for items in batches:
        lines: list[str] = []
        for item in items:
            lines += separator
            lines += lines_of(item)
            separator = [_SEPARATOR] if form is ObserveFormat.DICT else []
        if lines:
            output.lines(lines)


def _lines_of(form: ObserveFormat, text: TextForm) -> Callable[[Item], list[str]]:
    if form is ObserveFormat.JSON:
        return lambda item: [json.dumps(item)]
    if form is ObserveFormat.JSONPB:
        from nfq_enforcer.observe.hubble import to_response

        return lambda item: [json.dumps(to_response(item))]
    return text.fields if form is ObserveFormat.DICT else lambda item: [text.compact(item)]
