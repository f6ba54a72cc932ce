"""Places of flows: the queue that the packets of a known flow reach, among those of its kind, from the kernel's counts.

The flows of other addresses may have the same place. Which ones do depends on a random number of the kernel.
"""

import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from nfq_enforcer.dataplane.queue.protocol import KNOWN_QUEUES, read_queues
from nfq_enforcer.lab.lab import Lab
from tests.support.namespaces import socket_in

_PROBES = 20  # exchanges, more than any other traffic of the lab has meanwhile
_PATIENCE = 3.0  # s


def place_of_datagrams(lab: Lab, node: str, client: str, server: str) -> int | None:
    """Return the place of UDP flows between two machines at a node."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket_in(lab, machine)) for machine in (client, server)]
        return place_of(lab, node, lambda: exchange(*sockets))


def place_of_connections(lab: Lab, node: str, client: str, server: str, port: int) -> int | None:
    """Return the place of TCP connections between two machines at a node; the server listens at the port."""

    def connect() -> None:
        with socket_in(lab, client, kind=socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect((str(lab.address(server)), port))

    return place_of(lab, node, connect)


def place_of(lab: Lab, node: str, send: Callable[[], object]) -> int | None:
    """Return the place that has most packets at a node while packets are sent; None if they are not queued."""
    before = _passed(lab, node)
    for _ in range(_PROBES):
        send()
    grown = _passed(lab, node) - before
    return next((place for place, packets in grown.most_common(1) if packets >= _PROBES), None)


def exchange(client: socket.socket, server: socket.socket) -> None:
    """Send a datagram and its answer."""
    for sender, receiver in ((client, server), (server, client)):
        receiver.settimeout(_PATIENCE)
        sender.sendto(b"?", receiver.getsockname())
        receiver.recv(100)


def _passed(lab: Lab, node: str) -> Counter[int]:
    """Return the packets that each place of the known flows' queues has had."""
    status = lab.nodes[node].status()
    first, places = status["worker"]["queue"], len(status["workers"]) * KNOWN_QUEUES
    passed: Counter[int] = Counter()
    for queue in read_queues(lab.nodes[node].pid):
        if first <= queue.number < first + 2 * places:  # headers and whole
            passed[(queue.number - first) % places] += queue.last_id
    return passed
