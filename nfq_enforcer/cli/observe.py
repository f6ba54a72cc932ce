"""``nfq-enforcer observe``: new flows and drops, from the flow log and as they come."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Socket
from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.observe import flow


class ObserveFormat(StrEnum):
    """Output format of a flow."""

    COMPACT = "compact"
    JSON = "json"


def observe(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new flows as they come.")] = False,
    verdict: Annotated[
        FlowVerdict | None, typer.Option(help="Only flows with this verdict.", case_sensitive=False)
    ] = None,
    last: Annotated[int | None, typer.Option(min=0, help="Only the last N flows of the log.")] = None,
    form: Annotated[
        ObserveFormat, typer.Option("--output", "-o", help="compact, or one JSON object a line.")
    ] = ObserveFormat.COMPACT,
    socket: Socket = DEFAULT,
) -> None:
    """Show new flows and drops: both ends, the verdict, and the documents that decided it."""
    options: dict[str, Any] = {"follow": follow, "verdict": verdict, "last": last}
    params = {name: value for name, value in options.items() if value is not None}
    try:
        for event in client.stream(socket, "observe", **params):
            output.line(json.dumps(event) if form is ObserveFormat.JSON else flow.compact(event))
    except (KeyboardInterrupt, BrokenPipeError):  # the user, or the reader of the output, ended it
        return
