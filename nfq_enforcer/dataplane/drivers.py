"""Which driver speaks to the kernel: the one that is asked for, or the better one that works here."""

from nfq_enforcer.dataplane import libraryqueue, netlinkqueue
from nfq_enforcer.dataplane.libraryqueue import LibraryQueue
from nfq_enforcer.dataplane.netlinkqueue import NetlinkQueue, Unsupported
from nfq_enforcer.dataplane.nfqueue import Judge, Queue

AUTO = "auto"


def bind(driver: str, first_queue: int, judge: Judge, *, fail_open: bool) -> Queue:
    """Bind the queues of a worker; raise NfqError with the reason if the kernel refuses.

    ``auto`` is the driver ``netlink``, and the library where the kernel is too old for that (before Linux 3.11).
    """
    if driver == libraryqueue.DRIVER:
        return LibraryQueue(libraryqueue.numbers(first_queue), judge)
    try:
        return NetlinkQueue(netlinkqueue.numbers(first_queue), judge, fail_open=fail_open)
    except Unsupported:
        if driver != AUTO:
            raise
    return LibraryQueue(libraryqueue.numbers(first_queue), judge)
