"""``nfq-enforcer run`` as a command of the tree, for help, completion and man pages; ``run`` itself does the work."""

from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.cli import run as endpoint


def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after '--'.")],
    labels: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE, a label that enters its identity; repeatable.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the endpoint (default: the command's, with the process id).")
    ] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace (default: default).")] = None,
    socket: Annotated[
        Path | None,
        typer.Option(
            "--socket", help="The agent's socket for this command (default: /run/nfq-enforcer/agent-run.sock)."
        ),
    ] = None,
) -> None:
    """Run a command with an identity of its own: an endpoint of this host, with these labels.

    The command and all processes that it starts are subject to policy, as every other endpoint.
    """
    options = {"--name": name, "--namespace": namespace, "--socket": socket}
    given = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    endpoint.main([*(word for label in labels or () for word in ("--label", label)), *given, "--", *command])
