"""``nfq-enforcer identity``: the numbers that policy speaks of, and the labels that make them."""

from typing import Annotated

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, Output, Socket
from nfq_enforcer.errors import NfqError

app = typer.Typer(help="Identities.", no_args_is_help=True)


@app.callback()
def identity() -> None:
    """Identities."""


@app.command("list")
def list_identities(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the identities of the cluster, as this node knows them."""
    columns = ("IDENTITY", "LABELS", "ENDPOINTS")
    output.show(
        client.call(socket, "identities"),
        form,
        lambda seen: output.table(columns, ([one["identity"], one["labels"], one["endpoints"]] for one in seen)),
    )


@app.command()
def get(
    number: Annotated[int, typer.Argument(help="The identity's number.", metavar="NUMBER")],
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print an identity: its labels, and how many endpoints have it."""
    for one in client.call(socket, "identities"):
        if one["identity"] == number:
            output.print_data(one, form)
            return
    raise NfqError(f"there is no identity {number}; 'nfq-enforcer identity list' shows those there are")
