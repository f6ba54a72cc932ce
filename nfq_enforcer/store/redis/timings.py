"""Intervals and time limits of a node's session with the store."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionTimings:
    """Timings: intervals and time limits, all in seconds.

    ``live``, ``lease``, ``grace``, ``retirement`` and ``collect`` must be the same on all nodes of a cluster: any node
    may be the one that collects garbage.
    """

    heartbeat: float = 5.0  # between two heartbeats of a node
    live: float = 15.0  # age of the last heartbeat from which a node is not live; no command waits for it then
    lease: float = 900.0  # age of the last heartbeat from which a node and its endpoints are removed
    grace: float = 900.0  # time without an endpoint after which an identity is removed
    retirement: float = 86_400.0  # time for which the number of a removed identity is kept for its labels alone
    collect: float = 30.0  # between two garbage collections in the cluster, by any node

    read_wait: float = 1.0  # longest time that one read of the stream blocks; its return shows that the server lives
    command_timeout: float = 2.0  # for the answer to a command
    sentinel_timeout: float = 2.0  # for the answer of one Sentinel, before the next one is queried
    first_state: float = 3.0  # longest wait at start for the store's state, if a last known state can be enforced
    first_pause: float = 0.05  # between the first two attempts to connect; each further pause is twice as long
    longest_pause: float = 5.0  # between two attempts to connect
    reconnect: float = 5.0  # longest wait of a command for a connection that is being renewed
    save: float = 0.2  # between two saves of the last known state
    enforced_poll: float = 0.05  # between two reads of the revisions that other nodes enforce


DEFAULT_TIMINGS = SessionTimings()
