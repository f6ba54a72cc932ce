"""Where the demo can play: nodes with agents, and hosts on them that make traffic."""

from abc import ABC, abstractmethod
from typing import Any

from nfq_enforcer.lab.capture import Capture, Captures
from nfq_enforcer.lab.executor import Executor
from nfq_enforcer.lab.topology import Address
from nfq_enforcer.lab.traffic_host import TrafficHost
from nfq_enforcer.policy.loader import parse


class LabBase(ABC):
    """Three nodes with their endpoints, a router and the world: those of a lab, or real ones."""

    def __init__(self, machines: Executor) -> None:
        """Take the machines; nothing is asked of them yet."""
        self._machines = machines
        self._hosts: dict[str, TrafficHost] = {}

    def host(self, name: str) -> TrafficHost:
        """Return the host of this name, always the same."""
        if name not in self._hosts:
            self._hosts[name] = TrafficHost(self._machines, name)
        return self._hosts[name]

    def address(self, name: str, family: int = 4) -> Address:
        """Return a host's own address of IP version 4 or 6."""
        return self._machines.address(name, family)

    async def leave(self) -> None:
        """End the hosts' traffic, but leave the machines as they are."""
        for host in self._hosts.values():
            await host.stop()
        self._hosts.clear()

    @abstractmethod
    async def apply(self, name: str, text: str) -> None:
        """Put a text of policies in force on all nodes, in place of the one of this name; raise NfqError if refused."""

    @abstractmethod
    async def withdraw(self, name: str) -> None:
        """Take a text of policies away and return when all nodes enforce what is left."""

    @abstractmethod
    async def refused(self, node: str) -> list[dict[str, Any]]:
        """Return the packets that a node has dropped, as its log has them, the latest last."""

    @abstractmethod
    def capture(self) -> Capture | Captures:
        """Return a capture that sees every packet between nodes exactly once."""

    @abstractmethod
    def masquerade(self, on: bool) -> None:
        """Let the router hide the source of what endpoints send through it, or no longer; new connections only."""


def policies(text: str) -> set[tuple[str, str]]:
    """Return namespace and name of each document in a text."""
    return {one.document.key[1:] for one in parse(text, "")} if text else set()
