"""Floods in the lab: packets of an attacker at full rate, and meanwhile the traffic of others, counted.

A program in C sends the flood (``flood.c``), from the attacker's interface to its gateway. The others are an open UDP
flow with an echo a hundred times a second, and TCP connections that are opened one after the other.

A flood inside an open flow costs the flows that share its queue: those between the same addresses, and the few whose
addresses have the same hash. The hash is another one after each start of the machine. So the others are chosen among
several pairs of machines by the queues that their packets reach.
"""

import json
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from struct import pack

from nfq_enforcer.core.wire.packet import TCP, UDP, parse
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.support.flow_places import exchange, place_of, place_of_connections, place_of_datagrams
from tests.support.labs import run_in
from tests.support.namespaces import echoed, socket_in
from tests.support.packets import ACK, SYN, datagram, error, rst, stamped, syn_ack, tcp, with_options

ECHO_PORT, SERVER_PORT = 5353, 80
_FLOW_PORT = 6000
_FLOODED_PORT = 5454  # both ports of the open flow that a flood is inside of
_INTERVAL = 0.01  # s between two echoes
_PAUSE = 0.2  # s between two connections
PROMISE = 3.0  # s, for each new connection
_SETTLE = 0.3  # s for the last echoes to arrive
_SOURCE = Path(__file__).parent / "flood.c"
_CHECKSUMS = {TCP: 16, UDP: 6}
_PORTS = 200  # of one attacker's packets

Make = Callable[[str, str, int], bytes]  # source, target and a number to a packet
Pair = tuple[str, str]  # machines: client and server
_ECHOES: tuple[Pair, ...] = (("front2", "back1"), ("front2", "back2"), ("front1", "front2"))


@dataclass(frozen=True)
class Flood:
    """Flood: packets of one kind, from one attacker to the endpoint back2 (or its neighbour)."""

    name: str
    attacker: str
    packet: Make
    source: str | None = None  # machine whose address the packets have; None: the attacker's own
    random_bits: int = 0  # of the source address, in each packet
    family: int = 4
    target: str = "back2"
    via: str = "n2"  # the node that an attacker on the segment sends to
    inside: bool = False  # an open flow of these addresses

    def packets(self, lab: Lab) -> list[bytes]:
        """Return the packets, before any source address is made random."""
        source = str(lab.address(self.source or self.attacker, self.family))
        target = str(lab.address(self.target, self.family))
        return [self.packet(source, target, number) for number in range(_PORTS)]


def _syn(src: str, dst: str, number: int) -> bytes:
    return tcp(src, dst, 1024 + number, SERVER_PORT, SYN)


def _ack(src: str, dst: str, number: int) -> bytes:
    return tcp(src, dst, 1024 + number, SERVER_PORT, ACK, b"data")


def _udp(src: str, dst: str, number: int) -> bytes:
    return datagram(src, dst, 1024 + number, ECHO_PORT)


def _icmp_error(src: str, dst: str, number: int) -> bytes:
    return error(src, dst, datagram(dst, src, ECHO_PORT, 1024 + number))


def _with_route_record(src: str, dst: str, number: int) -> bytes:
    return with_options(_syn(src, dst, number), bytes((7, 7, 4, 0, 0, 0, 0, 0)))


def floods(frontend: int) -> list[Flood]:
    """Return all kinds of floods; ``frontend`` is the identity of the endpoints that policy allows."""

    def forged(src: str, dst: str, number: int) -> bytes:
        return stamped(_udp(src, dst, number), frontend)

    def in_open_flow(src: str, dst: str, number: int) -> bytes:
        return datagram(src, dst, _FLOODED_PORT, _FLOODED_PORT)

    return [
        Flood("SYNs of an endpoint, refused", "back1", _syn),
        Flood("SYNs of a neighbour endpoint, refused", "back2", _syn, target="front2"),
        Flood("SYNs of the world, refused", "world", _syn),
        Flood("SYNs of the world, random sources", "world", _syn, random_bits=32),
        Flood("UDP of the world, random sources, forged stamp (allowed)", "world", forged, random_bits=24),
        Flood("SYNs of an endpoint, random sources", "back1", _syn, random_bits=24),
        Flood("ACKs without a connection, random sources", "world", _ack, random_bits=24),
        Flood("SYN-ACKs, random sources", "world", lambda s, d, n: syn_ack(s, d, 1024 + n), random_bits=24),
        Flood("RSTs, random sources", "world", lambda s, d, n: rst(s, d, 1024 + n), random_bits=24),
        Flood("ICMP errors, random sources", "world", _icmp_error, random_bits=24),
        Flood("SYNs with IP options, random sources", "world", _with_route_record, random_bits=24),
        Flood("UDP in another's open flow, forged source", "world", in_open_flow, source="front1", inside=True),
        Flood("UDP of an allowed peer in its own open flow", "front1", in_open_flow, inside=True),
        Flood("IPv6 SYNs of the world, random sources", "world", _syn, random_bits=32, family=6),
    ]


@dataclass
class Outcome:
    """Outcome: the traffic of others during a flood."""

    flood: str
    packets: int = 0  # of the flood
    seconds: float = 0.0
    sent: int = 0  # echoes of the open flow
    kept: int = 0
    opened: list[float] = field(default_factory=list)  # s, of each new connection
    failed: int = 0  # new connections
    memory: tuple[int, int] = (0, 0)  # KiB of the agent and its workers at the node, before and after
    log_lines: int = 0  # of the node's agent, during the flood

    @property
    def share_kept(self) -> float:
        """Return the share of echoes that arrived."""
        return self.kept / self.sent if self.sent else 0.0


@cache
def compiled() -> str:
    """Return the path of the compiled program, which is removed at the end of this process."""
    folder = _folder().name
    subprocess.run(["gcc", "-O2", "-Wall", "-o", f"{folder}/flood", str(_SOURCE)], check=True)
    return f"{folder}/flood"


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="nfqe-flood-")


def measure(
    lab: Lab, flood: Flood, seconds: float, rate: int = 100_000, clients: Sequence[str] = ("front1", "front2")
) -> Outcome:
    """Flood for so many seconds, and count the traffic of others; the world and frontends are allowed to back2."""
    outcome = Outcome(flood.name, seconds=seconds)
    log = lab.nodes["n2"].log
    with ExitStack() as stack:
        client, target = "front1", "back2"
        if flood.inside:
            place = stack.enter_context(_open_flow(lab, flood))
            (client, target), clients = _apart(lab, flood.via, place, clients)
        server = stack.enter_context(echoed(lab, target, ECHO_PORT, b"echo"))
        echo = stack.enter_context(socket_in(lab, client, _FLOW_PORT))
        assert _first_echo(echo, server)
        lines, before = log.read_bytes().count(b"\n"), _memory(lab, "n2")
        attack = start(lab, flood, seconds, rate)
        end = time.monotonic() + seconds
        connecting = threading.Thread(target=_connect_again, args=(lab, clients, end, outcome))
        connecting.start()
        _echo_until(echo, server, end, outcome)
        connecting.join()
        output, _ = attack.communicate()
        outcome.packets = int(output)
        outcome.memory = before, _memory(lab, "n2")
        outcome.log_lines = log.read_bytes().count(b"\n") - lines
    return outcome


@contextmanager
def _open_flow(lab: Lab, flood: Flood) -> Iterator[int | None]:
    """Open the flow that the flood is inside of; yield its place among the queues of known flows, if it has one."""
    client = socket_in(lab, flood.source or flood.attacker, _FLOODED_PORT)
    with client, socket_in(lab, flood.target, _FLOODED_PORT) as server:
        yield place_of(lab, flood.via, lambda: exchange(client, server))


def _apart(lab: Lab, node: str, place: int | None, clients: Sequence[str]) -> tuple[Pair, list[str]]:
    """Return two machines with flows at another place than this one, and the clients with such connections to back2."""

    def shared(other: int | None) -> bool:
        return place is not None and other == place

    echo = next(pair for pair in _ECHOES if not shared(place_of_datagrams(lab, node, *pair)))
    return echo, [one for one in clients if not shared(place_of_connections(lab, node, one, "back2", SERVER_PORT))]


def start(lab: Lab, flood: Flood, seconds: float, rate: int) -> "subprocess.Popen[bytes]":
    """Start a flood; the process prints the number of its packets at its end."""
    attacker = flood.attacker
    node = next((e.node for e in lab.topology.endpoints if e.name == attacker), None)
    gateway = _mac(lab, node, f"veth-{attacker}") if node else _mac(lab, flood.via, UPLINK)
    argv = [compiled(), UPLINK, gateway, str(seconds), str(rate), str(flood.random_bits)]
    process = subprocess.Popen(lab.network.command(attacker, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"".join(map(_framed, flood.packets(lab))))
    process.stdin.close()
    process.stdin = None
    return process


def _framed(packet: bytes) -> bytes:
    parsed = parse(packet)
    at = _CHECKSUMS.get(parsed.proto, 0 if parsed.version == 4 else 2)
    return pack("!HH", len(packet), parsed.l4_offset + at if at else 0) + packet


def _mac(lab: Lab, machine: str, interface: str) -> str:
    (link,) = json.loads(run_in(lab, machine, "ip", "-j", "link", "show", interface))
    return str(link["address"])


def _first_echo(echo: socket.socket, server: tuple[str, int]) -> bool:
    for _ in range(50):
        echo.sendto(b"echo", server)
        if select.select([echo], [], [], 0.1)[0]:
            echo.recv(100)
            return True
    return False


def _echo_until(echo: socket.socket, server: tuple[str, int], end: float, outcome: Outcome) -> None:
    echo.setblocking(False)
    while (now := time.monotonic()) < end:
        echo.sendto(b"echo %d" % outcome.sent, server)
        outcome.sent += 1
        while (left := now + _INTERVAL - time.monotonic()) > 0:
            if select.select([echo], [], [], left)[0]:
                outcome.kept += _drain(echo)
    time.sleep(_SETTLE)  # the echoes that are still on their way
    outcome.kept += _drain(echo)


def _drain(echo: socket.socket) -> int:
    count = 0
    while select.select([echo], [], [], 0)[0]:
        count += echo.recv(100) != b"echo"  # not a late answer to the first probes
    return count


def _connect_again(lab: Lab, clients: Sequence[str], end: float, outcome: Outcome) -> None:
    address, number = str(lab.address("back2")), 0
    while time.monotonic() + _PAUSE < end:
        client = clients[number % len(clients)]
        number += 1
        with socket_in(lab, client, kind=socket.SOCK_STREAM) as connection:
            connection.settimeout(PROMISE)
            begun = time.monotonic()
            try:
                connection.connect((address, SERVER_PORT))
                outcome.opened.append(time.monotonic() - begun)
            except OSError:
                outcome.failed += 1
        time.sleep(_PAUSE)


def _memory(lab: Lab, node: str) -> int:
    agent = lab.nodes[node].pid
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return sum(map(resident, (agent, *map(int, children))))


def resident(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
