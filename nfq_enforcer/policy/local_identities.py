"""Local identities: numbers that one node gives to the addresses and port sets that its policy names.

- A *CIDR identity* belongs to a prefix in a Cilium policy. It is the identity of every address outside the cluster for
  which that prefix is the longest match. An excluded prefix (``except``) has an identity of its own, so that its
  addresses are told apart from the rest of the block.
- An *ipBlock identity* is the same for ``ipBlock`` of NetworkPolicies, but for every address, those of endpoints and
  nodes included. An address has it in addition to its endpoint's identity, not in place of it.
- A *port set identity* tells apart endpoints of one identity with different named ports, for egress rules to a named
  port.

The numbers are derived in the same way as those of label sets, and have the bit ``LOCAL``: a stamp never carries them.
Docs: decisions/0004.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from nfq_enforcer.core.identity import LOCAL, Identity, derive
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.core.tables.ipcache import Network
from nfq_enforcer.policy.rules import AddressBlock, PortSet, Rule

_WORLD = Label("reserved", "world", "")


class LocalIdentities:
    """LocalIdentities: the local identities that a set of rules needs, by prefix and by port set."""

    def __init__(self, rules: Iterable[Rule], ports: Mapping[Identity, Iterable[PortSet]]) -> None:
        """Derive the identities of the rules; ``ports`` are the port sets of the endpoints of each identity."""
        blocks = [block for rule in rules for block in rule.address_blocks]
        cidrs = {network: _cidr_labels(network) for network in _prefixes(blocks, includes_endpoints=False)}
        ip_blocks = {
            network: Labels([Label("block", str(network), "")])
            for network in _prefixes(blocks, includes_endpoints=True)
        }
        port_sets = {
            (identity, port_set): _port_set_labels(identity, port_set)
            for identity, of_identity in ports.items()
            if len(distinct := set(of_identity)) > 1
            for port_set in distinct
        }
        derived = derive([*cidrs.values(), *ip_blocks.values(), *port_sets.values()])
        local = {labels: Identity(LOCAL | number) for labels, number in derived.items()}
        self.by_cidr = {network: local[labels] for network, labels in cidrs.items()}
        self.by_ip_block = {network: local[labels] for network, labels in ip_blocks.items()}
        self.by_port_set = {key: local[labels] for key, labels in port_sets.items()}
        self.cidr_labels = {
            labels: local[labels] for labels in cidrs.values()
        }  # selectors find CIDR identities by them

        self._of_block: dict[AddressBlock, frozenset[Identity]] = {}
        self._sorted = {kind: sorted(self._by_prefix(kind), key=_first_address) for kind in (False, True)}
        self._first_addresses = {kind: list(map(_first_address, networks)) for kind, networks in self._sorted.items()}

    def of_block(self, block: AddressBlock) -> frozenset[Identity]:
        """Return the identities of the prefixes that make up an address block."""
        identities = self._of_block.get(block)
        if identities is None:
            by_prefix = self._by_prefix(block.includes_endpoints)
            identities = frozenset(by_prefix[network] for network in self._starting_in(block) if network in block)
            self._of_block[block] = identities
        return identities

    def changed_since(self, before: "LocalIdentities") -> set[Identity]:
        """Return the local identities with another meaning than before, and the identities whose port sets changed."""
        of_prefixes = {
            identity
            for kind in (False, True)
            for _, identity in self._by_prefix(kind).items() ^ before._by_prefix(kind).items()
        }
        return of_prefixes | {key[0] for key, _ in self.by_port_set.items() ^ before.by_port_set.items()}

    def _by_prefix(self, includes_endpoints: bool) -> dict[Network, Identity]:
        return self.by_ip_block if includes_endpoints else self.by_cidr

    def _starting_in(self, block: AddressBlock) -> list[Network]:
        """Return the networks whose first address is in a block: sorted by first address, they are contiguous."""
        addresses = self._first_addresses[block.includes_endpoints]
        first = bisect_left(addresses, _first_address(block.prefix))
        last = bisect_right(addresses, _last_address(block.prefix))
        return self._sorted[block.includes_endpoints][first:last]


def _first_address(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _last_address(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.broadcast_address), network.max_prefixlen


def _prefixes(blocks: Iterable[AddressBlock], *, includes_endpoints: bool) -> set[Network]:
    return {
        network
        for block in blocks
        if block.includes_endpoints is includes_endpoints
        for network in (block.prefix, *block.excluded)
    }


def _cidr_labels(network: Network) -> Labels:
    return Labels((Label("cidr", str(network), ""), _WORLD))


def _port_set_labels(identity: Identity, port_set: PortSet) -> Labels:
    # The number is the hash of this text: other label names would give other numbers.
    ports = (Label("port", f"{port.name}.{port.proto}", str(port.number)) for port in port_set)
    return Labels((Label("site", str(identity), ""), *ports))
