"""The queue where there is none: a kernel without NFQUEUE."""

import subprocess
import sys

import pytest

# No kernel here is without it, so the program has the kernel answer as one that is: a seccomp filter refuses the
# netlink family of netfilter (seccomp(2); offsets in struct seccomp_data, linux/seccomp.h).
PROGRAM = """
import ctypes, platform, struct, sys
from pathlib import Path
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane import drivers, nfqueue
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

nfqueue._PROC = Path("/proc/net/netfilter/there_is_none")
try:
    drivers.bind(sys.argv[1], 100, lambda payload, indev, outdev, skb: Verdict.DROP, fail_open=False)
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
