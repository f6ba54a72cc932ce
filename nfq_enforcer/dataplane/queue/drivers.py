"""Which driver speaks to the kernel: the one that is asked for, or the better one that works here."""

from nfq_enforcer.dataplane.queue import library_queue
from nfq_enforcer.dataplane.queue.library_queue import LibraryQueue
from nfq_enforcer.dataplane.queue.netlink_queue import NetlinkQueue, Unsupported
from nfq_enforcer.dataplane.queue.protocol import Judge, Queue, QueueNumbers

AUTO = "auto"


def bind(driver: str, numbers: QueueNumbers, judge: Judge, *, fail_open: bool, next_worker: int | None = None) -> Queue:
    """Bind the queues of a worker; raise NfqError with the reason if the kernel refuses.

    ``auto`` is the driver ``netlink``, and the library where the kernel is too old for that (before Linux 3.11).
    """
    if driver == library_queue.DRIVER:
        return LibraryQueue(numbers, judge)
    try:
        return NetlinkQueue(numbers, judge, fail_open=fail_open, next_worker=next_worker)
    except Unsupported:
        if driver != AUTO:
            raise
    return LibraryQueue(numbers, judge)
