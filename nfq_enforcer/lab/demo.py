"""The demo: real connections between hosts, the expected result of each, and the observed one.

Every scene makes one change, attempts real TCP, UDP and ping, and compares each result with its expectation. The
expectations are written here by hand, in terms of roles and ports; none of them comes from the engine.
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
from nfq_enforcer.observe.text import compact

_TCP_PORTS = (80, 443, 8080)
_UDP_PORT = 53
_GRPC_PORT = 8080
_TIMEOUT = 3.0  # seconds for an attempt that must pass
_DROP_TIMEOUT = 0.7  # seconds without a reply after which an attempt counts as refused
_CONCURRENT = 64  # attempts in flight
_SHOWN_DROPS = 4  # of each node's log


class Attempt(NamedTuple):
    """Attempt: one connection, datagram or ping, and whether it must pass."""

    source: str
    target: str
    service: str  # ``80/TCP``, ``53/UDP`` or ``ping``
    family: int
    expected: bool


Expectation = Callable[[str, str, str], bool]
"""Function of source, target and service that returns whether the attempt must pass."""

_SERVICES = ("80/TCP", "53/UDP", "ping")
_STATUSES = {"shop.Orders/Get": 0, "shop.Orders/Cancel": 7, "shop.Orders/List": 0}  # of gRPC, for a frontend


def _role(host: str) -> str:
    return {"front": "frontend", "back": "backend", "db": "db"}.get(host.rstrip("0123456789"), host)


def _frontend_to_backend(source: str, target: str, _service: str) -> bool:
    return _role(source) == "frontend" and _role(target) == "backend"


def _on_web_ports(source: str, target: str, service: str) -> bool:
    return _frontend_to_backend(source, target, service) and service in ("80/TCP", "443/TCP")


class Demo:
    """Demo: runs all scenes once, in one lab."""

    def __init__(self, lab: LabBase, console: Console) -> None:
        """Keep a lab that is up, with its agents, and the console for the output."""
        self._lab = lab
        self._console = console
        self._observations = 0
        self._failures: list[str] = []

    async def show(self) -> bool:
        """Run all scenes; return whether every observation is as expected."""
        for name in ENDPOINTS:
            await self._lab.host(name).serve("TCP", *_TCP_PORTS)
            await self._lab.host(name).serve("UDP", _UDP_PORT)
        await self._lab.host(WORLD).serve("DNS", _UDP_PORT)
        await self._lab.host(WORLD).serve("TCP", 443)
        self._console.print(f"[dim]{_LEGEND}\n")
        for number, (title, scene) in enumerate(self._scenes(), 1):
            self._console.rule(f"[bold]{number}. {title}", align="left")
            await scene()
            self._console.print()
        await self._show_drops()
        return self._summarize()

    def _scenes(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        return [
            ("No policy is loaded: everything passes", self._no_policy),
            ("The first rule is loaded: what it does not allow is dropped", self._first_policy),
            ("Ports 80 and 443 only, at the receiver's node", self._ports_at_ingress),
            ("Ports 80 and 443 only, at the sender's node", self._ports_at_egress),
            ("Only GET /userdata/NUMBER: each request is decided", self._requests),
            ("Only two methods of a gRPC service: each call is decided", self._calls),
            ("Only a name outside: its addresses are learned from DNS", self._names),
            ("On the wire: the stamp on every packet between nodes", self._stamps),
            ("A router on the way masquerades the source: the identity still arrives", self._masquerade),
            ("A policy is removed under an open connection: it is cut", self._cut),
            ("The world forges a frontend's address: refused", self._forgery),
        ]

    async def _no_policy(self) -> None:
        await self._matrix(lambda source, target, service: True)

    async def _first_policy(self) -> None:
        await self._load("frontend-to-backend")
        self._print("role=frontend may open connections to role=backend; replies pass, the reverse direction does not.")
        await self._matrix(_frontend_to_backend)

    async def _ports_at_ingress(self) -> None:
        await self._load("backend-web-ports")
        await self._lab.withdraw("frontend-to-backend")
        await self._ports(_on_web_ports)

    async def _ports_at_egress(self) -> None:
        await self._load("frontend-to-backend")
        await self._load("frontend-egress")
        await self._lab.withdraw("backend-web-ports")
        self._print("Ingress allows all ports now; egress does not, so n1 drops the packets of front1.")
        await self._ports(_on_web_ports)
        drops = await self._lab.refused("n1")
        self._check("n1 has dropped front1's packets at egress", any(f["traffic_direction"] == "EGRESS" for f in drops))
        await self._lab.withdraw("frontend-egress")

    async def _requests(self) -> None:
        await self._load("backend-userdata")
        await self._lab.withdraw("frontend-to-backend")
        self._print("A proxy on the backend's node answers every other request of a frontend with 403.")
        requests = ("GET /userdata/42", "GET /secret", "POST /userdata/42")
        table = Table("from → to", *requests)
        for source, target in (("front1", "back1"), ("front1", "back2"), ("front3", "back1"), ("db3", "back1")):
            answers = [await self._ask(source, target, request) for request in requests]
            table.add_row(f"{source} → {target}", *answers)
        self._console.print(table)
        drops = [flow for node in ("n1", "n2") for flow in await self._lab.refused(node)]
        self._check("refused requests are in the log", any(f["drop_reason_desc"] == "HTTP_REFUSED" for f in drops))
        await self._load("frontend-to-backend")
        await self._lab.withdraw("backend-userdata")

    async def _calls(self) -> None:
        await self._load("backend-grpc")
        await self._lab.withdraw("frontend-to-backend")
        self._print("Every other call is answered with gRPC status 7 (PERMISSION_DENIED); the connection goes on.")
        table = Table("from → to", *_STATUSES)
        for source, target in (("front1", "back1"), ("front1", "back2"), ("front3", "back1"), ("db3", "back1")):
            table.add_row(f"{source} → {target}", *await self._call(source, target))
        self._console.print(table)
        await self._load("frontend-to-backend")
        await self._lab.withdraw("backend-grpc")

    async def _names(self) -> None:
        await self._load("downloads-by-name", role="frontend")
        name = "downloads.example.net"
        for family in (4, 6):
            server = self._lab.address(WORLD, family)
            front1, front2 = self._lab.host("front1"), self._lab.host("front2")
            before = await front1.connect(server, 443, _DROP_TIMEOUT)
            answer = await front1.resolve(server, name, _TIMEOUT)
            after = await front1.connect(server, 443, _TIMEOUT)
            other = await front2.connect(server, 443, _DROP_TIMEOUT)
            self._check(f"front1 cannot reach {server} before it has asked for {name}", not before.ok)
            self._check(f"DNS has this address for {name}, and front1 can reach it now", answer.ok and after.ok)
            self._check("front2, whose node has seen no such answer, cannot", not other.ok)
        await self._lab.withdraw("downloads-by-name")

    async def _ask(self, source: str, target: str, request: str) -> Text:
        """Send a request over both families; return the cell with the answer."""
        method, path = request.split()
        expected = "200" if request == "GET /userdata/42" else "403"
        expected = expected if _role(source) == "frontend" else "no answer"
        timeout = _DROP_TIMEOUT if expected == "no answer" else _TIMEOUT
        answers = set()
        for family in (4, 6):
            address = self._lab.address(target, family)
            result = await self._lab.host(source).request(address, 80, method, path, timeout)
            answers.add(str(result.code) if result.ok else "no answer")
            failure = f"{source} → {target} {request} over IPv{family}: {result.code or result.status}"
            self._count(f"{failure}, but it must be {expected}", answers == {expected})
        return Text(" ".join(answers), "green" if answers == {"200"} else "red")

    async def _call(self, source: str, target: str) -> list[Text]:
        """Make all calls over one connection of each family; return a cell for each with HTTP and gRPC status."""
        expected = tuple((200, status) for status in _STATUSES.values()) if _role(source) == "frontend" else ()
        timeout = _TIMEOUT if expected else _DROP_TIMEOUT
        answers: list[set[str]] = [set() for _ in _STATUSES]
        for family in (4, 6):
            address = self._lab.address(target, family)
            result = await self._lab.host(source).call(address, _GRPC_PORT, _STATUSES, timeout)
            for seen, (code, status) in zip(answers, result.calls, strict=False):
                seen.add(f"{code}, status {status}")
            failure = f"{source} → {target} gRPC over IPv{family}: {result.calls or result.status}"
            self._count(f"{failure}, but it must be {expected or 'no answer'}", result.calls == expected)
        texts = [" ".join(seen) or "no answer" for seen in answers]
        return [Text(text, "green" if text == "200, status 0" else "red") for text in texts]

    async def _stamps(self) -> None:
        pairs = [("front1", "back2"), ("front2", "back1"), ("front3", "back1"), ("front3", "back2")]
        async with self._lab.capture() as capture:
            await self._try(pairs, ("80/TCP", "53/UDP", "ping"), _frontend_to_backend)
            for source, target in pairs:
                result = await self._lab.host(source).bulk(self._lab.address(target), 80, 1 << 20, _TIMEOUT)
                self._check(f"1 MiB from {source} to {target} arrives intact", result.intact)
        table = Table("between nodes", "packets", "with a stamp", "without")
        endpoints = {self._lab.address(name, family).packed for name in ENDPOINTS for family in (4, 6)}
        stamps = [found for packet in capture.packets() if (found := _stamp_identity(packet.data, endpoints))]
        for family in (4, 6):
            identities = [identity for version, identity in stamps if version == family]
            stamped = sum(identity is not None for identity in identities)
            table.add_row(f"IPv{family}", str(len(identities)), str(stamped), str(len(identities) - stamped))
            self._check(f"every IPv{family} packet between nodes bears a stamp", 0 < stamped == len(identities))
        self._console.print(table)

    async def _masquerade(self) -> None:
        self._lab.masquerade(True)
        for family in (4, 6):
            result = await self._lab.host("front3").connect(self._lab.address("back1", family), 80, _TIMEOUT)
            router = str(self._lab.address(ROUTER, family))
            source = result.seen_as or "no connection"
            self._print(f"front3 connects to back1. The source address at back1: {source} (the router is {router}).")
            self._check(f"the source at back1 is the router's IPv{family} address", result.ok and source == router)
        await self._list([("front3", "back1"), ("db3", "back1"), ("n3", "back1")], ("80/TCP",), _frontend_to_backend)
        self._lab.masquerade(False)

    async def _cut(self) -> None:
        await self._load("backend-to-db")
        connection = await self._lab.host("front1").hold(self._lab.address("back2"), 80, _TIMEOUT)
        self._check("an open connection from front1 to back2 carries data", (await connection.talk(_TIMEOUT)).ok)
        await self._lab.withdraw("frontend-to-backend")
        self._print("frontend-to-backend is deleted; backend-to-db stays loaded, so policy is still enforced.")
        self._check("the open connection is cut", not (await connection.talk(_DROP_TIMEOUT)).ok)
        await self._list([("front1", "back2"), ("back1", "db3")], ("80/TCP",), lambda source, *_: source == "back1")
        await self._load("frontend-to-backend")

    async def _forgery(self) -> None:
        frontend, backend = self._lab.address("front2"), self._lab.address("back1")
        self._check("front2 itself reaches back1", (await self._lab.host("front2").connect(backend, 80, _TIMEOUT)).ok)
        forged = _datagram(frontend.packed, backend.packed, 4242, _UDP_PORT)
        await self._lab.host(WORLD).send_raw(forged)
        log_line = await self._wait_for_drop("n1", str(frontend))
        self._print("The world sends a datagram with front2's address, but without a stamp. The log of n1:")
        self._console.print(f"  {log_line}", highlight=False, markup=False, soft_wrap=True)
        self._check("n1 has dropped it as a packet from the world", "(world)" in log_line)

    async def _wait_for_drop(self, node: str, source: str) -> str:
        """Wait for the log line of a dropped packet from this address; return it, or "no drop" after some 2 s."""
        for _ in range(100):
            for flow in reversed(await self._lab.refused(node)):
                if flow.get("IP", {}).get("source") == source and flow["source"]["identity"] < 256:
                    return compact(flow)
            await asyncio.sleep(0.02)
        return "no drop"

    async def _load(self, name: str, *, role: str = "") -> None:
        """Load an example; ``role``: for endpoints of this role in place of the example's (batch)."""
        text = (files("nfq_enforcer.lab") / "policies" / f"{name}.yaml").read_text()
        await self._lab.apply(name, text.replace("role: batch", f"role: {role}") if role else text)
        self._print(f"policies/{name}.yaml is in force on all nodes{f', for role={role}' if role else ''}.")

    async def _matrix(self, expectation: Expectation) -> None:
        """Attempt every service between all pairs of hosts; print the results as a matrix."""
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
        self._print(f"{len(results)} attempts: TCP, UDP and ping, over IPv4 and IPv6, on one node and across nodes.")

    async def _ports(self, expectation: Expectation) -> None:
        services = (*(f"{port}/TCP" for port in _TCP_PORTS), "53/UDP", "ping")
        await self._list([("front1", "back1"), ("front1", "back2"), ("front3", "back1")], services, expectation)

    async def _list(self, pairs: Sequence[tuple[str, str]], services: Sequence[str], expectation: Expectation) -> None:
        """Attempt some services between some pairs of hosts; print a row for each pair."""
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
        """Make every attempt over both families, many concurrently; return each with whether it passed."""
        attempts = [
            Attempt(source, target, service, family, expectation(source, target, service))
            for (source, target), service, family in product(pairs, services, (4, 6))
        ]
        concurrent = asyncio.Semaphore(_CONCURRENT)

        async def make(attempt: Attempt) -> tuple[Attempt, bool]:
            async with concurrent:
                return attempt, (await self._make(attempt)).ok

        results = await asyncio.gather(*map(make, attempts))
        for attempt, passed in results:
            title = f"{attempt.source} → {attempt.target} {attempt.service} over IPv{attempt.family}"
            failure = f"{title}: {_result(passed)}, but it must {_must(attempt.expected)}"
            self._count(failure, passed == attempt.expected)
        return results

    async def _make(self, attempt: Attempt) -> AttemptResult:
        host, address = self._lab.host(attempt.source), self._lab.address(attempt.target, attempt.family)
        timeout = _TIMEOUT if attempt.expected else _DROP_TIMEOUT
        port, _, protocol = attempt.service.partition("/")
        if protocol == "TCP":
            return await host.connect(address, int(port), timeout)
        if protocol == "UDP":
            return await host.send_udp(address, int(port), timeout)
        return await host.ping(address, timeout)

    def _check(self, statement: str, true: bool) -> None:
        self._count(f"not true: {statement}", true)
        self._console.print(
            Text("  ✓ " if true else "  ! NOT TRUE: ", "green" if true else "bold red") + Text(statement)
        )

    def _count(self, failure: str, as_expected: bool) -> None:
        self._observations += 1
        if not as_expected:
            self._failures.append(failure)

    def _print(self, sentence: str) -> None:
        self._console.print(f"  {sentence}", highlight=False, soft_wrap=True)

    async def _show_drops(self) -> None:
        self._console.rule("[bold]The last dropped packets in each node's log", align="left")
        for node in NODES:
            self._console.print(f"[dim]{node}# nfq-enforcer observe --verdict DROPPED --last {_SHOWN_DROPS}")
            for flow in (await self._lab.refused(node))[-_SHOWN_DROPS:]:
                self._console.print(compact(flow), highlight=False, markup=False, soft_wrap=True)

    def _summarize(self) -> bool:
        self._console.print()
        for failure in self._failures:
            self._console.print(f"[bold red]! {failure}")
        as_expected = self._observations - len(self._failures)
        style = "bold green" if not self._failures else "bold red"
        self._console.print(f"[{style}]{as_expected} of {self._observations} observations are as expected.")
        return not self._failures


_LEGEND = "✓ must pass and does   ✗ must be refused and is   ! result differs from the expectation"


def _cell(results: Sequence[tuple[Attempt, bool]]) -> Text:
    if not results:
        return Text("·", "dim")
    failed = [attempt for attempt, passed in results if passed != attempt.expected]
    if failed:
        names = ", ".join(f"{attempt.service} v{attempt.family}" for attempt in failed)
        return Text(f"! must {_must(failed[0].expected)}: {names}", "bold red")
    return Text("✓", "green") if results[0][1] else Text("✗", "red")


def _result(passed: bool) -> str:
    return "passed" if passed else "was refused"


def _must(expected: bool) -> str:
    return "pass" if expected else "be refused"


def _stamp_identity(data: bytes, endpoints: Collection[bytes]) -> tuple[int, int | None] | None:
    """Return a packet's IP version and stamped identity; None for a packet that is not between endpoints."""
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
