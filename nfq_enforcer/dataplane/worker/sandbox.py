"""Sandbox of a worker: no file but the interpreter's modules, by Landlock (landlock(7), Linux 5.13).

A worker without capabilities still has user ID 0, which owns the configuration, the store's password and the state. A
worker reads none of them; the agent sends all that it needs. Modules stay readable, because the interpreter imports
some of them late. Kernels without Landlock have no sandbox; the capabilities are given up all the same.
"""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # numbers of the system calls, the same on all architectures
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ALL_ACCESS = (1 << 13) - 1  # of version 1, so that all versions know them: execute, read, write, remove, make

_libc = ctypes.CDLL(None, use_errno=True)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def restrict_files() -> bool:
    """Allow this process to read modules and to open no other file; return False without Landlock.

    The process needs PR_SET_NO_NEW_PRIVS.
    """
    handled = ctypes.c_uint64(_ALL_ACCESS)
    ruleset = _libc.syscall(_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    try:
        for folder in {Path(entry) for entry in sys.path if entry}:
            with suppress(OSError):  # entries of ``sys.path`` need not exist
                _allow_reading(ruleset, folder)
        return bool(_libc.syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, path: Path) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        access = _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
        rule = _PathBeneath(access, descriptor)
        _libc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
