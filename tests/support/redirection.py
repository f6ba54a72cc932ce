"""A node that redirects connections: our rules, queues with a verdict function of the test, and a proxy.

The node has no agent: the verdict function stands for the enforcer, a process of this repository for Envoy
(``transparent_proxy``). The rules, queues, drivers and sockets are real.
"""

import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction, Verdict
from nfq_enforcer.core.wire.packet import TCP, Packet, parse
from nfq_enforcer.core.wire.skb import ASKS_SLOT, PROXIED, PROXY_LEG, SLOT_SHIFT
from nfq_enforcer.dataplane.queue import drivers
from nfq_enforcer.dataplane.queue.protocol import HeldPacket, Redirect, Result, allocate_queues
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.rules.redirect_rules import ProxyRules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6
from nfq_enforcer.lab.lab import Lab
from tests.support.apart import call_in
from tests.support.labs import PATIENT
from tests.support.namespaces import within

UID = 28262  # of the proxy
FIRST_PORT = 15000
PORT = 80  # of servers with HTTP rules
SLOT = 7
_PROXY = Path(__file__).parent / "transparent_proxy.py"
T = TypeVar("T")
_WAYS = {ASKS_SLOT: "asks", PROXIED: "to proxy", PROXY_LEG: "from proxy"}


class Seen(NamedTuple):
    """Seen: a packet as a queue delivered it."""

    way: str  # empty: neither to the proxy nor from it
    slot: int
    packet: Packet
    indev: int

    @property
    def port(self) -> int:
        """Return the port of the client, or of the proxy toward the server."""
        return self.packet.sport if self.packet.dport == PORT else self.packet.dport


def http(*ports: int, direction: Direction = Direction.INGRESS) -> PolicyMap:
    """Return a policy map with HTTP rules for these ports."""
    rule = L7Rule(RuleRef("CiliumNetworkPolicy", "default", "http", direction, 0), HttpMatch("GET"))
    keys = {PolicyKey(Identity(0), TCP, port, 16): PolicyEntry(l7=(rule,)) for port in ports}
    return PolicyMap(keys, enforced=True)


NONE = PolicyMap({}, enforced=False)


def snapshot(
    lab: Lab, node: str, *servers: str, clients: Sequence[str] = (), epoch: int | None = None, revision: int = 1
) -> Snapshot:
    """Return a snapshot of a node's endpoints, and the node itself, with HTTP rules for some of them."""
    endpoints = {}
    names = [one.name for one in lab.topology.endpoints if one.node == node]
    for name in {*names, node}:
        interface = next((one.interface for one in lab.topology.endpoints if one.name == name), None)
        endpoint = LocalEndpoint(
            f"default/{name}",
            Identity(20_000_000),
            interface,
            http(PORT) if name in servers else NONE,
            http(PORT, direction=Direction.EGRESS) if name in clients else NONE,
            is_host=name == node,
        )
        for family in (4, 6):
            endpoints[lab.address(name, family).packed] = endpoint
    return Snapshot(revision, endpoints, Ipcache({}), epoch=epoch)


class Redirection:
    """Redirection: the rules, the queues and the proxy of one node."""

    def __init__(self, lab: Lab, node: str, driver: Driver, *, epoch: int | None = None) -> None:
        self.lab, self.node, self.driver, self.epoch = lab, node, driver, epoch
        self.rules = Rules(
            (IPV4, IPV6), fail_open=False, cluster_mtus={"eth0": 1500}, proxy=ProxyRules(FIRST_PORT, UID)
        )
        self._seen: list[Seen] = []
        self._earlier: set[int] = set()
        self.slot_of: Callable[[Packet], Result | HeldPacket] = lambda packet: Redirect(SLOT)
        self.verdict_on: Callable[[Seen], Result] = lambda seen: Verdict.ACCEPT  # on every other packet
        self.proxy: subprocess.Popen[str] | None = None
        self._stop = threading.Event()
        self._bound = threading.Event()
        (self.numbers,) = allocate_queues(100, 1)
        self._thread = threading.Thread(target=lambda: call_in(lab.topology.namespace(node), self._serve))

    def decide(self, payload: bytes, indev: int, outdev: int, skb: int) -> Result | HeldPacket:
        """Return the verdict of the test."""
        way = "".join(name for flag, name in _WAYS.items() if skb & flag)
        seen = Seen(way, skb >> SLOT_SHIFT, parse(payload, gso=True), indev)
        if seen.packet.opens:
            self._earlier.discard(seen.port)
        self._seen.append(seen)
        return self.slot_of(seen.packet) if skb & ASKS_SLOT else self.verdict_on(seen)

    def _serve(self) -> None:
        queues = drivers.bind(self.driver, self.numbers, self.decide, fail_open=False)
        self.numbers = queues.numbers
        if self.epoch is not None:
            queues.set_epoch(self.epoch)
        with select.epoll() as poll:
            for descriptor in queues.filenos:
                poll.register(descriptor, select.EPOLLIN)
            self._bound.set()
            while not self._stop.is_set():
                queues.process_ready([descriptor for descriptor, _ in poll.poll(0.05)])
        queues.close()

    def start_proxy(self, *slots: int) -> None:
        """Start the proxy, and redirect connections to it."""
        own = ("--reuid", str(UID), "--regid", str(UID), "--clear-groups")
        caps = ("--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw")
        program = [sys.executable, str(_PROXY), str(FIRST_PORT), *map(str, slots or (SLOT,))]
        command = self.lab.network.command(self.node, ["setpriv", *own, *caps, *program])
        self.proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.proxy.stdout is not None
        assert self.proxy.stdout.readline() == "listening\n"

    def kill_proxy(self) -> None:
        """Kill the proxy."""
        if self.proxy is not None:
            self.proxy.kill()
            self.proxy.communicate()
            self.proxy = None

    def call(self, method: Callable[..., T], *arguments: object) -> T:
        """Call a method of the rules on the node."""
        return within(self.lab, self.node, lambda: method(*arguments))

    def forget(self) -> None:
        """Forget all packets, and those that connections of now will still have; a new one may have the port of one."""
        self._earlier.update(one.port for one in self._seen)
        self._seen.clear()

    @property
    def seen(self) -> list[Seen]:
        """Return the packets of connections since ``forget``."""
        return [one for one in self._seen if one.port not in self._earlier]

    def ways(self) -> set[str]:
        """Return the ways of all packets of TCP."""
        return {one.way or "no proxy" for one in self.seen if one.packet.proto == TCP}


@contextmanager
def redirecting(lab: Lab, node: str, state: Snapshot, driver: Driver = Driver.NETLINK) -> Iterator[Redirection]:
    """Yield a node that redirects connections by this snapshot; nothing of it remains."""
    one = Redirection(lab, node, driver, epoch=state.epoch)
    with ExitStack() as stack:
        one._thread.start()
        stack.callback(one._thread.join)
        stack.callback(one._stop.set)
        assert one._bound.wait(PATIENT)
        stack.callback(lambda: one.call(one.rules.remove))
        one.call(one.rules.install, state, [one.numbers])
        stack.callback(one.kill_proxy)
        one.start_proxy()
        one.call(one.rules.set_proxied, True)
        yield one


@contextmanager
def served(lab: Lab, machine: str, port: int = PORT) -> Iterator[None]:
    """Serve a port in both families: a line with the client's address, then an echo."""
    listeners = [within(lab, machine, partial(_listen, family, port)) for family in ("0.0.0.0", "::")]
    for listener in listeners:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    try:
        yield
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(64)
    return listener


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            client, address = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(client, address[0]), daemon=True).start()


def _echo(client: socket.socket, address: str) -> None:
    try:
        with client:
            client.sendall(f"peer {address}\n".encode())
            while data := client.recv(65536):
                client.sendall(data)
    except OSError:
        return


class Connection:
    """Connection of a machine to a server."""

    def __init__(
        self,
        lab: Lab,
        machine: str,
        address: object,
        port: int = PORT,
        *,
        timeout: float = PATIENT,
        mark: int = 0,
        source: tuple[str, int] | None = None,
    ) -> None:
        family = socket.AF_INET6 if ip_address(str(address)).version == 6 else socket.AF_INET

        def connect() -> socket.socket:
            made = socket.socket(family)
            made.settimeout(timeout)
            if mark:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source:
                made.bind(source)
            try:
                made.connect((str(address), port))
            except OSError:
                made.close()
                raise
            return made

        self.socket = within(lab, machine, connect)
        self._received = b""

    def line(self) -> str:
        """Return the next line that arrives; empty at the end."""
        while b"\n" not in self._received:
            data = self.socket.recv(65536)
            if not data:
                return ""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def echo(self, text: str) -> str:
        """Send a line, and return the next one that arrives."""
        self.socket.sendall(f"{text}\n".encode())
        return self.line()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def visit(lab: Lab, machine: str, address: object, port: int = PORT, **options: Any) -> list[str]:
    """Return the lines that a client receives: of the proxy, if it is redirected, and of the server; then its echo."""
    with Connection(lab, machine, address, port, **options) as connection:
        lines = [connection.line()]
        if lines[0].startswith("slot"):
            lines.append(connection.line())
        return [*lines, connection.echo("ping")]
