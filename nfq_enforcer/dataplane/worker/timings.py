"""Timings of a worker and of the agent's side of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerTimings:
    """Worker timings: intervals and deadlines, in seconds, and how far a worker may fall behind, in bytes."""

    # in the worker
    housekeeping: float = 0.01  # between two runs of housekeeping, while packets or events wait
    idle: float = 0.25  # between two runs of housekeeping, while nothing waits
    messages: float = 0.001  # for messages, in one run; it exceeds this by one message, and by one growth of a dict
    interface_cache: float = 1.0  # until the name and the MTU of an interface are read again
    hold: float = 1.0  # for a DNS answer, until all workers have its addresses; then it is dropped
    slot: float = 3.0  # for a first packet, until the proxy has a slot for it; then it is dropped
    drain: float = 1.0  # for packets that still wait after Stop, while the rules go on queueing packets
    import_flows: float = 5.0  # for the import of the kernel's flows at the start (some 100,000 a second)
    import_again: float = 0.2  # for the import after a hand-over, while packets wait

    # in the agent
    heartbeat_check: float = 0.2  # between two looks at a worker's heartbeat (see ``liveness``)
    heartbeat: float = 1.0  # counted time without a heartbeat, until a worker is replaced
    heartbeat_at_start: float = 2.0  # the same while it starts, because a slow disk delays the import of modules
    response: float = 10.0  # for a worker to bind its queues, to put a revision in force, or to end
    restart: float = 0.2  # between two attempts to replace a worker
    unread_bytes: int = 64 << 20  # of messages to a worker, before it is killed; a million peers take half of that


DEFAULT_TIMINGS = WorkerTimings()
