"""Metrics of packets, flows and queues, as metric families. Pure."""

from collections.abc import Callable, Iterator, Sequence

from nfq_enforcer.core.verdict import DropReason, Verdict
from nfq_enforcer.observe.metric_family import MetricFamily, Sample, family, histogram, single
from nfq_enforcer.observe.status import (
    ConntrackStatus,
    PacketCounts,
    QueueStatus,
    TrafficStatus,
    WorkersStatus,
    WorkloadFlowCount,
)

_DROPS = "Packets dropped, by direction and drop reason."
# STAMP_NO_ROOM is about a stamp that could not be made
_STAMP_REASONS = [
    reason for reason in DropReason if reason.startswith("STAMP_") and reason is not DropReason.STAMP_NO_ROOM
]


def packets(workers: WorkersStatus) -> Iterator[MetricFamily]:
    """Yield the packets by verdict, losses and open flows."""
    counts = workers.counts
    verdicts = {Verdict.ACCEPT: counts.accepted, Verdict.DROP: counts.dropped}
    samples = [Sample(count, {"verdict": verdict.value}) for verdict, count in verdicts.items()]
    yield family("packets_total", "Packets with a verdict, by verdict.", *samples)
    yield single("packets_lost_total", "Packets that were queued and received no verdict.", workers.lost)
    yield single(
        "openings_rate_limited_total", "Openings dropped in the kernel, beyond the budgets.", workers.rate_limited
    )
    yield single("flows", "Open flows.", counts.flows)
    yield single("flows_evicted_total", "Flows evicted from a full table for new ones.", counts.flows_evicted)
    yield single("flows_left_to_the_kernel_total", "Verdicts that offloaded a flow to the kernel.", counts.handed_over)
    yield single("events_lost_total", "Flow events that did not reach the flow log.", counts.events_lost)
    yield single("internal_errors_total", "Packets dropped because of an internal error.", counts.internal_errors)


def drops(counts: PacketCounts) -> Iterator[MetricFamily]:
    """Yield the drops of an agent that does not count them by direction."""
    samples = (
        Sample(count, {"direction": "unknown", "reason": reason.value}) for reason, count in counts.drops.items()
    )
    yield family("drops_total", _DROPS, *samples)


def traffic(status: TrafficStatus) -> Iterator[MetricFamily]:
    """Yield drops and new flows by direction, stamps, and the latency of verdicts."""
    dropped = (Sample(drop.packets, {"direction": drop.direction, "reason": drop.reason}) for drop in status.drops)
    yield family("drops_total", _DROPS, *dropped)
    flows = (Sample(one.flows, {"direction": one.direction, "verdict": one.verdict}) for one in status.new_flows)
    yield family("new_flows_total", "New flows, by direction of the last decision and verdict.", *flows)
    yield single("stamps_made_total", "Packets that got a stamp of this node.", status.stamps_made)
    yield single("stamps_read_total", "Accepted packets with the stamp of another node.", status.stamps_read)
    refused: dict[str, int] = dict.fromkeys(_STAMP_REASONS, 0)
    for drop in status.drops:
        if drop.reason in refused:
            refused[drop.reason] += drop.packets
    meaning = (
        "Packets dropped because of their stamp, or because they have none, by drop reason; a part of drops_total."
    )
    yield family("stamps_refused_total", meaning, *(Sample(n, {"reason": name}) for name, n in refused.items()))
    meaning = (
        "Time from the read of a batch of packets to its verdicts, for each packet of one in 16 batches; "
        "without the wait in the queue, with the way of the packets to the next queue or interface."
    )
    yield histogram("verdict_duration_seconds", meaning, status.latency)


def queues(kinds: Sequence[QueueStatus]) -> Iterator[MetricFamily]:
    """Yield the depth and the losses of each kind of queue."""
    values: dict[tuple[str, str], Callable[[QueueStatus], int]] = {
        ("queue_packets", "Packets that wait for a verdict, by kind of queue."): lambda queue: queue.waiting,
        ("queue_lost_total", "Packets that the kernel dropped because a queue was full, by kind of queue."): (
            lambda queue: queue.lost
        ),
        ("queues_unbound", "Queues without a worker, by kind."): lambda queue: queue.numbers - queue.bound,
    }
    for (name, meaning), value in values.items() if kinds else ():
        yield family(name, meaning, *(Sample(value(queue), {"queue": queue.kind}) for queue in kinds))


def conntrack(status: ConntrackStatus) -> Iterator[MetricFamily]:
    """Yield the room of the workers' tables, and the use of the kernel's."""
    yield single("flows_max", "Flows that the workers' tables have room for.", status.max)
    if status.kernel_entries is not None and status.kernel_max is not None:
        yield single("kernel_conntrack_entries", "Entries of the kernel's conntrack table.", status.kernel_entries)
        yield single("kernel_conntrack_max", "Entries that the kernel's table has room for.", status.kernel_max)


def workload_flows(counts: Sequence[WorkloadFlowCount]) -> Iterator[MetricFamily]:
    """Yield the flows between workloads, if the configuration asks for them."""
    samples = [
        Sample(one.events, {"source": one.source, "destination": one.destination, "verdict": one.verdict})
        for one in counts
    ]
    if samples:
        meaning = "New flows and logged drops, by workload at both ends; pairs beyond metrics.flows are '(other)'."
        yield family("workload_flows_total", meaning, *samples)
