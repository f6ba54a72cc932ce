"""``nfq-enforcer conntrack``: the flows that this node's workers know."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import names, output
from nfq_enforcer.cli.options import DEFAULT, Format, NoHeaders, Output, Socket

_COLUMNS = ("PROTOCOL", "FROM", "IDENTITY", "TO", "IDENTITY", "STATE", "OFFLOAD", "REVISION", "EXPIRES", "QUEUE")


def list_flows(
    source: Annotated[
        str,
        typer.Option("--from", help="Only flows opened by this endpoint or address.", autocompletion=names.endpoints),
    ] = "",
    target: Annotated[
        str,
        typer.Option("--to", help="Only flows opened to this endpoint or address.", autocompletion=names.endpoints),
    ] = "",
    form: Output = Format.TABLE,
    no_headers: NoHeaders = False,
    socket: Socket = DEFAULT,
) -> None:
    """List the open flows of all workers; each worker searches its first few thousand."""
    ends: dict[str, Any] = {"from": source, "to": target}
    result = client.call(socket, "conntrack", **ends)
    output.show(result, form, lambda result: output.table(_COLUMNS, map(_row, result["flows"])), headers=not no_headers)
    if result["searched"] < result["total"]:
        output.note(f"searched {result['searched']} of {result['total']} flows")


def flush(socket: Socket = DEFAULT) -> None:
    """Forget all flows: those that are open are evaluated again by their next packet, and stay if policy allows."""
    flushed = client.call(socket, "conntrack_flush")["flushed"]
    output.line(f"{flushed} flows forgotten; the next packet of each open one is evaluated again")


def _row(flow: Mapping[str, Any]) -> list[object]:
    source, target = flow["source"], flow["destination"]
    ends = [_end(source), source["identity"], _end(target), target["identity"]]
    rest = [flow["state"], flow["offload"], flow["revision"], f"{flow['expires_in']} s", flow["queue"]]
    return [flow["protocol"], *ends, *rest]


def _end(end: Mapping[str, Any]) -> str:
    address = f"[{end['address']}]" if ":" in end["address"] else end["address"]
    return f"{address}:{end['port']}" if end["port"] else str(end["address"])
