"""Choice of the driver, messages for refusals (old kernels, kernels without NFQUEUE, queues in use), and lengths."""

import socket
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.queue import drivers, netlink
from nfq_enforcer.dataplane.queue.library_queue import LibraryQueue
from nfq_enforcer.dataplane.queue.netlink_queue import NetlinkQueue, bindings
from nfq_enforcer.dataplane.queue.protocol import Backlog, QueueNumbers, allocate_queues, backlog
from nfq_enforcer.errors import NfqError
from tests.support.apart import run_apart

SO_SNDBUFFORCE = 32  # asm-generic/socket.h

# Every kernel under test has NFQUEUE. So the program simulates one without it: a seccomp filter refuses sockets of
# NETLINK_NETFILTER (seccomp(2); offsets in struct seccomp_data, linux/seccomp.h).
PROGRAM = """
import ctypes, platform, struct, sys
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

protocol._PROC = "/proc/{}/net/netfilter/there_is_none"
try:
    (queues,) = protocol.allocate_queues(100, 1)
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


(NUMBERS,) = allocate_queues(100, 1)
ALL = range(100, 150)


def test_the_better_driver_is_taken_where_it_works(root: None) -> None:
    async def scenario() -> tuple[str, QueueNumbers, bool]:
        queue = drivers.bind(Driver.AUTO, NUMBERS, accept, fail_open=False)
        bound = all(backlog(number) for number in ALL)
        queue.close()
        return queue.driver, queue.numbers, bound

    assert run_apart(scenario()) == ("netlink", NUMBERS, True)


def test_where_the_kernel_refuses_what_it_needs_the_library_is_taken(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        netlink, "GSO", 1 << 20
    )  # no kernel has this flag, like a kernel before 3.11 without NFQA_CFG_F_GSO

    async def scenario() -> tuple[str, QueueNumbers]:
        with warnings.catch_warnings(action="ignore"):  # about the size of the library's socket buffer
            queue = drivers.bind(Driver.AUTO, NUMBERS, accept, fail_open=False)
        queue.close()
        return queue.driver, queue.numbers

    assert run_apart(scenario()) == ("netfilterqueue", QueueNumbers(100, 100, 100, 148, 149))


def test_a_driver_that_is_asked_for_and_cannot_work_is_one_sentence(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "GSO", 1 << 20)

    async def scenario() -> None:
        drivers.bind(Driver.NETLINK, NUMBERS, accept, fail_open=False)

    with pytest.raises(NfqError) as caught:
        run_apart(scenario())
    assert str(caught.value) == (
        "this kernel's NFQUEUE cannot do what the driver 'netlink' needs (NFQA_CFG_F_GSO, since Linux 3.11): "
        "choose the driver 'auto' or 'netfilterqueue'"
    )


@pytest.mark.parametrize("place", [0, 15, 16, 47, 48, 49])
def test_each_of_its_queues_may_be_taken(root: None, place: int) -> None:
    taken = 100 + place

    async def scenario() -> None:
        with warnings.catch_warnings(action="ignore"):
            other = LibraryQueue(taken, accept)
        try:
            drivers.bind(Driver.NETLINK, NUMBERS, accept, fail_open=False)
        finally:
            assert [number for number in ALL if backlog(number)] == [taken]
            other.close()

    with pytest.raises(NfqError) as caught:
        run_apart(scenario())
    assert str(caught.value) == (
        f"queue {taken} is taken by another program: stop it, or choose other numbers with "
        "first_queue in the configuration"
    )


def test_a_bound_queue_becomes_shorter(root: None) -> None:
    async def scenario() -> Backlog | None:
        queue = NetlinkQueue(bindings(NUMBERS, fail_open=False)[0], accept)
        queue.set_max_length(256)
        rule = f"OUTPUT -p udp -j NFQUEUE --queue-num {NUMBERS.headers}"
        subprocess.run(["iptables", "-A", *rule.split()], check=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 24)  # parked packets occupy this buffer
            for _ in range(300):
                with suppress(PermissionError):  # EPERM: the kernel dropped the packet
                    sender.sendto(b"", ("127.0.0.1", 9))
        found = backlog(NUMBERS.headers)
        queue.close()
        return found

    assert run_apart(scenario()) == Backlog(waiting=256, lost=44)
