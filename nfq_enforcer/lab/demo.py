"""The demo: real connections between hosts, what policy says of them, and what became of them.

Every scene changes something, tries real TCP, UDP and ping, and holds what it sees against what must be. What must be
is written here by hand, of roles and ports; nothing of it is asked of the engine.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from importlib.resources import files
from itertools import product
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import UDP, parse
from nfq_enforcer.lab.base import LabBase
from nfq_enforcer.lab.topology import ENDPOINTS, NODES, ROUTER, WORLD
from nfq_enforcer.lab.traffic_host import AttemptResult
from nfq_enforcer.observe.flow import compact

_TCP_PORTS = (80, 443, 8080)
_UDP_PORT = 53
_PATIENCE = 3.0  # seconds for what shall pass
_IMPATIENCE = 0.7  # seconds after which what shall be refused counts as refused
_AT_ONCE = 64  # attempts in flight
_SHOWN = 4  # refused connections shown of each node


class Attempt(NamedTuple):
    """One connection, datagram or ping, and whether it must pass."""

    source: str
    target: str
    service: str  # ``80/TCP``, ``53/UDP`` or ``ping``
    family: int
    expected: bool


Expectation = Callable[[str, str, str], bool]
"""Takes source, target and service; says whether it must pass."""

_SERVICES = ("80/TCP", "53/UDP", "ping")


def _role(host: str) -> str:
    return {"front": "frontend", "back": "backend", "db": "db"}.get(host.rstrip("0123456789"), host)


def _frontend_to_backend(source: str, target: str, _service: str) -> bool:
    return _role(source) == "frontend" and _role(target) == "backend"


def _on_web_ports(source: str, target: str, service: str) -> bool:
    return _frontend_to_backend(source, target, service) and service in ("80/TCP", "443/TCP")


class Demo:
    """One showing, on one stage."""

    def __init__(self, stage: LabBase, console: Console) -> None:
        """Take a stage that is up, with its agents, and the console to print on."""
        self._stage = stage
        self._console = console
        self._seen = 0
        self._wrong: list[str] = []

    async def show(self) -> bool:
        """Play all scenes; return whether everything was as it must be."""
        for name in ENDPOINTS:
            await self._stage.host(name).serve("TCP", *_TCP_PORTS)
            await self._stage.host(name).serve("UDP", _UDP_PORT)
        self._console.print(f"[dim]{_LEGEND}\n")
        for number, (title, scene) in enumerate(self._scenes(), 1):
            self._console.rule(f"[bold]{number}. {title}", align="left")
            await scene()
            self._console.print()
        await self._show_refused()
        return self._sum_up()

    def _scenes(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        return [
            ("No policy is loaded: everything passes", self._nothing_loaded),
            ("The first rule is loaded: what it does not allow is dropped", self._first_rule),
            ("Ports 80 and 443 only, at the receiver's node", self._ports_at_ingress),
            ("Ports 80 and 443 only, at the sender's node", self._ports_at_egress),
            ("On the wire: the stamp on every packet between nodes", self._every_packet_stamped),
            ("A router on the way masquerades the source: the identity still arrives", self._masquerade),
            ("A policy is removed under an open connection: it is cut", self._cut),
            ("The world forges a frontend's address: refused", self._forgery),
        ]

    async def _nothing_loaded(self) -> None:
        await self._matrix(lambda source, target, service: True)

    async def _first_rule(self) -> None:
        await self._load("frontend-to-backend")
        self._say("role=frontend may open connections to role=backend; replies pass, the reverse direction does not.")
        await self._matrix(_frontend_to_backend)

    async def _ports_at_ingress(self) -> None:
        await self._load("backend-web-ports")
        await self._stage.withdraw("frontend-to-backend")
        await self._ports(_on_web_ports)

    async def _ports_at_egress(self) -> None:
        await self._load("frontend-to-backend")
        await self._load("frontend-egress")
        await self._stage.withdraw("backend-web-ports")
        self._say("Ingress allows all ports now; egress does not, so n1 refuses what front1 sends.")
        await self._ports(_on_web_ports)
        refused = await self._stage.refused("n1")
        self._check("n1 has refused front1 at egress", any(f["traffic_direction"] == "EGRESS" for f in refused))
        await self._stage.withdraw("frontend-egress")

    async def _every_packet_stamped(self) -> None:
        pairs = [("front1", "back2"), ("front2", "back1"), ("front3", "back1"), ("front3", "back2")]
        async with self._stage.capture() as capture:
            await self._try(pairs, ("80/TCP", "53/UDP", "ping"), _frontend_to_backend)
            for source, target in pairs:
                outcome = await self._stage.host(source).bulk(self._stage.address(target), 80, 1 << 20, _PATIENCE)
                self._check(f"1 MiB from {source} to {target} arrives intact", outcome.intact)
        table = Table("between nodes", "packets", "with a stamp", "without")
        endpoints = {self._stage.address(name, family).packed for name in ENDPOINTS for family in (4, 6)}
        marks = [marked for one in capture.packets() if (marked := _stamped(one.data, endpoints))]
        for family in (4, 6):
            of_family = [identity for version, identity in marks if version == family]
            stamped = sum(identity is not None for identity in of_family)
            table.add_row(f"IPv{family}", str(len(of_family)), str(stamped), str(len(of_family) - stamped))
            self._check(f"every IPv{family} packet between nodes bears a stamp", 0 < stamped == len(of_family))
        self._console.print(table)

    async def _masquerade(self) -> None:
        self._stage.masquerade(True)
        for family in (4, 6):
            outcome = await self._stage.host("front3").connect(self._stage.address("back1", family), 80, _PATIENCE)
            router = str(self._stage.address(ROUTER, family))
            self._say(f"front3 connects to back1, which sees {outcome.seen_as or 'nobody'} (the router is {router}).")
            self._check(f"back1 sees the router's IPv{family} address", outcome.ok and outcome.seen_as == router)
        await self._list([("front3", "back1"), ("db3", "back1"), ("n3", "back1")], ("80/TCP",), _frontend_to_backend)
        self._stage.masquerade(False)

    async def _cut(self) -> None:
        await self._load("backend-to-db")
        connection = await self._stage.host("front1").hold(self._stage.address("back2"), 80, _PATIENCE)
        self._check("an open connection from front1 to back2 carries data", (await connection.talk(_PATIENCE)).ok)
        await self._stage.withdraw("frontend-to-backend")
        self._say("frontend-to-backend is removed; backend-to-db stays loaded, so enforcement stays on.")
        self._check("the open connection is cut", not (await connection.talk(_IMPATIENCE)).ok)
        await self._list([("front1", "back2"), ("back1", "db3")], ("80/TCP",), lambda source, *_: source == "back1")
        await self._load("frontend-to-backend")

    async def _forgery(self) -> None:
        frontend, backend = self._stage.address("front2"), self._stage.address("back1")
        self._check(
            "front2 itself reaches back1", (await self._stage.host("front2").connect(backend, 80, _PATIENCE)).ok
        )
        forged = _datagram(frontend.packed, backend.packed, 4242, _UDP_PORT)
        await self._stage.host(WORLD).send_raw(forged)
        seen = await self._await_drop("n1", str(frontend))
        self._say("The world sends a datagram with front2's address, but it can give it no stamp. n1 says:")
        self._console.print(f"  {seen}", highlight=False, markup=False, soft_wrap=True)
        self._check("n1 has refused it as coming from the world", "(world)" in seen)

    async def _await_drop(self, node: str, source: str) -> str:
        """Return the log's line of a dropped packet from this address, once it is there."""
        for _ in range(100):
            for flow in reversed(await self._stage.refused(node)):
                if flow.get("IP", {}).get("source") == source and flow["source"]["identity"] < 256:
                    return compact(flow)
            await asyncio.sleep(0.02)
        return "nothing"

    async def _load(self, name: str) -> None:
        text = (files("nfq_enforcer.lab") / "policies" / f"{name}.yaml").read_text()
        await self._stage.apply(name, text)
        self._say(f"policies/{name}.yaml is in force on all nodes.")

    async def _matrix(self, expectation: Expectation) -> None:
        """Try everybody against everybody, and print a square of it."""
        sources = (*ENDPOINTS, WORLD)
        pairs = [(source, target) for source, target in product(sources, ENDPOINTS) if source != target]
        results = await self._try(pairs, _SERVICES, expectation)
        table = Table("from \\ to", *ENDPOINTS)
        for source in sources:
            cells = [
                _cell([r for r in results if (r[0].source, r[0].target) == (source, target)]) for target in ENDPOINTS
            ]
            table.add_row(source, *cells)
        self._console.print(table)
        self._say(f"{len(results)} attempts: TCP, UDP and ping, over IPv4 and IPv6, on one node and across nodes.")

    async def _ports(self, expectation: Expectation) -> None:
        services = (*(f"{port}/TCP" for port in _TCP_PORTS), "53/UDP", "ping")
        await self._list([("front1", "back1"), ("front1", "back2"), ("front3", "back1")], services, expectation)

    async def _list(self, pairs: Sequence[tuple[str, str]], services: Sequence[str], expectation: Expectation) -> None:
        """Try some pairs on some services, and print a row for each pair."""
        results = await self._try(pairs, services, expectation)
        table = Table("from → to", *services)
        for pair in pairs:
            of_pair = [r for r in results if (r[0].source, r[0].target) == pair]
            cells = [_cell([r for r in of_pair if r[0].service == service]) for service in services]
            table.add_row(" → ".join(pair), *cells)
        self._console.print(table)

    async def _try(
        self, pairs: Iterable[tuple[str, str]], services: Sequence[str], expectation: Expectation
    ) -> list[tuple[Attempt, bool]]:
        """Make every attempt, many at once, over both families; return each with whether it passed."""
        attempts = [
            Attempt(source, target, service, family, expectation(source, target, service))
            for (source, target), service, family in product(pairs, services, (4, 6))
        ]
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(attempt: Attempt) -> tuple[Attempt, bool]:
            async with at_once:
                return attempt, (await self._make(attempt)).ok

        results = await asyncio.gather(*map(one, attempts))
        for attempt, passed in results:
            what = f"{attempt.source} → {attempt.target} {attempt.service} over IPv{attempt.family}"
            self._count(f"{what}: {_word(passed)}, but it must {_must(attempt.expected)}", passed == attempt.expected)
        return results

    async def _make(self, attempt: Attempt) -> AttemptResult:
        host, address = self._stage.host(attempt.source), self._stage.address(attempt.target, attempt.family)
        patience = _PATIENCE if attempt.expected else _IMPATIENCE
        port, _, protocol = attempt.service.partition("/")
        if protocol == "TCP":
            return await host.connect(address, int(port), patience)
        if protocol == "UDP":
            return await host.send_udp(address, int(port), patience)
        return await host.ping(address, patience)

    def _check(self, promise: str, kept: bool) -> None:
        self._count(f"not so: {promise}", kept)
        self._console.print(Text("  ✓ " if kept else "  ! NOT SO: ", "green" if kept else "bold red") + Text(promise))

    def _count(self, complaint: str, right: bool) -> None:
        self._seen += 1
        if not right:
            self._wrong.append(complaint)

    def _say(self, sentence: str) -> None:
        self._console.print(f"  {sentence}", highlight=False, soft_wrap=True)

    async def _show_refused(self) -> None:
        self._console.rule("[bold]What the nodes say of the refused connections", align="left")
        for node in NODES:
            self._console.print(f"[dim]{node}# nfq-enforcer observe --verdict DROPPED --last {_SHOWN}")
            for flow in (await self._stage.refused(node))[-_SHOWN:]:
                self._console.print(compact(flow), highlight=False, markup=False, soft_wrap=True)

    def _sum_up(self) -> bool:
        self._console.print()
        for complaint in self._wrong:
            self._console.print(f"[bold red]! {complaint}")
        right = self._seen - len(self._wrong)
        style = "bold green" if not self._wrong else "bold red"
        self._console.print(f"[{style}]{right} of {self._seen} observations are as expected.")
        return not self._wrong


_LEGEND = "✓ must pass and does   ✗ must be refused and is   ! is not as it must be"


def _cell(results: Sequence[tuple[Attempt, bool]]) -> Text:
    if not results:
        return Text("·", "dim")
    wrong = [attempt for attempt, passed in results if passed != attempt.expected]
    if wrong:
        names = ", ".join(f"{attempt.service} v{attempt.family}" for attempt in wrong)
        return Text(f"! must {_must(wrong[0].expected)}: {names}", "bold red")
    return Text("✓", "green") if results[0][1] else Text("✗", "red")


def _word(passed: bool) -> str:
    return "passed" if passed else "was refused"


def _must(expected: bool) -> str:
    return "pass" if expected else "be refused"


def _stamped(data: bytes, endpoints: Collection[bytes]) -> tuple[int, int | None] | None:
    """Return version and identity of a packet between endpoints, None for any other packet."""
    try:
        packet = parse(data)
        if packet.src not in endpoints or packet.dst not in endpoints:
            return None
        found = stamp.read(data, packet)
    except PacketError:
        return None
    return packet.version, found.identity if found else None


def _datagram(source: bytes, target: bytes, sport: int, dport: int) -> bytes:
    """Return an IPv4 UDP datagram; the kernel fills in length and checksum of the IP header (raw(7))."""
    data = b"forged"
    udp = b"".join(number.to_bytes(2, "big") for number in (sport, dport, 8 + len(data), 0)) + data
    header = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes([64, UDP, 0, 0])
    return header + source + target + udp
