"""``nfq-enforcer status``: the state of this node's agent."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output, store
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.health import PartState
from nfq_enforcer.observe.status import (
    AgentStatus,
    HealthStatus,
    ProxyStatus,
    RulesStatus,
    WorkersStatus,
    WorkerStatus,
)
from nfq_enforcer.text import printable, printable_lines
from nfq_enforcer.workloads.sources import PROCESS

_POLL = 0.5  # s between two questions of --wait


def status(
    brief: Annotated[bool, typer.Option("--brief", help="Print one line: OK, or the degraded parts.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no part is degraded, also for an agent.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that --wait waits at most.", min=0)] = 300.0,
    form: Output = Format.TABLE,
    socket: Socket = DEFAULT,
) -> None:
    """Show the health of each part of the agent, then policy, workers, store and figures.

    The exit status is 1 while a part is degraded.
    """
    data = _wait(socket, time.monotonic() + timeout) if wait else client.call(socket, "status")
    health = AgentStatus.from_json(data).health
    if brief:
        output.line(_brief(health))
    else:
        output.show(data, form, lambda result: output.properties(_all_rows(AgentStatus.from_json(result))))
    if health is not None and health.state != PartState.OK:
        raise typer.Exit(1)


def _wait(socket: Path, deadline: float) -> Any:
    """Return the status once no part is degraded; after the deadline, the last one or the reason for none."""
    while True:
        late = time.monotonic() >= deadline
        try:
            data = client.call(socket, "status")
        except NfqError:
            if late:
                raise
        else:
            health = AgentStatus.from_json(data).health
            if late or health is None or health.state == PartState.OK:
                return data
        time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))


def _brief(health: HealthStatus | None) -> str:
    if health is None:
        raise NfqError("this agent does not report its health: it is of an older version")
    if health.state == PartState.OK:
        return "OK"
    degraded = (part for part in health.parts if part.state == PartState.DEGRADED)
    return f"degraded: {'; '.join(f'{part.part} since {part.since}' for part in degraded)}"


def _all_rows(status: AgentStatus) -> Iterator[tuple[str, object]]:
    """Yield the health of each part, then the figures."""
    if status.health is not None:
        yield "health", _state(status.health.state, status.health.since)
        for part in status.health.parts:
            state, message = _state(part.state, part.since), printable_lines(part.message)
            yield f"  {part.part}", Text.assemble(state, f": {message}")
    yield from _rows(status)


def _state(state: str, since: str) -> Text:
    return Text.assemble((state, "red" if state == PartState.DEGRADED else ""), f" since {since}")


def _rows(status: AgentStatus) -> Iterator[tuple[str, object]]:
    worker, counts, documents = status.worker, status.worker.counts, status.documents
    yield "node", f"{status.node} ({', '.join(status.addresses) or 'no address'})"
    yield "stamps believed on", ", ".join(status.cluster_interfaces) or "no interface"
    audited = ", only audited" if status.audit else ""
    yield "enforcement", f"{status.enforcement}{audited}; fail {status.fail}; datapath {status.datapath}"
    yield "families", ", ".join(status.families)
    yield "revision", f"{status.revision}: {documents.policies} policies, {documents.endpoints} endpoints"
    yield "endpoints here", _endpoints(status)
    for work in status.working:
        yield "working", f"since {work.since}: {work.text}"
    if status.refused:
        since = (f"since {status.refused.since}", "red")
        yield "documents refused", Text.assemble(since, f"\n{status.refused.error}")
    if status.rules:
        yield from _rules(status.rules, has_health=status.health is not None)
    if status.source_filter and status.source_filter.drops:
        drops = (f"{count} from {name}" for name, count in status.source_filter.drops.items())
        yield "forged sources", f"dropped: {', '.join(drops)}"
    if status.store:
        yield from store.summary(status.store)
    for stuck in () if status.health else status.stuck:
        yield f"stuck: {stuck.part}", Text(f"since {stuck.since}: {stuck.reason}", "red")
    yield from _workers(worker, status.workers)
    if worker.failure:
        yield "worker failure", Text(worker.failure, "red")
    yield "packets", f"{counts.accepted} accepted, {counts.dropped} dropped, {worker.lost} lost without a verdict"
    if worker.rate_limited:
        yield "flood", f"{worker.rate_limited} openings dropped, beyond the budgets"
    for reason, count in counts.drops.items():
        if count:
            yield f"  {reason}", f"{count} ({reason.description})"
    offloaded = f", {counts.handed_over} times left to the kernel" if status.datapath == Datapath.PER_FLOW else ""
    most = f" of {status.conntrack.max}" if status.conntrack else ""
    yield "flows", f"{counts.flows}{most} open, {counts.flows_evicted} evicted{offloaded}"
    for queue in status.queues:
        if queue.waiting or queue.lost:
            yield f"queues {queue.kind}", f"{queue.waiting} packets wait, {queue.lost} lost because they were full"
    if status.names and (names := status.names).names:
        evicted = f", {names.evicted} evicted" if names.evicted else ""
        held = f", {names.held} answers held until all workers had them" if names.held else ""
        yield "names by DNS", f"{names.names} with {names.addresses} addresses{evicted}{held}"
    if status.proxy:
        yield from _proxy(status.proxy)
    if sources := list(_sources(status)):
        yield "workloads", sources
    if status.problems:
        yield "problems", [Text(printable(problem), "red") for problem in status.problems]
    yield "log", f"{status.log.seen} events, {counts.events_lost} lost"


def _endpoints(status: AgentStatus) -> str:
    states = status.endpoint_states
    counted = states.to_json() if states else {}
    words = [f"{counted[name]} {name}" for name in ("changing", "missing", "refused", "pending") if counted.get(name)]
    return (
        f"{status.endpoints} ({states.ready} ready, {', '.join(words)})" if states and words else f"{status.endpoints}"
    )


def _rules(rules: RulesStatus, *, has_health: bool) -> Iterator[tuple[str, object]]:
    """Yield the state of the rules, unless the health of the parts has it, and the last repair."""
    if not has_health:
        if rules.intact:
            yield "rules", f"intact since {rules.since}"
        else:
            reason = f"{rules.missing}\n{rules.error}" if rules.error else f"{rules.missing}"
            yield "rules", Text.assemble((f"degraded since {rules.since}", "red"), f"\n{reason}")
    if rules.repairs:
        yield "rules repaired", f"{rules.repairs} times, last {rules.last_repair}"
        yield "", rules.last_missing


def _proxy(proxy: ProxyStatus) -> Iterator[tuple[str, object]]:
    if proxy.running:
        yield "proxy", f"Envoy {proxy.version}, process {proxy.pid}, {proxy.slots} slots, {proxy.restarts} restarts"
    if proxy.error or not proxy.running:
        yield "" if proxy.running else "proxy", Text(proxy.error or "does not run", "red")
    if proxy.unlogged:
        yield "", f"{proxy.unlogged} requests are not in the flow log"
    if proxy.refused:
        yield "", Text(f"{proxy.refused} connections found all slots in use", "red")


def _sources(status: AgentStatus) -> Iterator[Text]:
    """Yield the sources of workloads; that of processes, which needs no configuration, only if it has any."""
    for one in status.workloads.sources if status.workloads else ():
        number = f"{one.source}: {one.endpoints} endpoint{'' if one.endpoints == 1 else 's'}"
        if one.away is not None:
            yield Text(f"{number}, away", "red")
        elif one.endpoints or one.source != PROCESS:
            yield Text(number)


def _workers(total: WorkersStatus, each: Sequence[WorkerStatus]) -> Iterator[tuple[str, object]]:
    """Yield one row for a single worker; for several workers a row of all, then a row of each."""
    queues, restarts = f"{_queues(total.queues)} ({total.driver})", f"{total.restarts} restarts"
    if len(each) == 1:
        yield "worker", f"{queues}, process {each[0].pid}, {restarts}"
        return
    yield "workers", f"{len(each)}, {queues}, {restarts}"
    for worker in each:
        counts = worker.counts
        yield (
            f"  {_queues(worker.queues)}",
            f"process {worker.pid}, {counts.accepted} accepted, {counts.dropped} dropped, {counts.flows} flows, "
            f"{worker.restarts} restarts",
        )


def _queues(numbers: Sequence[int]) -> str:
    """Return queue numbers in words, consecutive ones as a range; ``numbers`` are ascending."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    listed = (f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in ranges)
    return f"queue{'s' if len(numbers) > 1 else ''} {', '.join(listed)}"
