"""``nfq-enforcer status``: the state of this node's agent."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output, store
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.observe.status import AgentStatus, RulesStatus, WorkersStatus, WorkerStatus
from nfq_enforcer.text import printable


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
    if status.refused:
        since = (f"since {status.refused.since}", "red")
        yield "documents refused", Text.assemble(since, f"\n{status.refused.error}")
    if status.rules:
        yield from _rules(status.rules)
    if status.store:
        yield from store.summary(status.store)
    for stuck in status.stuck:
        yield f"stuck: {stuck.part}", Text(f"since {stuck.since}: {stuck.reason}", "red")
    yield from _workers(worker, status.workers)
    if worker.failure:
        yield "worker failure", Text(worker.failure, "red")
    yield "packets", f"{counts.accepted} accepted, {counts.dropped} dropped, {worker.lost} lost without a verdict"
    for reason, count in counts.drops.items():
        if count:
            yield f"  {reason}", f"{count} ({reason.description})"
    offloaded = f", {counts.handed_over} times left to the kernel" if status.datapath == Datapath.PER_FLOW else ""
    yield "flows", f"{counts.flows} open, {counts.flows_evicted} evicted{offloaded}"
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
            f"  queues {', '.join(map(str, worker.queues))}",
            f"process {worker.pid}, {counts.accepted} accepted, {counts.dropped} dropped, {counts.flows} flows, "
            f"{worker.restarts} restarts",
        )


def _queues(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"queue {first}" if first == last else f"queues {first} to {last}"
