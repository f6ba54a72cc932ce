"""Choice of the NFQUEUE driver: the configured one, or with ``auto`` the faster one that this kernel supports."""

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.dataplane.queue.library_queue import LibraryQueue
from nfq_enforcer.dataplane.queue.netlink_queue import NetlinkQueue, Unsupported
from nfq_enforcer.dataplane.queue.protocol import Queue, QueueNumbers, VerdictFunction


def bind(
    driver: Driver, numbers: QueueNumbers, decide: VerdictFunction, *, fail_open: bool, next_worker: int | None = None
) -> Queue:
    """Bind the queues of a worker; raise NfqError with the reason if the kernel refuses.

    ``auto`` selects the driver ``netlink``, or the library on kernels before Linux 3.11, which lack NFQA_CFG_F_GSO.
    """
    if driver is Driver.NETFILTERQUEUE:
        return LibraryQueue(numbers, decide)
    try:
        return NetlinkQueue(numbers, decide, fail_open=fail_open, next_worker=next_worker)
    except Unsupported:
        if driver is not Driver.AUTO:  # an explicit choice has no fallback
            raise
    return LibraryQueue(numbers, decide)
