"""``nfq-enforcer fqdn``: names with the addresses that this node has learned from DNS answers."""

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket

app = typer.Typer(help="Names with the addresses learned from DNS answers.", no_args_is_help=True)


@app.callback()
def fqdn() -> None:
    """Show learned names."""


@app.command("list")
def list_names(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the names with their addresses, the endpoint that asked, and the toFQDNs that match."""
    output.show(
        client.call(socket, "fqdn"),
        form,
        lambda result: output.table(
            ("NAME", "ADDRESS", "EXPIRES", "ENDPOINT", "SELECTORS"), (row for one in result for row in _rows(one))
        ),
    )


def _rows(one: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for entry in one["addresses"]:
        left = entry["expires_in"]
        expires = f"in {left} s" if left > 0 else "expired"
        yield f"{one['name']}.", entry["address"], expires, one["endpoint"], ", ".join(one["selectors"])
