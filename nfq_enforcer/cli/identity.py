"""``nfq-enforcer identity``: identities, and the labels of each."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import names, output
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, NoHeaders, Output, Socket
from nfq_enforcer.errors import NfqError


def list_identities(form: Output = Format.TABLE, no_headers: NoHeaders = False, socket: Socket = DEFAULT) -> None:
    """List the cluster's identities that this node has."""
    columns = ("IDENTITY", "LABELS", "ENDPOINTS")
    output.show(
        client.call(socket, "identities"),
        form,
        lambda result: output.table(columns, (_row(one, form) for one in result)),
        headers=not no_headers,
    )


def get(
    number: Annotated[
        int, typer.Argument(help="Number of the identity.", metavar="NUMBER", autocompletion=names.identities)
    ],
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print an identity: its labels and the number of its endpoints."""
    for one in client.call(socket, "identities"):
        if one["identity"] == number:
            output.print_data(one, form)
            return
    raise NfqError(f"there is no identity {number}; 'nfq-enforcer identity list' shows those there are")


def _row(one: Mapping[str, Any], form: Format) -> list[object]:
    return [one["identity"], output.labels(one["labels"], form), one["endpoints"]]
