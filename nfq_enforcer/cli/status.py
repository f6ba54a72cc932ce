"""``nfq-enforcer status``: the state of this node's agent."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output, store
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.observe.status import (
    AgentStatus,
    ProxyStatus,
    RulesStatus,
    WorkersStatus,
    WorkerStatus,
)
from nfq_enforcer.text import printable
from nfq_enforcer.workloads.sources import PROCESS


def status(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """Show the enforced policy, the state of the workers and the store, and refused documents."""
    output.show(
        client.call(socket, "status"), form, lambda result: output.properties(_rows(AgentStatus.from_json(result)))
    )


def _rows(status: AgentStatus) -> Iterator[tuple[str, object]]:
    worker, counts, documents = status.worker, status.worker.counts, status.documents
    yield "node", f"{status.node} ({', '.join(status.addresses) or 'no address'})"
    yield "stamps believed on", ", ".join(status.cluster_interfaces) or "no interface"
    audited = ", only audited" if status.audit else ""
    yield "enforcement", f"{status.enforcement}{audited}; fail {status.fail}; datapath {status.datapath}"
    yield "families", ", ".join(status.families)
    yield "revision", f"{status.revision}: {documents.policies} policies, {documents.endpoints} endpoints"
    yield "endpoints here", str(status.endpoints)
    for work in status.working:
        yield "working", f"since {work.since}: {work.text}"
    if status.refused:
        since = (f"since {status.refused.since}", "red")
        yield "documents refused", Text.assemble(since, f"\n{status.refused.error}")
    if status.rules:
        yield from _rules(status.rules)
    if status.source_filter and status.source_filter.drops:
        drops = (f"{count} from {name}" for name, count in status.source_filter.drops.items())
        yield "forged sources", f"dropped: {', '.join(drops)}"
    if status.store:
        yield from store.summary(status.store)
    for stuck in status.stuck:
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
    yield "flows", f"{counts.flows} open, {counts.flows_evicted} evicted{offloaded}"
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


def _rules(rules: RulesStatus) -> Iterator[tuple[str, object]]:
    if not rules.intact:
        reason = f"{rules.missing}\n{rules.error}" if rules.error else f"{rules.missing}"
        yield "rules", Text.assemble((f"degraded since {rules.since}", "red"), f"\n{reason}")
    else:
        yield "rules", f"intact since {rules.since}"
    if rules.repairs:
        yield "  repaired", f"{rules.repairs} times, last {rules.last_repair}"
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
