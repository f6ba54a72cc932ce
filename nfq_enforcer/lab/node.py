"""A node of the lab: its agent, as a process of its own in the node's namespace."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from nfq_enforcer import api
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.network import Network

_PATIENCE = 15.0  # seconds until an agent is ready, or has ended
_LOOK = 0.02
_LOG_LINES = 5


class Node:
    """One node and its agent; the agent outlives this object, like any daemon."""

    def __init__(self, network: Network, name: str, store: Mapping[str, Any]) -> None:
        """Name the node; whether its agent runs is found out when asked. ``store``: the settings of its store."""
        self.name = name
        self.socket = network.state / f"{name}.sock"
        self.log = network.state / f"{name}-agent.log"
        self._configuration = network.state / f"{name}.yaml"
        self._pid_file = network.state / f"{name}.pid"
        self._network = network
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, **settings: Any) -> None:
        """Start the agent without waiting; ``settings`` are keys of its configuration beside those of the lab."""
        configuration = {
            "node": {"name": self.name, **settings.pop("node", {})},
            **self._store,
            "api": {"socket": str(self.socket)},
            **settings,
        }
        self._configuration.write_text(yaml.safe_dump(configuration))
        program = [sys.executable, "-P", "-m", "nfq_enforcer.cli", "agent", "--config", str(self._configuration)]
        with self.log.open("wb") as log:
            self._process = self._network.in_namespace(
                self.name,
                [*program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("NFQ_ENFORCER_")},
            )
        self._pid_file.write_text(str(self._process.pid))

    def wait_until_ready(self) -> None:
        """Return when every packet of the node is being judged; raise NfqError with the log if the agent ends."""
        deadline = time.monotonic() + _PATIENCE
        while not self._is_ready():
            if self._process is not None and self._process.poll() is not None:
                raise NfqError(f"the agent of {self.name} has ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise NfqError(f"the agent of {self.name} is not ready after {_PATIENCE:.0f} s: {self._last_words()}")
            time.sleep(_LOOK)

    def status(self) -> dict[str, Any]:
        """Return the agent's status."""
        seen: dict[str, Any] = api.call(self.socket, "status")
        return seen

    def observe(self, **params: Any) -> list[dict[str, Any]]:
        """Return the flows that the agent has kept; ``verdict`` and ``last`` as in ``nfq-enforcer observe``."""
        return list(api.stream(self.socket, "observe", 10.0, **params))

    @property
    def pid(self) -> int:
        """Return the agent's process id."""
        return int(self._pid_file.read_text())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the agent, if it runs, and return when it is gone."""
        if self._process is not None and self._process.poll() is not None:
            return
        with suppress(FileNotFoundError, ProcessLookupError):  # never started, or ended by itself
            descriptor = os.pidfd_open(self.pid)
            try:
                signal.pidfd_send_signal(descriptor, number)
                _await_exit(descriptor)
            finally:
                os.close(descriptor)
        if self._process is not None:
            self._process.wait(_PATIENCE)

    def _is_ready(self) -> bool:
        return b"\nready\n" in b"\n" + self.log.read_bytes()

    def _last_words(self) -> str:
        return "; ".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]) or "it said nothing"


def _await_exit(descriptor: int) -> None:
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    ended.poll(_PATIENCE * 1000)
