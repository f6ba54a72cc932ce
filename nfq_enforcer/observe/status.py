"""Status of the agent as typed objects: made by the agent, sent as JSON, read by the metrics and the command line.

``to_json`` gives the shape that the API documents; ``from_json`` reads it back and ignores keys that it does not know,
so that a client can read the status of a newer agent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, Self

from nfq_enforcer.core.verdict import DropReason

Json = Mapping[str, Any]


@dataclass(frozen=True)
class _StatusRecord:
    """Record: a JSON object with the names of the fields as keys, in their order."""

    _nested: ClassVar[Mapping[str, type["_StatusRecord"]]] = {}  # the fields that are records, or sequences of records
    _inlined: ClassVar[frozenset[str]] = frozenset()  # the nested fields with their keys directly in this object

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        data: dict[str, Any] = {}
        for field in fields(self):
            value = _to_json(getattr(self, field.name))
            data |= value if field.name in self._inlined else {field.name: value}
        return data

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Read the record; raise KeyError for a missing key, unless its field has a default."""
        values = {
            field.name: _from_json(
                cls._nested.get(field.name), data if field.name in cls._inlined else data[field.name]
            )
            for field in fields(cls)
            if field.name in data or field.name in cls._inlined or field.default is MISSING
        }
        return cls(**values)


def _to_json(value: Any) -> Any:
    if isinstance(value, _StatusRecord):
        return value.to_json()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return value


def _from_json(kind: type[_StatusRecord] | None, data: Any) -> Any:
    if kind is None or data is None:
        return data
    return [kind.from_json(item) for item in data] if isinstance(data, list) else kind.from_json(data)


@dataclass(frozen=True)
class PacketCounts(_StatusRecord):
    """Packet counts: verdicts, drops, flows and losses of one worker, or of all workers in sum."""

    accepted: int
    dropped: int
    events_lost: int  # events that did not reach the flow log
    internal_errors: int  # packets dropped because of an internal error
    flows: int  # open now
    flows_evicted: int  # closed early, for a new flow in a full table
    handed_over: int  # verdicts that offloaded a flow to the kernel (datapath per-flow)
    drops: Mapping[DropReason, int]  # each reason, with 0 for those that never occurred; the name of one is its key

    _inlined = frozenset({"drops"})

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Read the counts of a worker's status."""
        counts = {field.name: data[field.name] for field in fields(cls) if field.name != "drops"}
        return cls(**counts, drops={reason: data[reason] for reason in DropReason})

    def with_drops(self, reason: DropReason, number: int) -> Self:
        """Return the counts with a number of further drops."""
        drops = {**self.drops, reason: self.drops[reason] + number}
        return replace(self, dropped=self.dropped + number, drops=drops)


@dataclass(frozen=True)
class WorkerStuck(_StatusRecord):
    """Worker that does not work: without process, without bound queues, or without heartbeat."""

    since: str  # UTC, RFC 3339: the last time at which it worked
    reason: str


@dataclass(frozen=True)
class StuckPart(_StatusRecord):
    """Stuck part of the agent: a worker, a thread, a child process, the event loop, or the store."""

    part: str
    since: str  # UTC, RFC 3339
    reason: str


@dataclass(frozen=True)
class WorkerStatus(_StatusRecord):
    """Worker status: process, queues and counts of one worker."""

    queues: Sequence[int]  # sorted
    pid: int | None  # None while the process is being replaced
    restarts: int
    failure: str | None  # the reason for which the process cannot be replaced
    counts: PacketCounts
    stuck: WorkerStuck | None = None  # None: the worker returns verdicts
    revision: int | None = None  # by which it decides packets; None: it has not started, or of an older agent

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {"counts": PacketCounts, "stuck": WorkerStuck}
    _inlined = frozenset({"counts"})


@dataclass(frozen=True)
class WorkersStatus(_StatusRecord):
    """Workers status: all workers of the node in sum, and the drops of the source filter."""

    queue: int  # the first
    queues: Sequence[int]  # of all workers, sorted
    driver: str
    pid: int | None  # of the first worker
    restarts: int
    failure: str | None  # of the first worker that has one
    lost: int  # packets that were queued and received no verdict
    rate_limited: int  # openings that the rules dropped, because excess openings exceeded their limit
    counts: PacketCounts

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {"counts": PacketCounts}
    _inlined = frozenset({"counts"})


@dataclass(frozen=True)
class RefusedValue(_StatusRecord):
    """Refused value: a key of the store with a value that this node cannot read."""

    key: str
    reason: str


@dataclass(frozen=True)
class RefusedValues(_StatusRecord):
    """Refused values of the store: their number, and the first of them."""

    count: int
    values: Sequence[RefusedValue]

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {"values": RefusedValue}


@dataclass(frozen=True)
class PendingEndpoint(_StatusRecord):
    """Pending endpoint: started while the store was unreachable, still to be written to it."""

    endpoint: str
    reason: str | None = None  # the store's last refusal


@dataclass(frozen=True)
class UnsavedState(_StatusRecord):
    """Unsaved state: the last known state of the cluster on disk is behind, because saves fail."""

    since: str  # UTC, RFC 3339
    error: str


@dataclass(frozen=True)
class Lag(_StatusRecord):
    """Lag from a change in the store to its enforcement on this node, in milliseconds; None without changes."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class StoreStatus(_StatusRecord):
    """Store status: the connection to the store, and the store's content. None stands for an unknown value."""

    store: str  # address, without the password
    prefix: str | None = None
    connected: bool = False
    since: str | None = None  # UTC, RFC 3339: of the last change of ``connected``
    error: str | None = None  # of the last attempt to connect
    server: str | None = None  # product and version
    schema: int | None = None
    position: str | None = None  # in the stream of changes: ID of the last one that this node has read
    policy_revision: int | None = None
    nodes: int | None = None
    identities: int | None = None
    endpoints: int | None = None
    documents: int | None = None
    commands: int | None = None  # sent to the server
    resyncs: int | None = None  # complete reads of the store
    refused: RefusedValues | None = None
    pending: Sequence[PendingEndpoint] | None = None
    unsaved: UnsavedState | None = None  # None: the last known state is saved
    lag_ms: Lag | None = None
    heartbeat: str | None = None  # UTC, RFC 3339: the last one that the store has answered
    changes_kept: int | None = None  # in the stream, for nodes that reconnect; read by 'store status' only

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {
        "refused": RefusedValues,
        "pending": PendingEndpoint,
        "unsaved": UnsavedState,
        "lag_ms": Lag,
    }

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON data, without ``changes_kept``."""
        data = super().to_json()
        del data["changes_kept"]
        return data


@dataclass(frozen=True)
class DocumentCounts(_StatusRecord):
    """Document counts: documents of the cluster that this node has loaded."""

    policies: int
    endpoints: int


@dataclass(frozen=True)
class Refusal(_StatusRecord):
    """Refusal of changed documents; the last valid ones stay enforced."""

    since: str  # UTC, RFC 3339
    error: str


@dataclass(frozen=True)
class LogCounts(_StatusRecord):
    """Log counts: events that have reached the flow log."""

    seen: int


@dataclass(frozen=True)
class RulesStatus(_StatusRecord):
    """Rules status: whether the kernel has all rules and sets of the agent, as of the last check."""

    intact: bool
    since: str  # UTC, RFC 3339: of the last change of ``intact``
    missing: str | None  # the differences, while the rules are not intact
    error: str | None  # the reason for which they could not be repaired
    repairs: int
    last_repair: str | None  # UTC, RFC 3339
    last_missing: str | None  # the differences before the last repair
    checked: str | None = None  # UTC, RFC 3339: of the last comparison with the kernel; None: none yet


@dataclass(frozen=True)
class RevisionStatus(_StatusRecord):
    """Revision status: the newest revision of this node, and whether workers and rules have it."""

    wanted: int  # the newest one; ``AgentStatus.revision`` is the last one that a reconciliation has completed
    workers: int  # the newest one sent to the workers: a change of peers alone is sent without a revision
    changing: bool  # a change is under way
    since: str | None  # UTC, RFC 3339: since which a revision cannot be put in force; None: none has failed
    failure: str | None  # the reason


@dataclass(frozen=True)
class EndpointStates(_StatusRecord):
    """Endpoint states: endpoints of this node by state, and the reasons of those that are not enforced."""

    ready: int  # policy is enforced on them
    changing: int  # containers that start or have just ended: their interfaces come and go
    missing: int  # their interface does not exist
    refused: int  # named by a source of workloads, and not in force
    pending: int  # in force here, and not written to the store yet
    open_sources: int  # without an interface, so that others can send from their addresses; part of ``ready``
    problems: Sequence[str]  # a sentence for each endpoint, or kind of traffic, without enforcement


@dataclass(frozen=True)
class ConntrackStatus(_StatusRecord):
    """Conntrack status: use of the workers' flow tables, and of the kernel's table in this network namespace."""

    flows: int
    max: int
    evicted: int
    kernel_entries: int | None  # None: the kernel does not count them
    kernel_max: int | None


@dataclass(frozen=True)
class QueueStatus(_StatusRecord):
    """Queue status: all queues of one kind, in sum."""

    kind: str  # headers, whole, segmented, openings or excess
    numbers: int  # queues that the workers need
    bound: int  # queues with a socket
    waiting: int  # packets that wait for a verdict
    lost: int  # packets that the kernel dropped because queue or socket buffer was full, since the agent's start


@dataclass(frozen=True)
class PartHealth(_StatusRecord):
    """Part health: the state of one part of the agent."""

    part: str
    state: str  # ok, degraded or disabled
    since: str  # UTC, RFC 3339: of the last change of ``state``
    message: str  # the reason, or the figures of a healthy part


@dataclass(frozen=True)
class HealthStatus(_StatusRecord):
    """Health status: degraded as soon as one part is."""

    state: str  # ok or degraded
    since: str  # UTC, RFC 3339: of the last change of ``state``
    parts: Sequence[PartHealth]

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {"parts": PartHealth}


@dataclass(frozen=True)
class DropCount(_StatusRecord):
    """Drop count: packets dropped for one reason in one direction."""

    direction: str  # ingress, egress or unknown
    reason: str
    packets: int


@dataclass(frozen=True)
class FlowVerdictCount(_StatusRecord):
    """Flow verdict count: new flows with one verdict in one direction."""

    direction: str  # ingress or egress
    verdict: str  # FORWARDED or AUDIT
    flows: int


@dataclass(frozen=True)
class HistogramStatus(_StatusRecord):
    """Histogram status: numbers of observations by their duration."""

    bounds: Sequence[float]  # s, ascending: upper bounds of all buckets but the last, which has none
    counts: Sequence[int]  # of each bucket by itself
    sum: float  # s, of all observations


@dataclass(frozen=True)
class TrafficStatus(_StatusRecord):
    """Traffic status: the counts of all workers by direction, stamps, and the latency of verdicts."""

    drops: Sequence[DropCount]
    new_flows: Sequence[FlowVerdictCount]
    stamps_made: int
    stamps_read: int
    latency: HistogramStatus  # of packets in measured batches, until their verdicts were sent

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {
        "drops": DropCount,
        "new_flows": FlowVerdictCount,
        "latency": HistogramStatus,
    }


@dataclass(frozen=True)
class WorkloadFlowCount(_StatusRecord):
    """Workload flow count: flow events between two workloads, with one verdict."""

    source: str
    destination: str
    verdict: str
    events: int


@dataclass(frozen=True)
class WorkStatus(_StatusRecord):
    """Work status: long work that is under way, and how far it is."""

    activity: str
    since: str  # UTC, RFC 3339
    done: int
    total: int | None  # None: not known
    text: str  # all of it in words


@dataclass(frozen=True)
class SourceFilterStatus(_StatusRecord):
    """Source filter status: the kernel's check of source addresses before fragments are joined."""

    drops: Mapping[str, int]  # interface: packets with a forged source; part of the drops of ``WorkersStatus``


@dataclass(frozen=True)
class NamesStatus(_StatusRecord):
    """Names status: names with addresses that this node has learned from DNS answers, and the answers that waited."""

    names: int  # of all endpoints: a name counts for each endpoint that has asked for it
    addresses: int
    evicted: int  # names and addresses that gave way to newer ones
    held: int  # answers with new addresses, held until all workers had them


@dataclass(frozen=True)
class HttpRequestCount(_StatusRecord):
    """HTTP request count: the requests that the same documents decided, with one verdict and class of codes."""

    rule: str  # namespace/name of these documents, separated by commas
    code_class: str  # 2xx; none: the client was not answered
    verdict: str  # FORWARDED or DROPPED
    requests: int


@dataclass(frozen=True)
class TlsConnectionCount(_StatusRecord):
    """TLS connection count: connections with one verdict, decided by the same documents."""

    rule: str  # namespace/name of these documents, separated by commas
    verdict: str  # FORWARDED or DROPPED
    reason: str  # TLS_REFUSED or TLS_MALFORMED; empty: forwarded
    connections: int


@dataclass(frozen=True)
class ProxyStatus(_StatusRecord):
    """Proxy status: the process that checks connections with HTTP rules or server names, and its slots."""

    running: bool
    pid: int | None
    version: str | None
    error: str | None  # the reason for which it does not run, or rejected an update of its rules
    restarts: int
    slots: int  # in use
    refused: int  # connections that found all slots in use
    unlogged: int = 0  # requests that were counted, but came too fast for the flow log


@dataclass(frozen=True)
class WorkloadSourceStatus(_StatusRecord):
    """Workload source status: a source of endpoints of this node."""

    source: str
    endpoints: int  # that it names
    away: str | None  # the reason for which it is not reachable; None: it is
    details: Mapping[str, Any]  # of this kind of source


@dataclass(frozen=True)
class WorkloadsStatus(_StatusRecord):
    """Workloads status: the sources of endpoints of this node, and the endpoints and documents not in force."""

    sources: Sequence[WorkloadSourceStatus]
    refused: Mapping[str, str]  # endpoint, or kind and name of a document: reason

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {"sources": WorkloadSourceStatus}


@dataclass(frozen=True)
class AgentStatus(_StatusRecord):
    """Agent status: settings, policy, workers, store and log of a node."""

    version: str
    node: str
    addresses: Sequence[str]
    cluster_interfaces: Sequence[str]
    since: str  # UTC, RFC 3339: start of the agent
    enforcement: str
    audit: bool
    fail: str
    datapath: str
    families: Sequence[str]
    revision: int  # the last one that all workers and rules enforce
    compilations: int
    documents: DocumentCounts
    refused: Refusal | None
    endpoints: int  # on this node
    identities: int
    store: StoreStatus | None  # None: the agent has no store but its own memory
    worker: WorkersStatus
    workers: Sequence[WorkerStatus]
    log: LogCounts
    problems: Sequence[str] = ()  # sentences about this node that an administrator has to act on
    rules: RulesStatus | None = None  # None: of an older agent
    stuck: Sequence[StuckPart] = ()  # empty: every part works
    working: Sequence[WorkStatus] = ()  # reading documents, enforcing a change
    source_filter: SourceFilterStatus | None = None  # None: of an older agent
    names: NamesStatus | None = None  # None: of an older agent
    http: Sequence[HttpRequestCount] = ()
    tls: Sequence[TlsConnectionCount] = ()
    proxy: ProxyStatus | None = None  # None: no policy has needed the proxy yet, or of an older agent
    workloads: WorkloadsStatus | None = None  # None: the configuration names no source
    # each of the following is None, or empty, of an older agent
    health: HealthStatus | None = None
    revisions: RevisionStatus | None = None
    endpoint_states: EndpointStates | None = None
    conntrack: ConntrackStatus | None = None
    queues: Sequence[QueueStatus] = ()
    traffic: TrafficStatus | None = None
    compile_times: HistogramStatus | None = None  # of changes that compiled policy
    change_times: HistogramStatus | None = None  # of reconciliations, from the poll of changes to their enforcement
    workload_flows: Sequence[WorkloadFlowCount] = ()  # empty unless the configuration asks for them (metrics.flows)

    _nested: ClassVar[Mapping[str, type[_StatusRecord]]] = {
        "documents": DocumentCounts,
        "refused": Refusal,
        "store": StoreStatus,
        "worker": WorkersStatus,
        "workers": WorkerStatus,
        "log": LogCounts,
        "rules": RulesStatus,
        "stuck": StuckPart,
        "working": WorkStatus,
        "source_filter": SourceFilterStatus,
        "names": NamesStatus,
        "http": HttpRequestCount,
        "proxy": ProxyStatus,
        "tls": TlsConnectionCount,
        "workloads": WorkloadsStatus,
        "health": HealthStatus,
        "revisions": RevisionStatus,
        "endpoint_states": EndpointStates,
        "conntrack": ConntrackStatus,
        "queues": QueueStatus,
        "traffic": TrafficStatus,
        "compile_times": HistogramStatus,
        "change_times": HistogramStatus,
        "workload_flows": WorkloadFlowCount,
    }


@dataclass(frozen=True)
class NodeReport(_StatusRecord):
    """Node report: a node of the cluster, with the store's record of its heartbeat."""

    name: str
    addresses: Sequence[str]
    live: bool | None  # None: unknown, because the store is unreachable
    last_seen: str | None  # UTC, RFC 3339
    revision: int | None  # of the policy that the node enforces
    version: str
    datapath: str
    endpoints: int
