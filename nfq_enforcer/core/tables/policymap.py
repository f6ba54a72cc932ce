"""Policy map: the compiled rules of one endpoint and direction, one dict, a few probes a look-up; deny wins.

A key names a peer and ports. A port range is split into blocks whose sizes are powers of two, each named by the leading
bits that its ports share. A look-up probes each prefix length that the map has for the protocol, so its cost depends on
the number of prefix lengths, not on the number of rules.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.dns_names import NamePatterns
from nfq_enforcer.core.tables.l7 import NO_PROTOCOL, DnsMatch, L7Match, ProxyProtocols, proxy_protocols
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP

PORT_BITS = 16
WHOLE = -1  # as rule number: the section of the document itself, which has no entry


class RuleRef(NamedTuple):
    """Rule reference: a document and a place in it, for example ``ingress[0]``."""

    kind: str
    namespace: str  # empty for a cluster-wide document
    name: str
    direction: Direction
    number: int
    spec: int = 0  # which of ``specs``, 0 for ``spec``
    deny: bool = False  # in ``ingressDeny`` or ``egressDeny``

    @property
    def document(self) -> str:
        """Return ``namespace/name``, or ``name`` of a cluster-wide document."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def place(self) -> str:
        """Return ``ingress[0]`` or ``ingressDeny[0]``; ``ingress`` where an empty section isolates."""
        section = f"{self.direction}Deny" if self.deny else str(self.direction)
        return section if self.number == WHOLE else f"{section}[{self.number}]"

    def __str__(self) -> str:
        """Render as ``namespace/name ingress[0]``."""
        return f"{self.document} {self.place}"


class PolicyKey(NamedTuple):
    """Policy key: a peer, and a block of ports of one protocol."""

    identity: Identity  # 0: any peer
    proto: int  # 0: any protocol; port and bits are then 0 too
    port: int  # the first port; for ICMP: the type
    bits: int  # leading bits of the port that have to match: 16 is this port alone, 0 every port

    @property
    def last_port(self) -> int:
        """Return the last port."""
        return self.port | ((1 << (PORT_BITS - self.bits)) - 1)


def port_blocks(first: int, last: int) -> Iterable[tuple[int, int]]:
    """Yield (port, bits) of the fewest blocks that cover the range, both ends included."""
    while first <= last:
        size = first & -first or 1 << PORT_BITS
        while first + size - 1 > last:
            size >>= 1
        yield first, PORT_BITS + 1 - size.bit_length()
        first += size


_SHAPE: Callable[[PolicyKey], tuple[int, int]] = attrgetter("proto", "bits")


class L7Rule(NamedTuple):
    """Layer-7 rule: a match on the requests of a connection, with its rule reference."""

    ref: RuleRef
    match: L7Match


DnsRules = NamePatterns[RuleRef]
"""The rules that allow DNS names, by their patterns."""


class PolicyEntry(NamedTuple):
    """Policy entry: the rules for one key."""

    allowed_by: tuple[RuleRef, ...] = ()  # rules that allow it on layers 3 and 4
    denied_by: tuple[RuleRef, ...] = ()
    l7: tuple[L7Rule, ...] = ()  # rules that allow it for matching requests only


class LookupResult(NamedTuple):
    """Look-up result: the answer of a policy map to an opening."""

    allowed: bool
    rules: tuple[
        RuleRef, ...
    ] = ()  # the rules that deny, else those that allow; empty: denied because no rule allows it
    l7: tuple[L7Rule, ...] = ()  # if not empty: only requests that one of these rules matches are allowed
    dns: DnsRules | None = None  # the DNS rules among them, None without any
    protocols: ProxyProtocols = NO_PROTOCOL  # those of the rules among them that the proxy applies

    @property
    def denied(self) -> bool:
        """Tell whether a deny rule matches."""
        return not self.allowed and bool(self.rules)


class PolicyMap:
    """Policy map of one endpoint and direction.

    ``enforced``: openings without an allowing entry are denied. ``enforced_by``: the rules that select the endpoint
    (empty if the enforcement mode alone enforces the map). ``can_refuse``: the map can deny an opening at all; deny
    rules hold whether the map is enforced or not. ``closes_host``: the endpoint is closed to its own host as well,
    which a Kubernetes NetworkPolicy never does.

    The result for a set of matching entries is computed once and cached, so the cost of a look-up does not depend on
    the number of rules in an entry.
    """

    __slots__ = (
        "_masks",
        "_outcomes",
        "_proxy_ports",
        "can_refuse",
        "closes_host",
        "enforced",
        "enforced_by",
        "entries",
    )

    def __init__(
        self,
        entries: Mapping[PolicyKey, PolicyEntry],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...] = (),
    ) -> None:
        """Take the entries without a copy; the map is immutable from then on."""
        self.entries = entries
        self.enforced = enforced
        self.enforced_by = enforced_by
        self.closes_host = enforced and (not enforced_by or any(rule.kind != "NetworkPolicy" for rule in enforced_by))
        self.can_refuse = enforced or any(entry.denied_by for entry in entries.values())
        shapes = {(proto, bits) for proto, bits in set(map(_SHAPE, entries)) if proto}
        self._masks: dict[int, tuple[tuple[int, int], ...]] = {
            proto: tuple(_mask(bits) for other, bits in sorted(shapes, reverse=True) if other == proto)
            for proto, _ in shapes
        }
        self._outcomes: dict[tuple[int, ...], LookupResult] = {}  # by ``id()`` of the matching entries
        self._proxy_ports: tuple[tuple[int, int], ...] | None = None  # None: not computed yet

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments and the derived fields, without the cache: ``id()`` differs in another process."""
        return _remake, (self.entries, self.enforced, self.enforced_by, self._masks, self.can_refuse)

    def with_entries(self, entries: Mapping[PolicyKey, PolicyEntry]) -> "PolicyMap":
        """Return the same map with other entries of the same prefix lengths; the entries are not inspected."""
        return _remake(entries, self.enforced, self.enforced_by, self._masks, self.can_refuse)

    def with_enforcement(self, rules: tuple[RuleRef, ...], *, enforced: bool) -> "PolicyMap":
        """Return a map of the same entries, enforced or not, with other enforcing rules."""
        return self.revised(self.entries, (), enforced=enforced, enforced_by=rules)

    def revised(
        self,
        entries: Mapping[PolicyKey, PolicyEntry],
        changed: Iterable[PolicyKey],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...],
    ) -> "PolicyMap":
        """Return a map of these entries, which differ from this map's at the changed keys only.

        The new map probes the same prefix lengths, even if the last entry of one has been removed: that probe finds
        nothing.
        """
        if any(_mask(bits) not in self._masks.get(proto, ()) for proto, bits in set(map(_SHAPE, changed)) if proto):
            return PolicyMap(entries, enforced=enforced, enforced_by=enforced_by)
        can_refuse = enforced or any(entry.denied_by for entry in entries.values())
        return _remake(entries, enforced, enforced_by, self._masks, can_refuse)

    @property
    def proxy_ports(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges of TCP ports, first and last, with rules of the proxy for any peer; they do not overlap."""
        if self._proxy_ports is None:
            self._proxy_ports = _joined(key for key, entry in self.entries.items() if _needs_proxy(key, entry))
        return self._proxy_ports

    def lookup(self, identity: Identity, proto: int, port: int, also: tuple[Identity, ...] = ()) -> LookupResult:
        """Return the result for a peer's opening to this port; for ICMP the port is the type.

        ``also``: the local identities of the peer's address.
        """
        found = self.matching(identity, proto, port, also)
        key = tuple(map(id, found))
        outcome = self._outcomes.get(key)
        if outcome is None:
            outcome = self._outcomes[key] = self._outcome(found)
        return outcome

    def _outcome(self, found: list[PolicyEntry]) -> LookupResult:
        denied = [rule for entry in found for rule in entry.denied_by]
        if denied:
            return LookupResult(False, _once(denied))
        allowed = [rule for entry in found for rule in entry.allowed_by]
        if allowed or not self.enforced:
            return LookupResult(True, _once(allowed))
        requests = dict.fromkeys(rule for entry in found for rule in entry.l7)
        patterns = [(rule.match.pattern, rule.ref) for rule in requests if isinstance(rule.match, DnsMatch)]
        dns = DnsRules(patterns) if patterns else None
        protocols = proxy_protocols(rule.match for rule in requests)
        return LookupResult(bool(requests), _once(rule.ref for rule in requests), tuple(requests), dns, protocols)

    def matching(self, identity: Identity, proto: int, port: int, also: tuple[Identity, ...] = ()) -> list[PolicyEntry]:
        """Return every entry whose key matches this port and peer."""
        get = self.entries.get
        masks = self._masks.get(proto, ())
        found = []
        for peer in (identity, *also, ANY):
            for mask, bits in masks:
                found.append(get((peer, proto, port & mask, bits)))  # type: ignore[call-overload]
            found.append(get((peer, 0, 0, 0)))  # type: ignore[call-overload]
        return [entry for entry in found if entry is not None]


def _remake(
    entries: Mapping[PolicyKey, PolicyEntry],
    enforced: bool,
    enforced_by: tuple[RuleRef, ...],
    masks: dict[int, tuple[tuple[int, int], ...]],
    can_refuse: bool,
) -> PolicyMap:
    made = PolicyMap({}, enforced=enforced, enforced_by=enforced_by)
    made.entries, made._masks, made.can_refuse = entries, masks, can_refuse
    return made


def _needs_proxy(key: PolicyKey, entry: PolicyEntry) -> bool:
    return bool(entry.l7) and key.proto in {TCP, 0} and bool(proxy_protocols(rule.match for rule in entry.l7))


def _joined(keys: Iterable[PolicyKey]) -> tuple[tuple[int, int], ...]:
    """Return the ranges of ports that the keys cover, without overlaps."""
    ranges: list[tuple[int, int]] = []
    for first, last in sorted({(key.port, key.last_port) for key in keys}):
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], last)
        else:
            ranges.append((first, last))
    return tuple(ranges)


def _mask(bits: int) -> tuple[int, int]:
    return (0xFFFF << (PORT_BITS - bits)) & 0xFFFF, bits


def _once(rules: Iterable[RuleRef]) -> tuple[RuleRef, ...]:
    return tuple(dict.fromkeys(rules))
