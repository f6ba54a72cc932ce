"""``nfq-enforcer status`` and ``nfq-enforcer endpoint``: what the agent of this node is doing."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nfq_enforcer import api
from nfq_enforcer.cli.options import DEFAULT, Format, Socket
from nfq_enforcer.core.verdict import DropReason

Output = Annotated[Format, typer.Option("--output", "-o", help="table, json or yaml.")]
endpoint = typer.Typer(help="Endpoints.", no_args_is_help=True)


def status(output: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """Show what the agent enforces, how its worker fares, and what it could not take."""
    seen = api.call(socket, "status")
    if not _printed(seen, output):
        rows = Table(box=None, show_header=False)
        for name, value in _status_rows(seen):
            rows.add_row(name, value)
        Console().print(rows)


@endpoint.callback()
def _endpoint() -> None:
    """Endpoints."""


@endpoint.command("list")
def list_endpoints(output: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the endpoints of the cluster, as this node knows them."""
    seen = api.call(socket, "endpoints")
    if not _printed(seen, output):
        table = Table(
            "ENDPOINT", "IDENTITY", "NODE", "ADDRESSES", Column("LABELS", overflow="fold"), box=box.SIMPLE_HEAD
        )
        for one in seen:
            name = f"{one['namespace']}/{one['name']}"
            cells = (str(one["identity"]), one["node"], "\n".join(one["addresses"]), "\n".join(one["labels"]))
            table.add_row(name, *cells)
        Console().print(table)


def _printed(seen: Any, output: Format) -> bool:
    if output is Format.JSON:
        print(json.dumps(seen, indent=2))
    elif output is Format.YAML:
        print(yaml.safe_dump(seen, sort_keys=False), end="")
    return output is not Format.TABLE


def _status_rows(seen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    worker, documents = seen["worker"], seen["documents"]
    yield "node", f"{seen['node']} ({', '.join(seen['addresses']) or 'no address'})"
    yield "stamps believed on", ", ".join(seen["cluster_interfaces"]) or "no interface"
    yield "enforcement", f"{seen['enforcement']}{', only audited' if seen['audit'] else ''}; fail {seen['fail']}"
    yield "families", ", ".join(seen["families"])
    yield "revision", f"{seen['revision']}: {documents['policies']} policies, {documents['endpoints']} endpoints"
    yield "endpoints here", str(seen["endpoints"])
    if seen["refused"]:
        yield "documents refused", f"[red]since {seen['refused']['since']}[/red]\n{escape(seen['refused']['error'])}"
    yield (
        "worker",
        f"queue {worker['queue']} ({worker['driver']}), process {worker['pid']}, {worker['restarts']} restarts",
    )
    if worker["failure"]:
        yield "worker failure", f"[red]{escape(worker['failure'])}[/red]"
    yield (
        "packets",
        f"{worker['accepted']} accepted, {worker['dropped']} dropped, {worker['lost']} lost without a verdict",
    )
    for reason in DropReason:
        if worker[reason]:
            yield f"  {reason}", f"{worker[reason]} ({reason.description})"
    yield "flows", f"{worker['flows']} open, {worker['flows_evicted']} evicted"
    yield "log", f"{seen['log']['seen']} events, {worker['events_lost']} lost"
