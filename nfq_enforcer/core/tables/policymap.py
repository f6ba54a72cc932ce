"""Policy map: the compiled rules of one endpoint and direction, one dict, a few probes a look-up; deny wins.

A key names a peer and ports. A port range is split into blocks whose sizes are powers of two, each named by the leading
bits that its ports share. A look-up probes each prefix length that the map has for the protocol, so its cost depends on
the number of prefix lengths, not on the number of rules.

Rules of a ClusterNetworkPolicy are ordered: in each of its two tiers, the first matching rule decides. The tier Admin
precedes the other rules (for which deny wins), the tier Baseline follows them. Docs: decisions/0021.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.dns_names import EVERY_NAME, NamePatterns
from nfq_enforcer.core.tables.l7 import NO_PROTOCOL, DnsMatch, L7Match, ProxyProtocols, proxy_protocols
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP

PORT_BITS = 16
WHOLE = -1  # as rule number: the section of the document itself, which has no entry


class Tier(StrEnum):
    """Tier of the rules of a ClusterNetworkPolicy: before or after all other rules."""

    ADMIN = "Admin"
    BASELINE = "Baseline"


class Action(StrEnum):
    """Action of a rule of a ClusterNetworkPolicy; Pass skips the rest of the tier."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


class RuleOrder(NamedTuple):
    """Rule order: tier and priority of a rule of a ClusterNetworkPolicy, with the action and the name of the rule."""

    tier: Tier
    priority: int  # lower ones first
    action: Action
    title: str = ""


class RuleRef(NamedTuple):
    """Rule reference: a document and a place in it, for example ``ingress[0]``."""

    kind: str
    namespace: str  # empty for a cluster-wide document
    name: str
    direction: Direction
    number: int
    spec: int = 0  # which of ``specs``, 0 for ``spec``
    deny: bool = False  # in ``ingressDeny`` or ``egressDeny``
    order: RuleOrder | None = None  # None: of another kind of document than ClusterNetworkPolicy

    @property
    def document(self) -> str:
        """Return ``namespace/name``, or ``name`` of a cluster-wide document."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def place(self) -> str:
        """Return ``ingress[0]`` or ``ingressDeny[0]``; ``ingress`` where an empty section isolates."""
        section = f"{self.direction}Deny" if self.deny else str(self.direction)
        return section if self.number == WHOLE else f"{section}[{self.number}]"

    @property
    def precedence(self) -> tuple[int, str, int]:
        """Return the sort key of an ordered rule in its tier: the document's name decides between equal priorities."""
        return (self.order.priority if self.order else 0), self.name, self.number

    def __str__(self) -> str:
        """Render as ``namespace/name ingress[0]``, an ordered rule as ``name ingress[0] (Admin 10, Deny 'title')``."""
        if self.order is None:
            return f"{self.document} {self.place}"
        tier, priority, action, title = self.order
        named = f" '{title}'" if title else ""
        return f"{self.document} {self.place} ({tier} {priority}, {action}{named})"


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
    ordered: tuple[RuleRef, ...] = ()  # rules of ClusterNetworkPolicies, in no order
    learned_by: tuple[RuleRef, ...] = ()  # rules with names, for which the DNS answers on these ports are read


class LookupResult(NamedTuple):
    """Look-up result: the answer of a policy map to an opening."""

    allowed: bool
    rules: tuple[
        RuleRef, ...
    ] = ()  # the rules that deny, else those that allow; empty: denied because no rule allows it
    l7: tuple[L7Rule, ...] = ()  # if not empty: only requests that one of these rules matches are allowed
    dns: DnsRules | None = None  # the DNS rules among them, or those that read every answer; None without any
    protocols: ProxyProtocols = NO_PROTOCOL  # those of the rules among them that the proxy applies

    @property
    def denied(self) -> bool:
        """Tell whether a rule denies, other than by default."""
        return not self.allowed and bool(self.rules)


class PolicyMap:
    """Policy map of one endpoint and direction.

    ``enforced``: openings without an allowing entry are denied. ``enforced_by``: the rules that select the endpoint
    (empty if the enforcement mode alone enforces the map). ``isolated``: one of the rules for this very endpoint
    isolates it, so the tier Baseline decides nothing; by default as ``enforced``. ``can_refuse``: the map can deny an
    opening at all; deny rules hold whether the map is enforced or not. ``closes_host``: the endpoint is closed to its
    own host as well, which a Kubernetes NetworkPolicy never does.

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
        "isolated",
    )

    def __init__(
        self,
        entries: Mapping[PolicyKey, PolicyEntry],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...] = (),
        isolated: bool | None = None,
    ) -> None:
        """Take the entries without a copy; the map is immutable from then on."""
        self.entries = entries
        self.enforced = enforced
        self.enforced_by = enforced_by
        self.isolated = enforced if isolated is None else isolated
        self.closes_host = enforced and (not enforced_by or any(rule.kind != "NetworkPolicy" for rule in enforced_by))
        self.can_refuse = enforced or _any_denies(entries)
        shapes = {(proto, bits) for proto, bits in set(map(_SHAPE, entries)) if proto}
        self._masks: dict[int, tuple[tuple[int, int], ...]] = {
            proto: tuple(_mask(bits) for other, bits in sorted(shapes, reverse=True) if other == proto)
            for proto, _ in shapes
        }
        self._outcomes: dict[tuple[int, ...], LookupResult] = {}  # by ``id()`` of the matching entries
        self._proxy_ports: tuple[tuple[int, int], ...] | None = None  # None: not computed yet

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments and the derived fields, without the cache: ``id()`` differs in another process."""
        return _remake, (self.entries, self._default_deny, self._masks, self.can_refuse)

    def with_entries(self, entries: Mapping[PolicyKey, PolicyEntry]) -> "PolicyMap":
        """Return the same map with other entries of the same prefix lengths; the entries are not inspected."""
        return _remake(entries, self._default_deny, self._masks, self.can_refuse)

    def with_enforcement(
        self, rules: tuple[RuleRef, ...], *, enforced: bool, isolated: bool | None = None
    ) -> "PolicyMap":
        """Return a map of the same entries, enforced or not, with other enforcing rules."""
        return self.revised(self.entries, (), enforced=enforced, enforced_by=rules, isolated=isolated)

    def revised(
        self,
        entries: Mapping[PolicyKey, PolicyEntry],
        changed: Iterable[PolicyKey],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...],
        isolated: bool | None = None,
    ) -> "PolicyMap":
        """Return a map of these entries, which differ from this map's at the changed keys only.

        The new map probes the same prefix lengths, even if the last entry of one has been removed: that probe finds
        nothing.
        """
        if any(_mask(bits) not in self._masks.get(proto, ()) for proto, bits in set(map(_SHAPE, changed)) if proto):
            return PolicyMap(entries, enforced=enforced, enforced_by=enforced_by, isolated=isolated)
        can_refuse = enforced or _any_denies(entries)
        return _remake(entries, (enforced, enforced_by, isolated), self._masks, can_refuse)

    @property
    def _default_deny(self) -> "_DefaultDeny":
        return self.enforced, self.enforced_by, self.isolated

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
        result = self._decision(found)
        if not result.allowed or result.l7:
            return result
        # Of an opening that is allowed as a whole, no DNS message is refused, but the answers teach addresses.
        readers = [rule for entry in found for rule in entry.learned_by]
        if result.rules and result.rules[0].order:  # an ordered rule decides before DNS rules of other documents
            readers += [rule.ref for entry in found for rule in entry.l7 if isinstance(rule.match, DnsMatch)]
        dns = DnsRules((EVERY_NAME, reader) for reader in _once(readers)) if readers else None
        return result._replace(dns=dns)

    def _decision(self, found: list[PolicyEntry]) -> LookupResult:
        """Return the result by the first tier that decides: Admin, the rules without order, Baseline, the default."""
        ordered = [rule for entry in found for rule in entry.ordered]
        first = _first(ordered, Tier.ADMIN) if ordered else None
        if first is not None:
            return first
        denied = [rule for entry in found for rule in entry.denied_by]
        if denied:
            return LookupResult(False, _once(denied))
        allowed = [rule for entry in found for rule in entry.allowed_by]
        if allowed:
            return LookupResult(True, _once(allowed))
        requests = dict.fromkeys(rule for entry in found for rule in entry.l7)
        if requests and self.enforced:
            patterns = [(rule.match.pattern, rule.ref) for rule in requests if isinstance(rule.match, DnsMatch)]
            dns = DnsRules(patterns) if patterns else None
            protocols = proxy_protocols(rule.match for rule in requests)
            return LookupResult(True, _once(rule.ref for rule in requests), tuple(requests), dns, protocols)
        last = _first(ordered, Tier.BASELINE) if ordered and not self.isolated else None
        return LookupResult(not self.enforced) if last is None else last

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


_DefaultDeny = tuple[bool, tuple[RuleRef, ...], bool | None]
"""``enforced``, ``enforced_by`` and ``isolated`` of a policy map."""


def _remake(
    entries: Mapping[PolicyKey, PolicyEntry],
    default_deny: _DefaultDeny,
    masks: dict[int, tuple[tuple[int, int], ...]],
    can_refuse: bool,
) -> PolicyMap:
    enforced, enforced_by, isolated = default_deny
    made = PolicyMap({}, enforced=enforced, enforced_by=enforced_by, isolated=isolated)
    made.entries, made._masks, made.can_refuse = entries, masks, can_refuse
    return made


def _any_denies(entries: Mapping[PolicyKey, PolicyEntry]) -> bool:
    # The loop runs over each key of a map with many, so it reads fields, and calls nothing where no rule is ordered.
    return any(entry.denied_by or (entry.ordered and any(map(_denies, entry.ordered))) for entry in entries.values())


def _denies(rule: RuleRef) -> bool:
    return rule.order is not None and rule.order.action is Action.DENY


def _first(rules: Iterable[RuleRef], tier: Tier) -> LookupResult | None:
    """Return the result of the first rule of a tier; None if no rule of it matches, or the first one passes."""
    of_tier = [rule for rule in rules if rule.order and rule.order.tier is tier]
    first = min(of_tier, key=attrgetter("precedence"), default=None)
    if first is None or first.order is None or first.order.action is Action.PASS:
        return None
    return LookupResult(first.order.action is Action.ACCEPT, (first,))


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
