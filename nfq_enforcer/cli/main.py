"""The program ``nfq-enforcer``: its commands, and the error message and exit status of a command that fails."""

import os
import sys

import typer

from nfq_enforcer import __version__
from nfq_enforcer.cli import (
    agent,
    capture,
    conntrack,
    endpoint,
    fqdn,
    identity,
    ipcache,
    lab,
    node,
    observe,
    output,
    policy,
    run,
    status,
    store,
    ui,
)
from nfq_enforcer.cli.filter_options import FilterCommand
from nfq_enforcer.errors import NfqError

app = typer.Typer(
    name="nfq-enforcer",
    help="Network policy by identity, for plain Linux hosts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("agent")(agent.agent)
app.command("status")(status.status)
app.command("observe", cls=FilterCommand)(observe.observe)
app.command("capture")(capture.capture)
app.command("ui")(ui.ui)
app.add_typer(policy.app, name="policy")
app.add_typer(endpoint.app, name="endpoint")
app.add_typer(identity.app, name="identity")
app.add_typer(node.app, name="node")
app.add_typer(ipcache.app, name="ipcache")
app.add_typer(conntrack.app, name="conntrack")
app.add_typer(fqdn.app, name="fqdn")
app.add_typer(store.app, name="store")
app.add_typer(lab.app, name="lab")


@app.command("run", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
def run_command(context: typer.Context) -> None:
    """Run a command with an identity of its own: nfq-enforcer run --label role=batch -- COMMAND."""
    run.main(context.args)


@app.command()
def cleanup() -> None:
    """Remove every rule, chain and set of nfq_enforcer, after an agent that ended without removing them.

    A running agent restores them.
    """
    from nfq_enforcer.dataplane.rules import iptables

    iptables.check()
    removed = iptables.remove()
    output.line(f"removed {', '.join(removed)}" if removed else "nothing of nfq_enforcer is there")


@app.command()
def version() -> None:
    """Print the version."""
    output.line(__version__)


def main() -> None:
    """Run a command; an error becomes one sentence on standard error, and the exit status."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except NfqError as error:
        _end(str(error), error.exit_code)
    except (output.OutputClosed, BrokenPipeError):  # the reader of the output has closed it
        _leave_output_unwritten()
    except OSError as error:  # for example a full disk
        _leave_output_unwritten()
        _end(error.strerror or str(error), 1)


def _end(sentence: str, status: int) -> None:
    output.error(sentence)
    sys.exit(status)


def _leave_output_unwritten() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
