"""``nfq-enforcer lab``: several nodes on one host, as network namespaces."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from nfq_enforcer.cli import output
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.text import printable

RunId = Annotated[str | None, typer.Option("--run-id", help="ID of the lab; needed only if several labs exist.")]


def up(
    run_id: RunId = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Without a store: all nodes watch one folder of documents.")
    ] = False,
) -> None:
    """Build a lab with a store on Redis, and start an agent on each of its nodes."""
    from nfq_enforcer.lab.lab import Lab
    from nfq_enforcer.lab.network import new_run_id
    from nfq_enforcer.lab.topology import Topology

    lab = Lab(Topology(run_id or new_run_id()), memory=memory)
    lab.up()
    try:
        lab.start_agents()
    except BaseException:
        lab.network.down()
        raise
    name = lab.topology.run_id
    output.line(f"lab {name} is up: {', '.join(lab.topology.hosts)}")
    output.line(f"  try      nfq-enforcer lab exec --run-id {name} front1 -- ping -c 1 {lab.address('back2')}")
    if memory:
        output.line(f"  policy   put documents into {lab.documents}")
    else:
        output.line(f"  policy   nfq-enforcer policy load FILE... --socket {lab.nodes['n1'].socket}")
    output.line(f"  observe  nfq-enforcer observe --follow --socket {lab.nodes['n1'].socket}")
    output.line(f"  map      nfq-enforcer ui --socket {lab.nodes['n1'].socket}")


def demo(
    run_id: RunId = None,
    hosts: Annotated[
        Path | None, typer.Option(help="Run on the machines in this inventory file over ssh, instead of in a lab.")
    ] = None,
) -> None:
    """Show connections that identity allows and denies; exit status 0 only if all have the expected verdict."""
    import asyncio

    if hosts is None:
        as_expected = asyncio.run(_show_in_lab(_chosen(run_id)))
    elif run_id is None:
        as_expected = asyncio.run(_show_on_machines(hosts))
    else:
        raise BadInput("--run-id names a lab and --hosts machines beside any lab; allowed: one of the two")
    if not as_expected:
        raise typer.Exit(1)


def down(
    run_id: RunId = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every lab.")] = False,
) -> None:
    """Remove a lab and every process in it, also after a crash; without --run-id ask, unless it is your only one."""
    from nfq_enforcer.lab.network import list_labs, remove

    for name in list_labs() if everything else [run_id] if run_id is not None else _to_remove():
        remove(name)
        output.line(f"lab {name} is gone")


def _to_remove() -> list[str]:
    """Return the only lab if this user has built it, else the labs that the user agrees to remove."""
    from nfq_enforcer.lab.network import is_own, list_labs

    labs = list_labs()
    if not labs:
        raise NfqError("there is no lab: build one with 'nfq-enforcer lab up'")
    if len(labs) == 1 and is_own(labs[0]):
        return labs
    names = ", ".join(f"{name} (not yours)" if not is_own(name) else name for name in labs)
    which = f"there is lab {names}" if len(labs) == 1 else f"there are several labs: {names}"
    if not sys.stdin.isatty():
        raise BadInput(f"{which}; name the one to remove with --run-id, or remove every lab with --all")
    question = "remove it?" if len(labs) == 1 else "remove all of them?"
    if not typer.confirm(printable(f"{which}; {question}")):
        raise BadInput("nothing was removed; --run-id names the lab to remove")
    return labs


def execute(
    host: Annotated[str, typer.Argument(help="Name of a host in the lab; 'lab up' lists them.")],
    command: Annotated[list[str], typer.Argument(help="The command, after '--'.")],
    run_id: RunId = None,
) -> None:
    """Run a command on a host of the lab."""
    from nfq_enforcer.lab.lab import Lab
    from nfq_enforcer.lab.topology import Topology

    lab = Lab(Topology(_chosen(run_id)))
    argv = lab.network.command(host, command)
    os.execv(argv[0], argv)


def _chosen(run_id: str | None) -> str:
    from nfq_enforcer.lab.network import list_labs

    if run_id is not None:
        return run_id
    labs = list_labs()
    if not labs:
        raise NfqError("there is no lab: build one with 'nfq-enforcer lab up'")
    if len(labs) > 1:
        raise BadInput(f"there are several labs: choose one with --run-id; there are {', '.join(labs)}")
    return labs[0]


async def _show_in_lab(run_id: str) -> bool:
    from rich.console import Console

    from nfq_enforcer.lab.demo import Demo
    from nfq_enforcer.lab.lab import Lab
    from nfq_enforcer.lab.topology import Topology

    lab = Lab(Topology(run_id))
    try:
        return await Demo(lab, Console()).show()
    finally:
        await lab.leave()


async def _show_on_machines(hosts: Path) -> bool:
    from rich.console import Console

    from nfq_enforcer.lab import inventory
    from nfq_enforcer.lab.demo import Demo
    from nfq_enforcer.lab.remote_lab import RemoteLab
    from nfq_enforcer.lab.ssh import SshExecutor

    machines = inventory.read(hosts)
    with TemporaryDirectory(prefix="nfqe-") as folder:
        async with RemoteLab(machines, SshExecutor(machines, Path(folder))) as lab:
            return await Demo(lab, Console()).show()
