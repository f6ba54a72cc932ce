"""``nfq-enforcer observe``: new flows and drops, as they are and as they come."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli.options import DEFAULT, Socket
from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.observe import flow


class Format(StrEnum):
    """How flows are printed."""

    COMPACT = "compact"
    JSON = "json"


def observe(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as new ones come.")] = False,
    verdict: Annotated[
        FlowVerdict | None, typer.Option(help="Only flows with this verdict.", case_sensitive=False)
    ] = None,
    last: Annotated[int | None, typer.Option(min=0, help="Only the last N of those that are kept.")] = None,
    output: Annotated[
        Format, typer.Option("--output", "-o", help="compact, or one JSON object a line.")
    ] = Format.COMPACT,
    socket: Socket = DEFAULT,
) -> None:
    """Show new flows and drops: who, to whom, the verdict, and the documents that decided."""
    params: dict[str, Any] = {"follow": follow, "verdict": verdict, "last": last}
    try:
        for seen in client.stream(
            socket, "observe", **{name: value for name, value in params.items() if value is not None}
        ):
            print(json.dumps(seen) if output is Format.JSON else flow.compact(seen), flush=True)
    except (KeyboardInterrupt, BrokenPipeError):  # the user, or the reader of our output, has seen enough
        return
