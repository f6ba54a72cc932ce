"""Identity-based policy, compiled: one dict per endpoint and direction, four probes a look-up."""

from collections.abc import Mapping
from typing import NamedTuple

from nfq_enforcer.core.identity import ANY, Identity
from nfq_enforcer.core.verdict import Direction


class RuleRef(NamedTuple):
    """Where a rule stands: a document and the place in it, for example ``ingress[0]``."""

    kind: str
    namespace: str  # empty for a cluster-wide document
    name: str
    direction: Direction
    number: int
    spec: int = 0  # which of ``specs``, 0 for ``spec``

    @property
    def document(self) -> str:
        """Return ``namespace/name``, or ``name`` of a cluster-wide document."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def __str__(self) -> str:
        """Render as ``namespace/name ingress[0]``."""
        return f"{self.document} {self.direction}[{self.number}]"


class PolicyKey(NamedTuple):
    """What an entry opens: a peer, and a port of a protocol or all of them."""

    identity: Identity  # 0: any peer
    proto: int  # 0: any protocol; port is then 0 too
    port: int  # 0: any port of the protocol


class PolicyMap:
    """What may pass one side of an endpoint.

    ``enforced``: whether what no entry allows is dropped; ``enforced_by``: the rules that brought this about (none
    where the mode did). ``entries``: the rules that open each key.
    """

    __slots__ = ("enforced", "enforced_by", "entries")

    def __init__(
        self,
        entries: Mapping[PolicyKey, tuple[RuleRef, ...]],
        *,
        enforced: bool,
        enforced_by: tuple[RuleRef, ...] = (),
    ) -> None:
        """Take the entries as they are; the map is not changed after."""
        self.entries = entries
        self.enforced = enforced
        self.enforced_by = enforced_by

    def lookup(self, identity: Identity, proto: int, port: int) -> tuple[RuleRef, ...]:
        """Return every rule that opens this port to this peer; empty if none does."""
        get = self.entries.get
        found: tuple[RuleRef, ...] = ()
        for peer in (identity, ANY):
            for key in ((peer, proto, port), (peer, proto, 0), (peer, 0, 0)):
                found += get(key, ())  # type: ignore[call-overload]
        return tuple(dict.fromkeys(found))
