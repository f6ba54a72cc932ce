"""A program of the lab that runs by itself: it outlives the object that started it, and ends with the lab."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.network import Network

_PATIENCE = 15.0  # seconds until it is ready, or has ended
_LOOK = 0.02
_LOG_LINES = 5


class Daemon:
    """One program on one machine, with its log and its process id in files of the lab."""

    def __init__(self, network: Network, machine: str, called: str, log: Path, pid_file: Path) -> None:
        """Name it for people, too; whether it runs is found out when asked."""
        self.log = log
        self._network = network
        self._machine = machine
        self._called = called
        self._pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return its process id."""
        return int(self._pid_file.read_text())

    def start(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it without waiting."""
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
        """Return when it is ready; raise NfqError with its last words if it ends, or takes too long."""
        deadline = time.monotonic() + _PATIENCE
        while not ready():
            if self._process is not None and self._process.poll() is not None:
                raise NfqError(f"{self._called} has ended: {self.last_words()}")
            if time.monotonic() > deadline:
                raise NfqError(f"{self._called} is not ready after {_PATIENCE:.0f} s: {self.last_words()}")
            time.sleep(_LOOK)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """End it, if it runs, and return when it is gone: its exit status, if this object has started it."""
        if self._process is not None and self._process.poll() is not None:
            return self._process.returncode
        with suppress(FileNotFoundError, ProcessLookupError):  # never started, or ended by itself
            descriptor = os.pidfd_open(self.pid)
            try:
                signal.pidfd_send_signal(descriptor, number)
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(_PATIENCE * 1000)
            finally:
                os.close(descriptor)
        self._pid_file.unlink(missing_ok=True)  # its number may soon be another process's
        return None if self._process is None else self._process.wait(_PATIENCE)

    def last_words(self) -> str:
        """Return the end of its log."""
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "; ".join(said[-_LOG_LINES:]) or "it said nothing"
