"""A long-running program of the lab: it outlives the object that started it, and ends with the lab."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.network import LabNetwork

_TIMEOUT = 40.0  # seconds for the program to get ready, or to end; many labs beside each other need some
_POLL_INTERVAL = 0.02
_LOG_LINES = 5


class LabProcess:
    """LabProcess: one program on one machine, with its log and its process id in files of the lab."""

    def __init__(self, network: LabNetwork, machine: str, title: str, log: Path, pid_file: Path) -> None:
        """Keep the machine, the files, and the title for error messages; the program may or may not run."""
        self.log = log
        self._network = network
        self._machine = machine
        self._title = title
        self._pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the program's process id."""
        return int(self._pid_file.read_text())

    def start(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start the program; do not wait until it is ready."""
        with self.log.open("wb") as log:
            self._process = self._network.in_namespace(
                self._machine,
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self._pid_file.write_text(str(self._process.pid))

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until the program is ready; raise NfqError with the end of its log if it ends or the time runs out."""
        deadline = time.monotonic() + _TIMEOUT
        while not ready():
            if self._process is not None and self._process.poll() is not None:
                raise NfqError(f"{self._title} has ended: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise NfqError(f"{self._title} is not ready after {_TIMEOUT:.0f} s: {self.log_tail()}")
            time.sleep(_POLL_INTERVAL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Stop the program, if it runs, and wait for its end; return its exit status if this object started it."""
        if self._process is not None and self._process.poll() is not None:
            return self._process.returncode
        with suppress(FileNotFoundError, ProcessLookupError):  # not started, or already ended
            descriptor = os.pidfd_open(self.pid)
            try:
                signal.pidfd_send_signal(descriptor, number)
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(_TIMEOUT * 1000)
            finally:
                os.close(descriptor)
        self._pid_file.unlink(missing_ok=True)  # the kernel may soon give the number to another process
        return None if self._process is None else self._process.wait(_TIMEOUT)

    def log_tail(self) -> str:
        """Return the last lines of the program's log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "; ".join(lines[-_LOG_LINES:]) or "its log is empty"
