"""The lab's store: a real Redis server on the machine ``store``, to be killed and restarted as real ones are.

It saves nothing by itself: a restart brings back what was there at the last ``save``, and nothing if there was none.
Like any daemon of the lab it outlives this object, and ends with the lab.
"""

import signal
import subprocess

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.network import Network, find_command
from nfq_enforcer.lab.process import Daemon
from nfq_enforcer.lab.topology import STORE

PORT = 6379
_PATIENCE = 15.0  # seconds for an answer


class StoreServer:
    """The Redis server of one lab."""

    def __init__(self, network: Network) -> None:
        """Name it; whether it runs is found out when asked."""
        self.folder = network.state / STORE
        self._dump = self.folder / "dump.rdb"
        self._network = network
        log, pid_file = self.folder / "redis.log", self.folder / "redis.pid"
        self._server = Daemon(network, STORE, "the lab's store", log, pid_file)

    @property
    def url(self) -> str:
        """Return its address as the setting ``store`` takes it."""
        return f"redis://{self._network.topology.address(STORE)}:{PORT}"

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._server.pid

    @property
    def runs(self) -> bool:
        """Say whether it answers."""
        return self._ask("PING") == "PONG"

    def start(self) -> None:
        """Start it with what it has saved, and return when it answers; raise NfqError with the log if it ends."""
        self._check_place()
        configuration = self.folder / "redis.conf"
        configuration.write_text(self._configuration())
        self._server.start([find_command("redis-server"), str(configuration)])
        self._server.wait_until(lambda: self.runs)

    def save(self) -> None:
        """Write what it holds to disk, for a later restart."""
        self._ask("SAVE")

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._server.stop(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and return when it has."""
        self._server.stop(signal.SIGTERM)

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

    def _ask(self, *command: str) -> str:
        address = str(self._network.topology.address(STORE))
        argv = [find_command("redis-cli"), "-h", address, "-p", str(PORT), *command]
        try:
            done = subprocess.run(
                self._network.command(STORE, argv), capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise NfqError(f"the lab's store does not answer {command[0]}: {self._server.last_words()}") from None
        return done.stdout.strip()
