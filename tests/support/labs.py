"""Labs for tests: policies, attempts with their expected outcomes, flows in the log, stamps on the wire.

An attempt with the expected outcome "dropped" has a short timeout, one with the expected outcome "ok" a long one. So
a busy machine makes tests slower, but does not make them fail.
"""

import asyncio
import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from nfq_enforcer.agent import client
from nfq_enforcer.captures.scapy_layer import stamps
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.capture import Capture
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.topology import UPLINK, IPAddress
from nfq_enforcer.lab.traffic_host import AttemptResult, TrafficHost

HTTP, HTTPS, OTHER_TCP, DNS, CLOSED = 80, 443, 8080, 53, 81
FAMILIES = (4, 6)
DRIVERS = ("netlink", "netfilterqueue")
PER_PACKET, PER_FLOW = MODES = "per-packet", "per-flow"


class DatapathSettings(NamedTuple):
    """Datapath settings: the agents' configuration of driver, queues and mode."""

    driver: str
    queues: int | str = 1
    mode: str = PER_PACKET

    @property
    def settings(self) -> dict[str, Any]:
        return {"driver": self.driver, "queues": self.queues, "datapath": self.mode}

    def __str__(self) -> str:
        return f"{self.driver}-{self.queues}-{self.mode}"


# Each driver in each mode, with one queue and with two. A driver does not know the number of queues, and the rules that
# choose a queue do not know the driver: one queue with netlink adds nothing to what packets meet.
DATAPATHS = tuple(
    DatapathSettings(driver, queues, mode)
    for mode in MODES
    for driver, queues in (("netlink", 2), ("netfilterqueue", 1))
)
SINGLE_QUEUE = (DatapathSettings("netlink"), *(one for one in DATAPATHS if one.queues == 1))
_FLOOD = """
import socket, sys

family, address, number = sys.argv[1:]
with socket.socket(int(family), socket.SOCK_DGRAM) as sender:
    for _ in range(int(number)):
        sender.sendto(b"no question", (address, 53))
"""
_HEADERS = 256  # bytes of a packet that contain all of its IP headers
PATIENT = 10.0  # s, timeout for packets that should be accepted
BRIEF = 0.4  # s, timeout for packets that should be dropped
FRONTENDS, BACKENDS = ("front1", "front2", "front3"), ("back1", "back2")
ENDPOINTS = (*FRONTENDS, *BACKENDS, "db3", "n3")


def policy(name: str, role: str, **sections: list[dict[str, Any]]) -> str:
    """Return a CiliumNetworkPolicy for the endpoints of this role, with ``ingress`` and ``egress``."""
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": {"matchLabels": {"role": role}}, **sections},
    }
    return yaml.safe_dump(document, sort_keys=False, explicit_start=True)


def of_nodes(name: str, selector: dict[str, Any] | None = None, **sections: list[dict[str, Any]]) -> str:
    """Return a CiliumClusterwideNetworkPolicy for the nodes that a selector selects; None: all."""
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"nodeSelector": selector or {}, **sections},
    }
    return yaml.safe_dump(document, explicit_start=True)


def from_role(role: str, *ports: tuple[int, str]) -> dict[str, Any]:
    """Return an entry of ``ingress``: from this role to these ports, without ports to all."""
    return {"fromEndpoints": [{"matchLabels": {"role": role}}]} | _to_ports(ports)


def to_role(role: str, *ports: tuple[int, str]) -> dict[str, Any]:
    """Return an entry of ``egress``: to this role on these ports, without ports on all."""
    return {"toEndpoints": [{"matchLabels": {"role": role}}]} | _to_ports(ports)


def _to_ports(ports: Iterable[tuple[int, str]]) -> dict[str, Any]:
    written = [{"port": str(port), "protocol": protocol} for port, protocol in ports]
    return {"toPorts": [{"ports": written}]} if written else {}


FRONT_TO_BACK = policy("front-to-back", "backend", ingress=[from_role("frontend")])


class Attempt(NamedTuple):
    """Attempt of a host to reach another."""

    source: str
    target: str
    way: str  # one of WAYS
    family: int


_Way = Callable[[TrafficHost, IPAddress, float], Awaitable[AttemptResult]]


def _connect(port: int) -> _Way:
    return lambda host, address, timeout: host.connect(address, port, timeout)


def _datagram(port: int) -> _Way:
    return lambda host, address, timeout: host.send_udp(address, port, timeout)


WAYS: Mapping[str, _Way] = {
    **{f"{port}/TCP": _connect(port) for port in (HTTP, HTTPS, OTHER_TCP)},
    **{f"{port}/UDP": _datagram(port) for port in (DNS, CLOSED)},
    "ping": lambda host, address, timeout: host.ping(address, timeout),
}
USUAL = ("80/TCP", "53/UDP", "ping")
Expected = Mapping[Attempt, str]  # the status of the outcome


def expect(
    status: str, sources: Iterable[str], targets: Iterable[str], ways: Iterable[str] = USUAL
) -> dict[Attempt, str]:
    """Expect this status for attempts from each source to each other target, in each way and family."""
    return {
        Attempt(source, target, way, family): status
        for source in sources
        for target in targets
        if source != target
        for way in ways
        for family in FAMILIES
    }


def passes(sources: Iterable[str], targets: Iterable[str], ways: Iterable[str] = USUAL) -> dict[Attempt, str]:
    """Expect attempts to succeed."""
    return expect("ok", sources, targets, ways)


def dropped(sources: Iterable[str], targets: Iterable[str], ways: Iterable[str] = USUAL) -> dict[Attempt, str]:
    """Expect attempts to get no reply."""
    return expect("timeout", sources, targets, ways)


async def outcomes(lab: Lab, expected: Expected) -> Expected:
    """Make all attempts at once and return the status of each."""

    async def make(attempt: Attempt) -> str:
        address = lab.address(attempt.target, attempt.family)
        timeout = BRIEF if expected[attempt] == "timeout" else PATIENT
        return (await WAYS[attempt.way](lab.host(attempt.source), address, timeout)).status

    return dict(zip(expected, await asyncio.gather(*map(make, expected)), strict=True))


async def serve(lab: Lab) -> None:
    """Start servers on the ports of every host."""
    hosts = [lab.host(name) for name in lab.topology.hosts]
    tcp = (host.serve("TCP", HTTP, HTTPS, OTHER_TCP) for host in hosts)
    await asyncio.gather(*tcp, *(host.serve("UDP", DNS) for host in hosts))


def start(lab: Lab, name: str, *options: str, documents: str = "", **settings: Any) -> LabNode:
    """Start the agent of a single node, for traffic among its endpoints and with the world."""
    (node,) = start_nodes(lab, [name], *options, documents=documents, **settings)
    return node


def start_nodes(
    lab: Lab, names: Iterable[str], *options: str, documents: str = "", **settings: Any
) -> tuple[LabNode, ...]:
    """Start the agents of the nodes that a test needs: a start costs about 2 s of a processor."""
    lab.documents.mkdir(exist_ok=True)
    (lab.documents / "endpoints.yaml").write_text(lab.topology.endpoint_documents())
    (lab.documents / "policies.yaml").write_text(documents)
    nodes = tuple(lab.nodes[name] for name in names)
    for node in nodes:
        node.start(*options, **settings)
    for node in nodes:
        node.wait_until_ready()
    return nodes


def start_all(lab: Lab, documents: str = "", **settings: Any) -> None:
    """Start the agents of all nodes."""
    lab.documents.mkdir(exist_ok=True)
    (lab.documents / "policies.yaml").write_text(documents)
    lab.start_agents(**settings)


def stop_agents(lab: Lab) -> None:
    """Stop all agents; fail if one of them had an unexpected error."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(LabNode.stop, lab.nodes.values()))
    check_logs(lab)


def save(file: Path, text: str) -> None:
    """Write a file as a whole, so that the agent reads it once."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(file)


def check_logs(lab: Lab) -> None:
    """Fail if the log of an agent or of its workers contains a traceback."""
    for node in lab.nodes.values():
        if node.log.exists():
            assert "Traceback" not in (log := node.log.read_text()), f"{node.name}: {log}"


def kill(pid: int) -> None:
    """Kill a process and return when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        gone = select.poll()
        gone.register(descriptor, select.POLLIN)
        gone.poll(PATIENT * 1000)
        os.close(descriptor)


async def until(condition: Any, timeout: float = PATIENT, interval: float = 0.01) -> None:
    """Return when the condition holds. It is polled half of the time at most: a status costs a node 30 ms."""
    async with asyncio.timeout(timeout):
        while True:
            begun = time.monotonic()
            if condition():
                return
            await asyncio.sleep(max(interval, time.monotonic() - begun))


class Policies:
    """Policies of one test, withdrawn at its end."""

    def __init__(self, lab: Lab) -> None:
        """Start without policies."""
        self._lab = lab
        self._applied: set[str] = set()

    async def apply(self, name: str, *documents: str) -> None:
        """Apply these documents as one file on all nodes, in place of an earlier file of this name."""
        self._applied.add(name)
        await self._lab.apply(name, "".join(documents))

    async def withdraw(self, name: str) -> None:
        """Withdraw a file on all nodes."""
        self._applied.discard(name)
        await self._lab.withdraw(name)

    async def withdraw_all(self) -> None:
        """Withdraw all files that are still applied."""
        for name in tuple(self._applied):
            await self.withdraw(name)


def enforces_all(node: LabNode) -> bool:
    """Return whether the node enforces everything that its lists show."""
    return not node.status()["working"]


def identities(lab: Lab) -> dict[str, int]:
    """Return the identity of every endpoint by name."""
    node = next(iter(lab.nodes.values()))
    return {endpoint["name"]: endpoint["identity"] for endpoint in client.call(node.socket, "endpoints")}


def endpoint_document(lab: Lab, name: str, role: str) -> str:
    """Return the document of a workload that was attached to n1."""
    return (
        "apiVersion: nfq-enforcer.io/v1\nkind: Endpoint\n"
        f"metadata: {{name: {name}, labels: {{role: {role}}}}}\n"
        f"spec: {{node: n1, interface: veth-{name}, ips: [{lab.address(name, 4)}, '{lab.address(name, 6)}']}}\n"
    )


def relabelled(lab: Lab, name: str) -> str:
    """Return the documents of all endpoints, with another role for one of them."""
    return "\n---\n".join(
        re.sub(r"role: \w+", "role: other", document) if _is_of(document, name) else document
        for document in lab.topology.endpoint_documents().split("\n---\n")
    )


def without(lab: Lab, name: str) -> str:
    """Return the documents of all endpoints except one."""
    documents = lab.topology.endpoint_documents().split("\n---\n")
    return "\n---\n".join(document for document in documents if not _is_of(document, name))


def _is_of(document: str, name: str) -> bool:
    return f"name: {name}\n" in document


def await_flow(node: LabNode, since: float, **wanted: object) -> dict[str, Any]:
    """Return the node's first flow since this Unix time with these properties; see ``properties``."""
    seen = []
    with (
        contextlib.closing(client.stream(node.socket, "observe", PATIENT, follow=True)) as flows,
        contextlib.suppress(NfqError),
    ):
        for flow in flows:
            if datetime.fromisoformat(flow["time"]).timestamp() < since:
                continue
            seen.append(properties(flow))
            if wanted.items() <= seen[-1].items():
                return dict(flow)
    raise AssertionError(f"{node.name} has seen no flow {wanted}, but {seen}")


def flows_since(node: LabNode, since: float) -> list[dict[str, Any]]:
    """Return the properties of the node's flows since this Unix time."""
    flows = node.observe()
    return [properties(flow) for flow in flows if datetime.fromisoformat(flow["time"]).timestamp() >= since]


def properties(flow: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of a flow that tests compare, flat."""
    ends = flow.get("IP", {})
    return {
        "verdict": flow["verdict"],
        "reason": flow.get("drop_reason_desc"),
        "direction": flow["traffic_direction"],
        "source": ends.get("source"),
        "destination": ends.get("destination"),
        "identity": flow["source"]["identity"],
        "source_port": _port(flow, "source_port"),
        "port": _port(flow, "destination_port"),
    }


def _port(flow: Mapping[str, Any], name: str) -> int | None:
    protocols = flow.get("l4", {}).values()  # of a protocol without ports: its number
    return next((l4[name] for l4 in protocols if isinstance(l4, dict) and name in l4), None)


def now() -> float:
    """Return the Unix time, as the start of a search for flows."""
    return time.time() - 0.001  # timestamps of the log are rounded to microseconds and converted from another clock


def arrivals(lab: Lab, host: str) -> Capture:
    """Return a capture of all packets on a host's interface, including those that its kernel discards."""
    return Capture(lab.network, host, UPLINK)


async def flood(lab: Lab, source: str, target: str, family: int, datagrams: int) -> None:
    """Send datagrams without an answer to a machine's DNS port; return when its server has read those that arrived.

    A full receive buffer would discard the next question, whatever a node decides.
    """
    address = str(lab.address(target, family))
    domain = int(socket.AF_INET if family == 4 else socket.AF_INET6)
    run_in(lab, source, sys.executable, "-c", _FLOOD, str(domain), address, str(datagrams))
    await until(lambda: not unread(lab, target))


def unread(lab: Lab, machine: str) -> int:
    """Return the bytes that wait in the receive buffers of a machine's UDP sockets (udp4_seq_show, net/ipv4/udp.c)."""
    lines = [
        line.split()
        for name in ("udp", "udp6")
        for line in run_in(lab, machine, "cat", f"/proc/net/{name}").splitlines()[1:]
    ]
    return sum(int(columns[4].partition(":")[2], 16) for columns in lines)


def run_in(lab: Lab, machine: str, *command: str, text: str = "") -> str:
    """Run a command in a machine's namespace; return its output."""
    argv = lab.network.command(machine, command)
    return subprocess.run(argv, input=text, stdout=subprocess.PIPE, text=True, check=True, timeout=3 * PATIENT).stdout


def counters(lab: Lab, machine: str) -> dict[str, int]:
    """Return the SNMP counters of a machine's kernel; IPv4 and IPv6 are added up under one name."""
    found: dict[str, int] = {}
    lines = run_in(lab, machine, "cat", "/proc/net/snmp").splitlines()
    for names, numbers in zip(lines[::2], lines[1::2], strict=True):
        (group, *keys), (_, *values) = names.split(), numbers.split()
        found |= {group.rstrip(":") + key: int(value) for key, value in zip(keys, values, strict=True)}
    for line in run_in(lab, machine, "cat", "/proc/net/snmp6").splitlines():
        name, value = line.split()
        name = name.replace("6", "", 1)
        found[name] = found.get(name, 0) + int(value)
    return found


class ErrorCounters:
    """Error counters of the kernels on a path, since the object was created."""

    NAMES = ("IpFragFails", "IpReasmFails", "TcpInErrs", "TcpInCsumErrors", "UdpInErrors", "UdpInCsumErrors")

    def __init__(self, lab: Lab, *machines: str) -> None:
        self._lab = lab
        self._before = {machine: counters(lab, machine) for machine in machines}

    def since(self) -> dict[tuple[str, str], int]:
        """Return the increases, by machine and counter."""
        now = {machine: counters(self._lab, machine) for machine in self._before}
        return {
            (machine, name): now[machine][name] - before[name]
            for machine, before in self._before.items()
            for name in self.NAMES
            if now[machine][name] != before[name]
        }

    def retransmitted(self, machine: str) -> tuple[int, int]:
        """Return the numbers of retransmitted and of sent TCP segments."""
        now, before = counters(self._lab, machine), self._before[machine]
        again, sent = (now[name] - before[name] for name in ("TcpRetransSegs", "TcpOutSegs"))
        return again, sent


PROGRAM = (sys.executable, "-P", "-m", "nfq_enforcer.cli")


def ends(packet: bytes) -> tuple[IPAddress, IPAddress]:
    """Return source and destination of an IP packet."""
    start, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    return ip_address(packet[start : start + size]), ip_address(packet[start + size : start + 2 * size])


def length(packet: bytes) -> int:
    """Return the length of a packet by its header; a capture may have truncated the packet."""
    start, rest = (2, 0) if packet[0] >> 4 == 4 else (4, 40)
    return int.from_bytes(packet[start : start + 2], "big") + rest


def between(capture: Capture, one: Iterable[IPAddress], other: Iterable[IPAddress]) -> list[bytes]:
    """Return the captured packets between addresses of ``one`` and of ``other``, in both directions."""
    pairs = {(a, b) for a in one for b in other} | {(b, a) for a in one for b in other}
    return [packet.data for packet in capture.packets() if ends(packet.data) in pairs]


def stamps_on(packet: bytes) -> list[int]:
    """Return the identities of all stamps on a captured IP packet or fragment.

    The parser is that of the layer for scapy, deliberately not the engine's own.
    """
    headers = packet[:_HEADERS]
    found = list(stamps(IP(headers) if packet[0] >> 4 == 4 else IPv6(headers)))
    for stamp in found:
        assert (stamp.version, stamp.flags, stamp.tag) == (1, 0, b""), packet.hex()
    return [stamp.identity for stamp in found]
