"""Priority of a worker for processor time: above the agent, which may compile a policy for half a minute.

A worker needs little time, but soon: packets wait until it runs. Its niceness (sched(7)) gives it a larger share, and a
short slice makes the scheduler of Linux 6.12 and newer run it at once when packets arrive. Kernels with autogroups
divide time among sessions first, so the worker has a session of its own: it would otherwise pay for the time of its
agent. A real-time policy would serve packets even sooner, but a flood would then take a whole processor from the rest
of the host.
"""

import ctypes
import os
import platform
import struct
from contextlib import suppress
from pathlib import Path

NICENESS = -10  # some nine times the share of a process with niceness 0
_SLICE = 100_000  # ns, the least that the kernel grants
# The number of sched_setattr(2), which C libraries before glibc 2.41 have no function for.
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # struct sched_attr, linux/sched/types.h

_libc = ctypes.CDLL(None, use_errno=True)


def raise_priority() -> None:
    """Raise the priority of this process, and that of its session, as far as the kernel allows.

    A lower niceness needs CAP_SYS_NICE or the resource limit RLIMIT_NICE, which the service has; the slice needs none.
    """
    with suppress(OSError):  # a kernel without autogroups has no such file
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    number = _SET_ATTRIBUTES.get(platform.machine())
    if number is not None:
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, _SLICE, 0, 0)
        _libc.syscall(number, 0, ctypes.create_string_buffer(attributes, len(attributes)), 0)
