"""``nfq-enforcer status``: what the agent of this node is doing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output, store
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.core.verdict import DropReason


def status(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """Show what the agent enforces, how its workers fare, and what it could not take."""
    output.show(client.call(socket, "status"), form, lambda seen: output.properties(_rows(seen)))


def _rows(seen: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    worker, documents = seen["worker"], seen["documents"]
    yield "node", f"{seen['node']} ({', '.join(seen['addresses']) or 'no address'})"
    yield "stamps believed on", ", ".join(seen["cluster_interfaces"]) or "no interface"
    audited = ", only audited" if seen["audit"] else ""
    yield "enforcement", f"{seen['enforcement']}{audited}; fail {seen['fail']}; datapath {seen['datapath']}"
    yield "families", ", ".join(seen["families"])
    yield "revision", f"{seen['revision']}: {documents['policies']} policies, {documents['endpoints']} endpoints"
    yield "endpoints here", str(seen["endpoints"])
    if seen["refused"]:
        since = (f"since {seen['refused']['since']}", "red")
        yield "documents refused", Text.assemble(since, f"\n{seen['refused']['error']}")
    if seen.get("store"):
        yield from store.summary(seen["store"])
    yield from _workers(worker, seen["workers"])
    if worker["failure"]:
        yield "worker failure", Text(worker["failure"], "red")
    yield (
        "packets",
        f"{worker['accepted']} accepted, {worker['dropped']} dropped, {worker['lost']} lost without a verdict",
    )
    for reason in DropReason:
        if worker[reason]:
            yield f"  {reason}", f"{worker[reason]} ({reason.description})"
    left = f", {worker['handed_over']} times left to the kernel" if seen["datapath"] == "per-flow" else ""
    yield "flows", f"{worker['flows']} open, {worker['flows_evicted']} evicted{left}"
    yield "log", f"{seen['log']['seen']} events, {worker['events_lost']} lost"


def _workers(together: Mapping[str, Any], each: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, object]]:
    """Tell of one worker in a row; of several in a row each, behind one for all."""
    queues, restarts = f"{_queues(together['queues'])} ({together['driver']})", f"{together['restarts']} restarts"
    if len(each) == 1:
        yield "worker", f"{queues}, process {each[0]['pid']}, {restarts}"
        return
    yield "workers", f"{len(each)}, {queues}, {restarts}"
    for one in each:
        yield (
            f"  queues {', '.join(map(str, one['queues']))}",
            f"process {one['pid']}, {one['accepted']} accepted, {one['dropped']} dropped, {one['flows']} flows, "
            f"{one['restarts']} restarts",
        )


def _queues(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"queue {first}" if first == last else f"queues {first} to {last}"
