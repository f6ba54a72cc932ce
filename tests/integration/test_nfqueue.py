"""Choice of the driver, and messages for refusals: old kernels, kernels without NFQUEUE, queues in use."""

import subprocess
import sys
import warnings

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue import drivers, netlink
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, backlog
from nfq_enforcer.errors import NfqError
from tests.support.apart import run_apart

# Every kernel under test has NFQUEUE. So the program simulates one without it: a seccomp filter refuses sockets of
# NETLINK_NETFILTER (seccomp(2); offsets in struct seccomp_data, linux/seccomp.h).
PROGRAM = """
import ctypes, platform, struct, sys
from pathlib import Path
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue import drivers, protocol
from nfq_enforcer.errors import NfqError

SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
AF_NETLINK, NETLINK_NETFILTER, EPROTONOSUPPORT = 16, 12, 93
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
REFUSE, ALLOW = 0x00050000 | EPROTONOSUPPORT, 0x7FFF0000
filter = b"".join(
    struct.pack("HBBI", *line)
    for line in [
        (LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 5, SOCKET),
        (LOAD, 0, 0, 16), (JUMP_IF_EQUAL, 0, 3, AF_NETLINK),
        (LOAD, 0, 0, 32), (JUMP_IF_EQUAL, 0, 1, NETLINK_NETFILTER),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
)
held = ctypes.create_string_buffer(filter)
program = struct.pack("HxxxxxxP", len(filter) // 8, ctypes.addressof(held))
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program)) == 0

protocol._PROC = Path("/proc/net/netfilter/there_is_none")
try:
    queues = protocol.QueueNumbers(100, 101, 102)
    drivers.bind(Driver(sys.argv[1]), queues, lambda payload, indev, outdev, skb: Verdict.DROP, fail_open=False)
except NfqError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("driver", ["auto", "netlink", "netfilterqueue"])
def test_a_kernel_without_nfqueue_is_one_sentence(root: None, driver: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, driver], capture_output=True, text=True, check=False)

    assert done.stderr == (
        "this kernel has no NFQUEUE (nfnetlink_queue): load the module nfnetlink_queue "
        "or use a kernel built with CONFIG_NETFILTER_NETLINK_QUEUE\n"
    )
    assert done.returncode == 1


def accept(payload: bytes, indev: int, outdev: int, skb: int) -> Verdict:
    return Verdict.ACCEPT


def queues(first: int) -> QueueNumbers:
    return QueueNumbers(first, first + 1, first + 2)


def test_the_better_driver_is_taken_where_it_works(root: None) -> None:
    async def scenario() -> tuple[str, QueueNumbers, bool]:
        queue = drivers.bind(Driver.AUTO, queues(100), accept, fail_open=False)
        bound = backlog(100, 101, 102) is not None
        queue.close()
        return queue.driver, queue.numbers, bound

    assert run_apart(scenario()) == ("netlink", QueueNumbers(100, 101, 102), True)


def test_where_the_kernel_refuses_what_it_needs_the_library_is_taken(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        netlink, "GSO", 1 << 20
    )  # no kernel has this flag, like a kernel before 3.11 without NFQA_CFG_F_GSO

    async def scenario() -> tuple[str, QueueNumbers]:
        with warnings.catch_warnings(action="ignore"):  # about the size of the library's socket buffer
            queue = drivers.bind(Driver.AUTO, queues(100), accept, fail_open=False)
        queue.close()
        return queue.driver, queue.numbers

    assert run_apart(scenario()) == ("netfilterqueue", QueueNumbers(100, 100, 100))


def test_a_driver_that_is_asked_for_and_cannot_work_is_one_sentence(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "GSO", 1 << 20)

    async def scenario() -> None:
        drivers.bind(Driver.NETLINK, queues(100), accept, fail_open=False)

    with pytest.raises(NfqError) as caught:
        run_apart(scenario())
    assert str(caught.value) == (
        "this kernel's NFQUEUE cannot do what the driver 'netlink' needs (NFQA_CFG_F_GSO, since Linux 3.11): "
        "choose the driver 'auto' or 'netfilterqueue'"
    )


@pytest.mark.parametrize(("first", "taken"), [(100, 100), (99, 100), (98, 100)])
def test_each_of_its_queues_may_be_taken(root: None, first: int, taken: int) -> None:
    async def scenario() -> None:
        with warnings.catch_warnings(action="ignore"):
            other = drivers.bind(Driver.NETFILTERQUEUE, queues(taken), accept, fail_open=False)
        try:
            drivers.bind(Driver.NETLINK, queues(first), accept, fail_open=False)
        finally:
            assert [number for number in range(98, 103) if backlog(number)] == [taken]
            other.close()

    with pytest.raises(NfqError) as caught:
        run_apart(scenario())
    assert str(caught.value) == (
        f"queue {taken} is taken by another program: stop it, or choose other numbers with "
        "first_queue in the configuration"
    )
