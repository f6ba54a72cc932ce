"""``nfq-enforcer node``: the nodes of the cluster."""

from collections.abc import Mapping
from typing import Any

import typer
from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket

app = typer.Typer(help="Nodes.", no_args_is_help=True)

_COLUMNS = ("NODE", "LIVE", "LAST SEEN", "REVISION", "ENDPOINTS", "ADDRESSES", "VERSION", "DATAPATH")


_LIVE = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("unknown", "yellow")}  # without the store


@app.callback()
def node() -> None:
    """Nodes."""


@app.command("list")
def list_nodes(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the nodes of the cluster: which are live, and the revision of the policy that each enforces."""
    output.show(client.call(socket, "nodes"), form, lambda seen: output.table(_COLUMNS, map(_row, seen)))


def _row(one: Mapping[str, Any]) -> list[object]:
    live = _LIVE[one["live"]]
    rest = (one[key] for key in ("last_seen", "revision", "endpoints", "addresses", "version", "datapath"))
    return [one["name"], live, *rest]
