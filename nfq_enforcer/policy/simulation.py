"""A cluster on paper: its documents compiled by the data path's own compiler, and connections judged by its own maps.

A connection is judged at both ends, each as its own node would: egress of who opens it, ingress of who accepts it.
An end that is no endpoint (an address outside, ``reserved:host``) has no policy of its own: its side lets all pass.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from nfq_enforcer.core.identity import HOST, RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.ipcache import Network
from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, LookupResult, PolicyMap, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.model import Member, gather
from nfq_enforcer.policy.ports import PROTOCOLS, Question
from nfq_enforcer.policy.probes import Family, Probe
from nfq_enforcer.policy.rules import PortSet, Rule

ECHO = {"IPv4": (ICMP, 8), "IPv6": (ICMPV6, 128)}

_FAMILIES: Mapping[int, Family] = {4: "IPv4", 6: "IPv6"}
_EVERYWHERE: Mapping[Family, Network] = {"IPv4": ip_network("0.0.0.0/0"), "IPv6": ip_network("::/0")}
_TOWARD = {Direction.EGRESS: "to", Direction.INGRESS: "from"}
_NAMED = 3  # documents or rules in a sentence; a thousand would hide what it says
_REFERENCES = "allowed: NAMESPACE/NAME of an endpoint, ip:ADDRESS or reserved:NAME"


class End(NamedTuple):
    """One end of a connection."""

    name: str
    identity: Identity
    labels: Labels
    addresses: Mapping[Family, Network]  # none: not known; of the world: every address
    maps: EndpointMaps | None  # none: it has no policy of its own
    ports: PortSet = frozenset()

    def speaks(self, family: Family) -> bool:
        """Say whether it has an address of this family."""
        return family in self.addresses or not self.addresses

    def address(self, family: Family) -> Network | None:
        """Return its address, one of the other family if it has none of this; None if it has none at all."""
        return self.addresses.get(family) or next(iter(self.addresses.values()), None)


class Side(NamedTuple):
    """What one side says."""

    allowed: bool
    rules: tuple[RuleRef, ...]  # those that decided
    why: str  # empty: it is no endpoint's side
    requests: tuple[L7Rule, ...] = ()  # what lets only some requests pass


class Answer(NamedTuple):
    """The verdict on one connection."""

    egress: Side
    ingress: Side
    reason: str

    @property
    def allowed(self) -> bool:
        """Say whether both sides allow it."""
        return self.egress.allowed and self.ingress.allowed

    @property
    def filtered(self) -> bool:
        """Say whether it is allowed for some requests only, and none was asked about."""
        return self.allowed and bool(self.egress.requests or self.ingress.requests)

    @property
    def verdict(self) -> str:
        """Return ``allow`` or ``deny``."""
        return word(self.allowed)

    def as_data(self) -> dict[str, object]:
        """Return what is printed as JSON."""
        return {
            "verdict": self.verdict,
            "egress": {"verdict": word(self.egress.allowed), "rules": list(map(str, self.egress.rules))},
            "ingress": {"verdict": word(self.ingress.allowed), "rules": list(map(str, self.ingress.rules))},
            "reason": self.reason,
        }


class Facing(NamedTuple):
    """One side of a connection: whose it is, the map it meets there, and who is at the other end."""

    direction: Direction
    subject: End
    policy: PolicyMap | None
    peer: End
    also: tuple[Identity, ...]  # the local identities of the peer's address
    excused: str = ""  # why it heeds deny rules only

    def outcome(self, question: Question) -> LookupResult | None:
        """Return what the map says, None if there is none."""
        if self.policy is None:
            return None
        return self.policy.lookup(self.peer.identity, question.proto, question.port, self.also)

    def __str__(self) -> str:
        """Render as ``ingress of default/web``."""
        return f"{self.direction} of {self.subject.name}"


class Pair(NamedTuple):
    """Two ends, and what a connection between them meets."""

    family: Family
    egress: Facing
    ingress: Facing
    itself: bool  # both are one and the same


def word(allowed: bool) -> str:
    """Return the word for a verdict."""
    return "allow" if allowed else "deny"


class Simulation:
    """A cluster of these documents. Ends and pairs are worked out once each."""

    def __init__(
        self, documents: Documents, enforcement: Enforcement = Enforcement.AUTO, *, allow_localhost: bool = True
    ) -> None:
        """Compile the documents."""
        self._enforcement = enforcement
        self._allow_localhost = allow_localhost
        self._cluster = gather(documents, enforcement)
        self._cidrs = {number: labels for labels, number in self._cluster.policy.numbers.labels.items()}
        self.endpoints = tuple(member.name for member in self._cluster.members)
        self._ends = dict(self._known())
        self._pairs: dict[tuple[str, str, Family | None], Pair] = {}
        self._closers: dict[PolicyMap, str] = {}

    def _known(self) -> Iterable[tuple[str, End]]:
        for member in self._cluster.members:
            end = self._member(member)
            yield end.name, end
            for ip in member.document.spec.ips:
                yield f"ip:{ip}", end._replace(addresses={_FAMILIES[ip.version]: ip_network(ip)})
        for identity, labels in RESERVED.items():
            maps = self._cluster.policy.maps_for(labels)
            judged = identity == HOST and any(policy.can_refuse for policy in maps)  # by policies that select nodes
            addresses = _EVERYWHERE if identity == WORLD else {}
            yield str(labels), End(str(labels), identity, labels, addresses, maps if judged else None)

    def _member(self, member: Member) -> End:
        ips = reversed(member.document.spec.ips)  # the first of each family counts
        addresses: Mapping[Family, Network] = {_FAMILIES[ip.version]: ip_network(ip) for ip in ips}
        maps = self._cluster.maps(member)
        return End(member.name, member.identity, member.relevant, addresses, maps, member.ports)

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of a direction, in the order of their documents."""
        return self._cluster.policy.rules(direction)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Return an address of each prefix that policies name: its first."""
        numbers = self._cluster.policy.numbers
        named = sorted({*numbers.cidrs, *numbers.blocks}, key=str)
        return tuple(f"ip:{network.network_address}" for network in named if network.prefixlen)

    def end(self, reference: str) -> End:
        """Return the end that a reference names; raise ValueError with what is allowed."""
        end = self._ends.get(reference)
        if end is None:
            end = self._ends[reference] = self._address(reference)
        return end

    def pair(self, source: str, target: str, family: Family | None = None) -> Pair:
        """Return what a connection meets, by default over IPv4 if both ends have it; raise ValueError for nobody."""
        pair = self._pairs.get((source, target, family))
        if pair is None:
            pair = self._pairs[source, target, family] = self._paired(self.end(source), self.end(target), family)
        return pair

    def judge_probe(self, probe: Probe) -> Answer:
        """Return the verdict on a probe; raise ValueError for a reference that names nobody."""
        icmp = probe.icmp
        pair = self.pair(probe.source, probe.target, probe.family or (icmp.family if icmp else None))
        if probe.protocol == "ICMP":
            proto, echo = ECHO[pair.family]
            return self.judge(pair, Question(proto, icmp.type if icmp else echo))
        request = probe.http.asked if probe.http else None
        return self.judge(pair, Question(PROTOCOLS[probe.protocol], probe.port or 0, request))

    def judge(self, pair: Pair, question: Question) -> Answer:
        """Return the verdict on a connection."""
        egress, ingress = self._side(pair.egress, question), self._side(pair.ingress, question)
        if pair.itself:
            return Answer(egress, ingress, "an endpoint cannot be cut off from itself")
        sides = (egress, ingress)
        said = [side.why for side in sides if not side.allowed] or [side.why for side in sides if side.why]
        return Answer(egress, ingress, "; ".join(said) or "neither end is an endpoint, so no policy applies")

    def _address(self, reference: str) -> End:
        kind, _, name = reference.partition(":")
        if kind != "ip":
            raise ValueError(self._nobody(reference))
        try:
            address = ip_address(name.replace("%", "/"))  # an interface behind '%' is no part of an address
        except ValueError:
            raise ValueError(f"'{name}' is not an address; allowed: ip: and an IPv4 or IPv6 address") from None
        known = self._ends.get(f"ip:{address}")
        addresses = {_FAMILIES[address.version]: ip_network(address)}
        return known or End(str(address), WORLD, RESERVED[WORLD], addresses, None)

    def _outside(self, end: End, family: Family) -> End:
        """Return an end outside with the identity that policy gives its address, any other as it is."""
        address = end.address(family)
        if end.identity != WORLD or address is None:
            return end
        identity = self._cluster.policy.numbers.cidrs.get(address)  # of the whole world, if policy names it
        if identity is None and address.prefixlen:
            identity = self._cluster.addresses.lookup(address.network_address.packed).identity
        labels = self._cidrs.get(identity or WORLD, end.labels)
        return end._replace(identity=identity or WORLD, labels=labels)

    def _nobody(self, reference: str) -> str:
        known = [name for name in self._ends if not name.startswith("ip:")]
        bare = [name for name in self.endpoints if name.endswith(f"/{reference}")]
        close = bare[:_NAMED] or get_close_matches(reference, known, _NAMED, cutoff=0.85)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return f"'{reference}' is nobody that the documents know; {hint}{_REFERENCES}"

    def _paired(self, source: End, target: End, family: Family | None) -> Pair:
        chosen: Family = family or ("IPv4" if source.speaks("IPv4") and target.speaks("IPv4") else "IPv6")
        source, target = self._outside(source, chosen), self._outside(target, chosen)
        itself = source.name == target.name and source.maps is not None
        egress = source.maps.egress if source.maps and not itself else None
        ingress = target.maps.ingress if target.maps and not itself else None
        excused = self._excuse(source, ingress)
        return Pair(
            chosen,
            Facing(Direction.EGRESS, source, egress, target, self._also(target, chosen)),
            Facing(Direction.INGRESS, target, ingress, source, self._also(source, chosen), excused),
            itself,
        )

    def _excuse(self, source: End, ingress: PolicyMap | None) -> str:
        """Return why ingress only heeds deny rules; empty if it heeds all of them."""
        if source.identity != HOST or ingress is None or not ingress.enforced:
            return ""
        if self._allow_localhost:
            return "the host may reach the endpoints it runs (allow-localhost)"
        return "" if ingress.closes_host else "a NetworkPolicy closes no endpoint to its own host"

    def _also(self, end: End, family: Family) -> tuple[Identity, ...]:
        address = end.address(family)
        if address is None:
            return ()
        if address.prefixlen:
            return self._cluster.addresses.local_identities(address.network_address.packed)
        block = self._cluster.policy.numbers.blocks.get(address)
        return () if block is None else (block,)

    def _side(self, facing: Facing, question: Question) -> Side:
        policy, outcome = facing.policy, facing.outcome(question)
        if policy is None or outcome is None:
            return Side(True, (), "")
        if outcome.denied:
            why = f"{listed(outcome.rules)} denies {question} {_toward(facing)} ({facing})"
            return Side(False, outcome.rules, why)
        if facing.excused:
            return Side(True, (), facing.excused)
        if not policy.enforced:
            return Side(True, outcome.rules, f"nothing closes {facing}")
        if not outcome.allowed:
            why = f"{facing} is closed by {self._closed_by(policy)}, and no rule opens {question} {_toward(facing)}"
            return Side(False, (), why)
        if outcome.l7:
            return _request_side(outcome, question, str(facing))
        return Side(True, outcome.rules, f"{listed(outcome.rules)} opens {facing}")

    def _closed_by(self, policy: PolicyMap) -> str:
        words = self._closers.get(policy)
        if words is None:
            documents = dict.fromkeys(ref.document for ref in policy.enforced_by)
            words = self._closers[policy] = listed(documents) or f"enforcement mode {self._enforcement}"
        return words


def _toward(facing: Facing) -> str:
    return f"{_TOWARD[facing.direction]} {facing.peer.name}"


def _request_side(outcome: LookupResult, question: Question, where: str) -> Side:
    if question.request is None:
        why = f"{listed(outcome.rules)} opens {where}, but only requests that it lists pass"
        return Side(True, outcome.rules, why, outcome.l7)
    request = question.request
    rules = tuple(
        dict.fromkeys(
            rule.ref for rule in outcome.l7 if isinstance(rule.match, HttpMatch) and rule.match.matches(request)
        )
    )
    if rules:
        return Side(True, rules, f"{listed(rules)} lets {request.method} {request.path} pass at {where}")
    return Side(
        False, (), f"{request.method} {request.path} is no request that {listed(outcome.rules)} lists for {where}"
    )


def listed(things: Iterable[object]) -> str:
    """Return them as words, and how many more there are than a sentence holds."""
    every = list(map(str, things))
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
