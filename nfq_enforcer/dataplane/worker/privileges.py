"""Privileges of a worker: it keeps CAP_NET_ADMIN, which each verdict needs, and gives up all others for good.

The kernel checks CAP_NET_ADMIN of the sender for every message of NFQUEUE (``nfnetlink_rcv``). The raw sockets for ICMP
errors need CAP_NET_RAW only when they are opened (``raw(7)``). With PR_SET_NO_NEW_PRIVS, no program that a worker might
execute gets a capability back, by file capabilities, a set-user-ID bit or user ID 0.
"""

import ctypes
import os
from contextlib import suppress

NET_ADMIN = 12  # linux/capability.h
_LAST = 63  # the kernel refuses numbers that it does not know
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 capabilities
_PR_CAPBSET_DROP, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 4, 38, 47  # linux/prctl.h
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def keep_only(capability: int) -> None:
    """Give up all capabilities of this process but one; raise OSError if the kernel refuses.

    The process then cannot be traced or dumped by others of its user, either, so its memory stays its own.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    with suppress(OSError):  # kernels without ambient capabilities (before Linux 4.3) have none to clear
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(_LAST + 1):
        if number != capability:
            with suppress(OSError):  # without CAP_SETPCAP, as in the service; no_new_privs has the same effect
                _prctl(_PR_CAPBSET_DROP, number)
    words = (_Data * 2)()
    words[capability // 32].effective = words[capability // 32].permitted = 1 << capability % 32
    if _libc.capset(ctypes.byref(_Header(_VERSION, 0)), words) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, *arguments: int) -> None:
    if _libc.prctl(option, *(ctypes.c_ulong(number) for number in (*arguments, 0, 0, 0, 0)[:4])) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
