"""``nfq-enforcer ipcache``: the identity of each address."""

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket

app = typer.Typer(help="The ipcache: addresses and their identities.", no_args_is_help=True)

_FIELDS = ("address", "identity", "node", "endpoint", "labels")


@app.callback()
def ipcache() -> None:
    """Show the ipcache."""


@app.command("list")
def list_addresses(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the addresses with a known identity."""
    output.show(
        client.call(socket, "ipcache"),
        form,
        lambda result: output.table(map(str.upper, _FIELDS), ([one[field] for field in _FIELDS] for one in result)),
    )
