"""The lab's store: a real Redis server on the machine ``store``, which tests kill and restart as real servers are.

The server saves nothing by itself: after a restart it has the data of the last ``save``, or no data without one.
Like any process of the lab it outlives this object, and ends with the lab.
"""

import signal
import subprocess

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.network import LabNetwork, find_command
from nfq_enforcer.lab.process import LabProcess
from nfq_enforcer.lab.topology import STORE

PORT = 6379
_TIMEOUT = 15.0  # seconds for a reply


class StoreServer:
    """StoreServer: the Redis server of one lab."""

    def __init__(self, network: LabNetwork) -> None:
        """Keep the server's files and machine; the server may or may not run."""
        self.folder = network.state / STORE
        self._dump = self.folder / "dump.rdb"
        self._network = network
        log, pid_file = self.folder / "redis.log", self.folder / "redis.pid"
        self._server = LabProcess(network, STORE, "the lab's store", log, pid_file)

    @property
    def url(self) -> str:
        """Return the server's address in the form of the setting ``store``."""
        return f"redis://{self._network.topology.address(STORE)}:{PORT}"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._server.pid

    @property
    def runs(self) -> bool:
        """Return whether the server replies to PING."""
        return self._call("PING") == "PONG"

    def start(self) -> None:
        """Start the server with its saved data, and wait until it replies; raise NfqError with the log if it ends."""
        self._check_can_start()
        configuration = self.folder / "redis.conf"
        configuration.write_text(self._configuration())
        self._server.start([find_command("redis-server"), str(configuration)])
        self._server.wait_until(lambda: self.runs)

    def save(self) -> None:
        """Write the server's data to disk, for a later restart."""
        self._call("SAVE")

    def kill(self) -> None:
        """Kill the server at once, as a crash does."""
        self._server.stop(signal.SIGKILL)

    def stop(self) -> None:
        """Send the server SIGTERM, and wait for its end."""
        self._server.stop(signal.SIGTERM)

    def restart(self, *, empty: bool = False) -> None:
        """Start the server again, also after a crash, with its last saved data or with none."""
        self.kill()
        if empty:
            self._dump.unlink(missing_ok=True)
        self.start()

    def _check_can_start(self) -> None:
        if not self._network.state.is_dir():
            raise NfqError(f"the lab {self._network.topology.run_id!r} is not up: see `nfq-enforcer lab up`")
        if self.runs:
            raise NfqError("the lab's store runs already")
        self.folder.mkdir(exist_ok=True)

    def _configuration(self) -> str:
        addresses = " ".join(map(str, self._network.topology.machine(STORE).addresses))
        lines = ["daemonize no", f"port {PORT}", f"bind {addresses}", "protected-mode no", f"dir {self.folder}"]
        return "\n".join([*lines, 'save ""', "appendonly no", ""])

    def _call(self, *command: str) -> str:
        address = str(self._network.topology.address(STORE))
        argv = [find_command("redis-cli"), "-h", address, "-p", str(PORT), *command]
        try:
            done = subprocess.run(
                self._network.command(STORE, argv), capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise NfqError(f"the lab's store does not answer {command[0]}: {self._server.log_tail()}") from None
        return done.stdout.strip()
