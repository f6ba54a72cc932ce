"""Choice of the NFQUEUE driver: the configured one, or with ``auto`` the faster one that this kernel supports."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.dataplane.queue.library_queue import LibraryQueue
from nfq_enforcer.dataplane.queue.netlink_queue import NetlinkQueue, SocketBindings, Unsupported, bindings
from nfq_enforcer.dataplane.queue.priorities import PriorityQueues
from nfq_enforcer.dataplane.queue.protocol import Queue, QueueNumbers, VerdictFunction

T = TypeVar("T")


def bind(
    driver: Driver, numbers: QueueNumbers, decide: VerdictFunction, *, fail_open: bool, next_worker: int | None = None
) -> PriorityQueues:
    """Bind the queues of a worker; raise NfqError with the reason if the kernel refuses.

    ``auto`` selects the driver ``netlink``, or the library on kernels before Linux 3.11, which lack NFQA_CFG_F_GSO.
    With ``fail_open`` packets pass while their queue overflows.
    """
    if driver is Driver.NETFILTERQUEUE:
        return _bind_library(numbers, decide)
    try:
        return _bind_netlink(numbers, decide, fail_open=fail_open, next_worker=next_worker)
    except Unsupported:
        if driver is not Driver.AUTO:  # an explicit choice has no fallback
            raise
    return _bind_library(numbers, decide)


def _bind_netlink(
    numbers: QueueNumbers, decide: VerdictFunction, *, fail_open: bool, next_worker: int | None
) -> PriorityQueues:
    def bind_queue(of_socket: SocketBindings) -> NetlinkQueue:
        return NetlinkQueue(of_socket, decide, fail_open=fail_open, next_worker=next_worker)

    return PriorityQueues(Driver.NETLINK, numbers, _bind_all(bind_queue, bindings(numbers, fail_open=fail_open)))


def _bind_library(numbers: QueueNumbers, decide: VerdictFunction) -> PriorityQueues:
    numbers = numbers._replace(whole=numbers.headers, segmented=numbers.headers)
    each = *sorted(numbers.known), numbers.openings, numbers.excess
    return PriorityQueues(Driver.NETFILTERQUEUE, numbers, _bind_all(lambda number: LibraryQueue(number, decide), each))


def _bind_all(bind_queue: Callable[[T], Queue], arguments: Iterable[T]) -> list[Queue]:
    """Bind the queues of all priorities, or none: if one cannot be bound, those before it are closed."""
    queues: list[Queue] = []
    with ExitStack() as bound:
        for argument in arguments:
            queue = bind_queue(argument)
            bound.callback(queue.close)
            queues.append(queue)
        bound.pop_all()
    return queues
