"""Identity-based policy, compiled: one dict per endpoint and direction, a few probes a look-up, deny wins.

A key names a peer and ports. A range of ports is cut into blocks that are powers of two, each named by the leading
bits that its ports share; a look-up probes each number of bits that the map has for the protocol, so its cost depends
on how many kinds of blocks there are, not on how many rules.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.tables.l7 import DnsMatch, HttpMatch
from nfq_enforcer.core.verdict import Direction

PORT_BITS = 16
WHOLE = -1  # as the number of a rule: the document's section itself, which has no entry


class RuleRef(NamedTuple):
    """Where a rule stands: a document and the place in it, for example ``ingress[0]``."""

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
    """Whom and what an entry is about: a peer, and the ports of a protocol whose leading bits are these."""

    identity: Identity  # 0: any peer
    proto: int  # 0: any protocol; port and bits are then 0 too
    port: int  # the first port; of ICMP: the type
    bits: int  # leading bits of the port that count: 16 is this port alone, 0 every port

    @property
    def last_port(self) -> int:
        """Return the last port."""
        return self.port | ((1 << (PORT_BITS - self.bits)) - 1)


def port_blocks(first: int, last: int) -> Iterable[tuple[int, int]]:
    """Yield (port, bits) of the fewest blocks that make up the range, both ends included."""
    while first <= last:
        size = first & -first or 1 << PORT_BITS
        while first + size - 1 > last:
            size >>= 1
        yield first, PORT_BITS + 1 - size.bit_length()
        first += size


_SHAPE: Callable[[PolicyKey], tuple[int, int]] = attrgetter("proto", "bits")


class L7Rule(NamedTuple):
    """What a rule lets pass of the requests on a connection, and which rule it is."""

    ref: RuleRef
    match: HttpMatch | DnsMatch


class PolicyEntry(NamedTuple):
    """What the rules about one key say."""

    allowed_by: tuple[RuleRef, ...] = ()  # rules that open it, whatever is spoken there
    denied_by: tuple[RuleRef, ...] = ()
    l7: tuple[L7Rule, ...] = ()  # rules that open it for some requests only


class LookupResult(NamedTuple):
    """What a policy map says of an opening."""

    allowed: bool
    rules: tuple[RuleRef, ...] = ()  # those that deny, else those that allow; none: closed because no rule opens it
    l7: tuple[L7Rule, ...] = ()  # if not empty: a request passes only if one of these matches it

    @property
    def denied(self) -> bool:
        """Say whether a deny rule refuses it."""
        return not self.allowed and bool(self.rules)


class PolicyMap:
    """What may pass one side of an endpoint.

    ``enforced``: whether what no entry allows is dropped; ``enforced_by``: the rules that brought this about (none
    where the mode did). ``entries``: what rules say of each key. ``can_refuse``: whether anything can be refused at
    all: a deny rule holds whether the map is enforced or not. ``closes_host``: whether an endpoint is closed to its own
    host too, which a Kubernetes NetworkPolicy never does.

    What entries come to together is worked out once for each set of them, so a look-up costs the same however many
    rules an entry names.
    """

    __slots__ = ("_masks", "_outcomes", "can_refuse", "closes_host", "enforced", "enforced_by", "entries")

    def __init__(
        self,
        entries: Mapping[PolicyKey, PolicyEntry],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...] = (),
    ) -> None:
        """Take the entries as they are; the map is not changed after."""
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
        self._outcomes: dict[tuple[int, ...], LookupResult] = {}  # by the identities (in Python's sense) of the entries

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of, and what that came to: objects have other identities in another process."""
        return _remake, (self.entries, self.enforced, self.enforced_by, self._masks, self.can_refuse)

    def over(self, entries: Mapping[PolicyKey, PolicyEntry]) -> "PolicyMap":
        """Return the same map over other entries, of the same shapes, without a look at them."""
        return _remake(entries, self.enforced, self.enforced_by, self._masks, self.can_refuse)

    def closed_by(self, rules: tuple[RuleRef, ...], *, enforced: bool) -> "PolicyMap":
        """Return a map of the same entries that is closed, or not, by other rules."""
        return self.revised(self.entries, (), enforced=enforced, enforced_by=rules)

    def revised(
        self,
        entries: Mapping[PolicyKey, PolicyEntry],
        changed: Iterable[PolicyKey],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...],
    ) -> "PolicyMap":
        """Return a map of these entries, which are this one's but for those with the changed keys.

        It probes what this one probes, though the last entry of some shape may be gone: a look-up more finds nothing.
        """
        if any(_mask(bits) not in self._masks.get(proto, ()) for proto, bits in set(map(_SHAPE, changed)) if proto):
            return PolicyMap(entries, enforced=enforced, enforced_by=enforced_by)
        can_refuse = enforced or any(entry.denied_by for entry in entries.values())
        return _remake(entries, enforced, enforced_by, self._masks, can_refuse)

    def lookup(self, identity: Identity, proto: int, port: int, also: tuple[Identity, ...] = ()) -> LookupResult:
        """Return what the map says of a peer's opening to this port; of ICMP the port is the type.

        ``also`` are the local identities of the peer's address.
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
        return LookupResult(bool(requests), _once(rule.ref for rule in requests), tuple(requests))

    def matching(self, identity: Identity, proto: int, port: int, also: tuple[Identity, ...] = ()) -> list[PolicyEntry]:
        """Return every entry that is about this port and peer."""
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


def _mask(bits: int) -> tuple[int, int]:
    return (0xFFFF << (PORT_BITS - bits)) & 0xFFFF, bits


def _once(rules: Iterable[RuleRef]) -> tuple[RuleRef, ...]:
    return tuple(dict.fromkeys(rules))
