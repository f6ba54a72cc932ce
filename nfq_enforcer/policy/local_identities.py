"""Local identities: numbers that one node gives to what policy says of addresses instead of labels.

- A *CIDR* that a Cilium policy names is the identity of every address that is nobody's and has no longer prefix among
  them; holes (``except``) have numbers too, so that an address in a hole is told apart.
- A *block* is the same for ``ipBlock`` of NetworkPolicies, but of every address, endpoints' and nodes' among them. It
  stands beside the identity of who has the address, not in its place.
- A *site* tells endpoints of one identity apart whose named ports differ, for rules of egress to a named port.

Numbers are derived as those of labels are, and have a bit that keeps them off the wire. Docs: decisions/0004.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from nfq_enforcer.core.identity import LOCAL, Identity, derive
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.policy.rules import Block, Network, PortSet, Rule

_WORLD = Label("reserved", "world", "")


class LocalIdentities:
    """The local identities that a set of rules needs."""

    def __init__(self, rules: Iterable[Rule], ports: Mapping[Identity, Iterable[PortSet]]) -> None:
        """Take the rules and the named ports that endpoints of each identity have."""
        blocks = [block for rule in rules for block in rule.blocks]
        cidrs = {network: _cidr_labels(network) for network in _prefixes(blocks, everybody=False)}
        others = {network: Labels([Label("block", str(network), "")]) for network in _prefixes(blocks, everybody=True)}
        sites = {
            (identity, names): _site_labels(identity, names)
            for identity, found in ports.items()
            if len(distinct := set(found)) > 1
            for names in distinct
        }
        numbers = derive([*cidrs.values(), *others.values(), *sites.values()])
        local = {labels: Identity(LOCAL | number) for labels, number in numbers.items()}
        self.cidrs = {network: local[labels] for network, labels in cidrs.items()}
        self.blocks = {network: local[labels] for network, labels in others.items()}
        self.sites = {site: local[labels] for site, labels in sites.items()}
        self.labels = {labels: local[labels] for labels in cidrs.values()}  # by which selectors find them

        self._of: dict[Block, frozenset[Identity]] = {}
        self._sorted = {every: sorted(self._made(every), key=_place) for every in (False, True)}
        self._places = {every: list(map(_place, networks)) for every, networks in self._sorted.items()}

    def of(self, block: Block) -> frozenset[Identity]:
        """Return the numbers that a block of addresses is made of."""
        found = self._of.get(block)
        if found is None:
            numbers = self._made(block.everybody)
            found = self._of[block] = frozenset(numbers[net] for net in self._near(block) if net in block)
        return found

    def changed_since(self, before: "LocalIdentities") -> set[Identity]:
        """Return the numbers that mean something else than before, and the identities whose sites do."""
        prefixes = {
            number for every in (False, True) for _, number in self._made(every).items() ^ before._made(every).items()
        }
        return prefixes | {site[0] for site, _ in self.sites.items() ^ before.sites.items()}

    def _made(self, everybody: bool) -> dict[Network, Identity]:
        return self.blocks if everybody else self.cidrs

    def _near(self, block: Block) -> list[Network]:
        """Return the networks that begin in a block: in order of their beginnings they stand together."""
        places = self._places[block.everybody]
        first, last = bisect_left(places, _place(block.prefix)), bisect_right(places, _end(block.prefix))
        return self._sorted[block.everybody][first:last]


def _place(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _end(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.broadcast_address), network.max_prefixlen


def _prefixes(blocks: Iterable[Block], *, everybody: bool) -> set[Network]:
    return {net for block in blocks if block.everybody is everybody for net in (block.prefix, *block.holes)}


def _cidr_labels(network: Network) -> Labels:
    return Labels((Label("cidr", str(network), ""), _WORLD))


def _site_labels(identity: Identity, names: PortSet) -> Labels:
    ports = (Label("port", f"{port.name}.{port.proto}", str(port.number)) for port in names)
    return Labels((Label("site", str(identity), ""), *ports))
