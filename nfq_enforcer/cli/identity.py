"""``nfq-enforcer identity``: identities, and the labels of each."""

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
    """List the cluster's identities that this node has."""
    columns = ("IDENTITY", "LABELS", "ENDPOINTS")
    output.show(
        client.call(socket, "identities"),
        form,
        lambda result: output.table(columns, ([one["identity"], one["labels"], one["endpoints"]] for one in result)),
    )


@app.command()
def get(
    number: Annotated[int, typer.Argument(help="Number of the identity.", metavar="NUMBER")],
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print an identity: its labels and the number of its endpoints."""
    for one in client.call(socket, "identities"):
        if one["identity"] == number:
            output.print_data(one, form)
            return
    raise NfqError(f"there is no identity {number}; 'nfq-enforcer identity list' shows those there are")
