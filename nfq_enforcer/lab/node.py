"""A node of the lab: its agent, a process in the node's namespace."""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from nfq_enforcer.agent import client
from nfq_enforcer.lab.network import LabNetwork, processes_of
from nfq_enforcer.lab.process import LabProcess

# ``ip netns exec`` mounts a new /sys, without the cgroups of this host
_WITH_CGROUPS = ("sh", "-c", 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"', "sh")


class LabNode:
    """LabNode: one node and its agent; the agent outlives this object, as a daemon does."""

    def __init__(self, network: LabNetwork, name: str, store: Mapping[str, Any]) -> None:
        """Keep the node's name and the settings of its store; the agent may or may not run."""
        self.name = name
        self.socket = network.state / f"{name}.sock"
        self.python = sys.executable  # of an installation of nfq_enforcer
        self.run_socket = network.state / f"{name}-run.sock"  # of ``nfq-enforcer run``
        self.cgroup = f"{processes_of(network.topology.run_id)}-{name}"
        self.log = network.state / f"{name}-agent.log"
        self.state = network.state / f"{name}-state"
        self._configuration = network.state / f"{name}.yaml"
        self._store = store
        self._agent = LabProcess(network, name, f"the agent of {name}", self.log, network.state / f"{name}.pid")

    def start(self, *options: str, **settings: Any) -> None:
        """Start the agent without waiting; ``settings`` are configuration keys, added to those of the lab."""
        configuration = {
            "node": {"name": self.name, **settings.pop("node", {})},
            "state": str(self.state),
            **self._store,
            "api": {"socket": str(self.socket)},
            **settings,
            "processes": {"cgroup": self.cgroup, "socket": str(self.run_socket), **settings.pop("processes", {})},
        }
        self._configuration.write_text(yaml.safe_dump(configuration))
        program = [self.python, "-P", "-m", "nfq_enforcer.cli", "agent", "--config", str(self._configuration)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NFQ_ENFORCER_")}
        self._agent.start([*_WITH_CGROUPS, *program, *options], environment)

    def wait_until_ready(self) -> None:
        """Wait until the agent enforces policy on every packet of the node; raise NfqError with the log if it ends."""
        self._agent.wait_until(lambda: b"\nready\n" in b"\n" + self.log.read_bytes())

    def start_anew(self) -> None:
        """Have the agent start anew without a pause, and wait until its successor enforces policy."""
        before = self._times_ready()
        os.kill(self.pid, signal.SIGUSR2)
        self._agent.wait_until(lambda: self._times_ready() > before)

    def _times_ready(self) -> int:
        return self.log.read_bytes().splitlines().count(b"ready")

    def status(self) -> dict[str, Any]:
        """Return the agent's status."""
        status: dict[str, Any] = client.call(self.socket, "status")
        return status

    def observe(self, *, ends: bool = False, **params: Any) -> list[dict[str, Any]]:
        """Return the flow events in the agent's log, without those that only tell the end of a flow unless asked for.

        ``params`` are those of the agent's method ``observe``.
        """
        flows = client.stream(self.socket, "observe", 10.0, **params)
        return [flow for flow in flows if ends or "flow_end" not in flow]

    @property
    def pid(self) -> int:
        """Return the agent's process id."""
        return self._agent.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Stop the agent, if it runs, and wait for its end; return its exit status if this object started it."""
        return self._agent.stop(number)
