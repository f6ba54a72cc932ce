"""``nfq-enforcer fqdn``: names with the addresses that this node has learned from DNS answers."""

from collections.abc import Iterator, Mapping
from typing import Any

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, NoHeaders, Output, Socket


def list_names(form: Output = Format.TABLE, no_headers: NoHeaders = False, socket: Socket = DEFAULT) -> None:
    """List the names with their addresses, the endpoint that asked, and the toFQDNs that match."""
    output.show(
        client.call(socket, "fqdn"),
        form,
        lambda result: output.table(
            ("NAME", "ADDRESS", "EXPIRES", "ENDPOINT", "SELECTORS"), (row for one in result for row in _rows(one))
        ),
        headers=not no_headers,
    )


def _rows(one: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for entry in one["addresses"]:
        left = entry["expires_in"]
        expires = f"in {left} s" if left > 0 else "expired"
        yield f"{one['name']}.", entry["address"], expires, one["endpoint"], ", ".join(one["selectors"])
