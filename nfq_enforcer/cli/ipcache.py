"""``nfq-enforcer ipcache``: the identity of each address."""

from collections.abc import Mapping
from typing import Any

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, NoHeaders, Output, Socket

_FIELDS = ("address", "identity", "node", "endpoint", "labels")


def list_addresses(form: Output = Format.TABLE, no_headers: NoHeaders = False, socket: Socket = DEFAULT) -> None:
    """List the addresses with a known identity."""
    output.show(
        client.call(socket, "ipcache"),
        form,
        lambda result: output.table(map(str.upper, _FIELDS), (_row(one, form) for one in result)),
        headers=not no_headers,
    )


def _row(one: Mapping[str, Any], form: Format) -> list[object]:
    return [output.labels(one[field], form) if field == "labels" else one[field] for field in _FIELDS]
