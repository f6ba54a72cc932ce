"""Migration of back2, an endpoint of n2, to n1 and back, as of a virtual machine: its sockets and addresses stay.

Its cable and its routes change. No node forwards to it between its end on the old node and its begin on the new one.
"""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.support.labs import until

Json = dict[str, Any]
NAME, HOME = "back2", "n2"
_PORT = f"veth-{NAME}"
_LOOK = 0.1  # s between two looks at the nodes' endpoints, which cost processor time


async def migrate(lab: Lab, old: str, new: str, declare: Callable[[Json], Awaitable[None]]) -> None:
    """Move the endpoint from one node to another; ``declare`` applies its document, which names the new node."""
    await asyncio.to_thread(_disconnect, lab, old)
    document = next(one for one in lab.topology.endpoints if one.name == NAME).document()
    document["spec"]["node"] = new
    await declare(document)
    await until(lambda: _is_known(lab, new), interval=_LOOK)
    await asyncio.to_thread(_connect, lab, new)


def _is_known(lab: Lab, node: str) -> bool:
    """Return whether every node has the endpoint on this node."""
    listed = (client.call(one.socket, "endpoints") for one in lab.nodes.values())
    return all((NAME, node) in {(one["name"], one["node"]) for one in some} for some in listed)


def _disconnect(lab: Lab, node: str) -> None:
    """Remove the cable to a node."""
    _ip(lab.topology.namespace(node), f"link del {_PORT}")


def _connect(lab: Lab, new: str) -> None:
    """Connect the endpoint to another node, with the same addresses, and route them there."""
    topology = lab.topology
    name = topology.namespace
    machine = topology.machine(NAME)
    addresses = machine.interfaces[0].addresses
    _ip(name(NAME), f"link add {UPLINK} type veth peer name {_PORT} netns {name(new)}")
    gateways = [interface for interface in topology.machine(HOME).interfaces if interface.name == _PORT]
    _ip(name(new), *(f"address add {one} dev {_PORT}{_nodad(one.version)}" for one in gateways[0].addresses))
    _ip(name(new), f"link set {_PORT} up")
    _ip(name(NAME), *(f"address add {one} dev {UPLINK}{_nodad(one.version)}" for one in addresses))
    _ip(name(NAME), f"link set {UPLINK} up")
    for route in machine.routes:
        via = f" via {route.via}" if route.via else ""
        _ip(name(NAME), f"route replace {route.to}{via} dev {UPLINK} mtu {route.mtu}")
    for one in addresses:
        family = one.version
        _ip(name(new), f"route replace {one.ip} dev {_PORT}")
        for other in ("n1", "n2", "rtr", "world"):
            if other != new:
                _ip(name(other), f"route replace {one.ip} via {lab.address(new, family)}")


def _nodad(version: int) -> str:
    return " nodad" if version == 6 else ""


def _ip(namespace: str, *lines: str) -> None:
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
