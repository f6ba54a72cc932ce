"""``nfq-enforcer ui``: the service map of an agent, as a page in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Socket


def ui(
    listen: Annotated[
        str, typer.Option(help="ADDRESS:PORT of the page; an address other than loopback needs a token.")
    ] = "127.0.0.1:9963",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; without one, a token is made and printed if needed.")
    ] = None,
    socket: Socket = DEFAULT,
) -> None:
    """Serve the service map: workloads, their flows by verdict, and the rules that decide, live in the browser."""
    from nfq_enforcer.ui.run import run

    run(socket, listen, token_file, output.line)
