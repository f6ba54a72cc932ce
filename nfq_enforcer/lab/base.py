"""Base class of the labs that the demo runs in: nodes with agents, and traffic hosts behind them."""

from abc import ABC, abstractmethod
from typing import Any

from nfq_enforcer.lab.capture import Capture, Captures
from nfq_enforcer.lab.executor import Executor
from nfq_enforcer.lab.topology import IPAddress
from nfq_enforcer.lab.traffic_host import TrafficHost
from nfq_enforcer.policy.loader import parse


class LabBase(ABC):
    """LabBase: three nodes with their endpoints, a router and the world, in namespaces or on real machines."""

    def __init__(self, executor: Executor) -> None:
        """Keep the executor that runs commands on the machines; run none yet."""
        self._executor = executor
        self._hosts: dict[str, TrafficHost] = {}

    def host(self, name: str) -> TrafficHost:
        """Return the traffic host of this name, the same object on every call."""
        if name not in self._hosts:
            self._hosts[name] = TrafficHost(self._executor, name)
        return self._hosts[name]

    def address(self, name: str, family: int = 4) -> IPAddress:
        """Return a host's own address of IP version 4 or 6."""
        return self._executor.address(name, family)

    async def leave(self) -> None:
        """Stop the hosts' traffic; leave the machines as they are."""
        for host in self._hosts.values():
            await host.stop()
        self._hosts.clear()

    @abstractmethod
    async def apply(self, name: str, text: str) -> None:
        """Enforce the policy documents of a text on all nodes, in place of the text of this name.

        Raises NfqError if a document is refused.
        """

    @abstractmethod
    async def withdraw(self, name: str) -> None:
        """Delete the policy documents of a text; return when all nodes enforce the remaining documents."""

    @abstractmethod
    async def refused(self, node: str) -> list[dict[str, Any]]:
        """Return the flow events of the packets that a node has dropped, oldest first."""

    @abstractmethod
    def capture(self) -> Capture | Captures:
        """Return a capture that records every packet between nodes exactly once."""

    @abstractmethod
    def masquerade(self, on: bool) -> None:
        """Switch the router's masquerading of the source addresses of endpoints; it affects new connections only."""


def policies(text: str) -> set[tuple[str, str]]:
    """Return namespace and name of each document in a text."""
    return {located.document.key[1:] for located in parse(text, "")} if text else set()
