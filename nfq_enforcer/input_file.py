"""Reader of files that a user names: regular files of limited size, /dev/null, and the standard input where allowed.

A path in an option, in a configuration or in a folder may lead anywhere: to a FIFO that nobody writes, to a device
without end, to a file that is larger than the memory. Each is refused with the reason, none is waited for.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

from nfq_enforcer.errors import DocumentError

STANDARD_INPUT = Path("-")
SETTINGS_SIZE = 1 << 20  # bytes of a configuration, a password or a certificate: a bundle of authorities has 0.2 MiB
DOCUMENTS_SIZE = 128 << 20  # bytes of a file of documents: a million CIDRs have 30 MiB
EXPORT_SIZE = 1 << 30  # bytes of an export of the store
FLOW_SIZE = 1 << 20  # bytes of a line of saved flows

_CHUNK = 1 << 20
_NULL = os.makedev(1, 3)  # /dev/null, the empty file; null(4)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read(path: Path, limit: int, *, standard_input: bool = False) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raise DocumentError for every other one.

    With ``standard_input``, ``-`` is the standard input, which is read to its end, or to the limit.
    """
    name = name_of(path) if standard_input else str(path)
    try:
        if standard_input and path == STANDARD_INPUT:
            return _content(_standard_input(name).read, name, limit)
        descriptor = _open(path, name, limit)
        try:
            return _content(partial(os.read, descriptor), name, limit)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(name, error.strerror or str(error)) from error


def lines(path: Path, longest: int) -> Iterator[str]:
    """Yield the lines of a regular file, or of the standard input (``-``) as they come; raise DocumentError.

    ``longest``: bytes of a line. Bytes that are no UTF-8 are replaced.
    """
    name = name_of(path)
    try:
        with _stream(path, name) as stream:
            while line := stream.readline(longest + 1):
                if len(line) > longest:
                    raise _unreadable(name, f"it has a line of more than the allowed {longest >> 20} MiB")
                yield line.decode(errors="replace")
    except OSError as error:
        raise _unreadable(name, error.strerror or str(error)) from error


def _stream(path: Path, name: str) -> AbstractContextManager[BinaryIO]:
    if path == STANDARD_INPUT:
        return nullcontext(_standard_input(name))
    return open(_open(path, name, None), "rb")


def _open(path: Path, name: str, limit: int | None) -> int:
    """Return the descriptor of a regular file; raise DocumentError for every other one, and for a longer one."""
    _check(path.stat(), name, limit)  # before it is opened: that alone may wait, or start a device
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(os.fstat(descriptor), name, limit)  # another file may have the name by now
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def name_of(path: Path) -> str:
    """Return the name of an input for messages, where the standard input is allowed."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def _check(status: os.stat_result, name: str, limit: int | None) -> None:
    kind = next((word for is_kind, word in _KINDS if is_kind(status.st_mode)), None)
    if kind is not None and status.st_rdev != _NULL:
        raise _unreadable(name, f"it is {kind}; allowed: a regular file")
    if limit is not None and status.st_size > limit:
        raise _too_long(name, limit)


def _standard_input(name: str) -> BinaryIO:
    if sys.stdin is None:  # the program was started without one
        raise _unreadable(name, "it is closed")
    return sys.stdin.buffer


def _content(read_part: Callable[[int], bytes], name: str, limit: int) -> bytes:
    """Read to the end, which the size of a file does not tell: it may grow, and files of the kernel have size 0."""
    content = bytearray()
    while part := read_part(min(_CHUNK, limit + 1 - len(content))):
        content += part
        if len(content) > limit:
            raise _too_long(name, limit)
    return bytes(content)


def _too_long(name: str, limit: int) -> DocumentError:
    return _unreadable(name, f"it has more than the allowed {limit >> 20} MiB")


def _unreadable(name: str, reason: str) -> DocumentError:
    return DocumentError(name, f"cannot be read: {reason}")
