"""The lab's store: a real Redis server on the machine ``store``, to be killed and restarted as real ones are.

It saves nothing by itself: a restart brings back what was there at the last ``save``, and nothing if there was none.
Like any daemon of the lab it outlives this object, and ends with the lab.
"""

import os
import select
import signal
import subprocess
import time
from contextlib import suppress

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.network import Network, find_command
from nfq_enforcer.lab.topology import STORE

PORT = 6379
_PATIENCE = 15.0  # seconds until the server answers, or has ended
_LOOK = 0.02
_LOG_LINES = 5


class StoreServer:
    """The Redis server of one lab."""

    def __init__(self, network: Network) -> None:
        """Name it; whether it runs is found out when asked."""
        self.folder = network.state / STORE
        self.log = self.folder / "redis.log"
        self._dump = self.folder / "dump.rdb"
        self._pid_file = self.folder / "redis.pid"
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its address as the setting ``store`` takes it."""
        return f"redis://{self._network.topology.address(STORE)}:{PORT}"

    @property
    def pid(self) -> int:
        """Return its process id."""
        return int(self._pid_file.read_text())

    @property
    def runs(self) -> bool:
        """Say whether it answers."""
        return self._ask("PING") == "PONG"

    def start(self) -> None:
        """Start it with what it has saved, and return when it answers; raise NfqError with the log if it ends."""
        self._check_place()
        configuration = self.folder / "redis.conf"
        configuration.write_text(self._configuration())
        with self.log.open("wb") as log:
            self._process = self._network.in_namespace(
                STORE,
                [find_command("redis-server"), str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))
        self._wait_until_it_answers()

    def save(self) -> None:
        """Write what it holds to disk, for a later restart."""
        self._ask("SAVE")

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and return when it has."""
        self._end(signal.SIGTERM)

    def restart(self, *, empty: bool = False) -> None:
        """Start it again, if need be after a crash, with what it last saved or with nothing."""
        self.kill()
        if empty:
            self._dump.unlink(missing_ok=True)
        self.start()

    def _check_place(self) -> None:
        if not self._network.state.is_dir():
            raise NfqError(f"the lab {self._network.topology.run_id!r} is not up: see `nfq-enforcer lab up`")
        if self.runs:
            raise NfqError("the lab's store runs already")
        self.folder.mkdir(exist_ok=True)

    def _configuration(self) -> str:
        own = " ".join(map(str, self._network.topology.machine(STORE).addresses))
        lines = ["daemonize no", f"port {PORT}", f"bind {own}", "protected-mode no", f"dir {self.folder}"]
        return "\n".join([*lines, 'save ""', "appendonly no", ""])

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self.runs:
            if self._process is not None and self._process.poll() is not None:
                raise NfqError(f"the lab's store has ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise NfqError(f"the lab's store does not answer after {_PATIENCE:.0f} s: {self._last_words()}")
            time.sleep(_LOOK)

    def _ask(self, *command: str) -> str:
        address = str(self._network.topology.address(STORE))
        argv = [find_command("redis-cli"), "-h", address, "-p", str(PORT), *command]
        try:
            done = subprocess.run(
                self._network.command(STORE, argv), capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise NfqError(f"the lab's store does not answer {command[0]}: {self._last_words()}") from None
        return done.stdout.strip()

    def _end(self, number: signal.Signals) -> None:
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
        if self._process is not None:
            self._process.wait(_PATIENCE)

    def _last_words(self) -> str:
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "; ".join(said[-_LOG_LINES:]) or "it said nothing"
