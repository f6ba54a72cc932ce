"""Local identities: the numbers that one node gives to the addresses and port sets that its policy names.

- A *CIDR identity* belongs to prefixes in Cilium policies. It is the identity of every address outside the cluster for
  which one of these prefixes is the longest match. An excluded prefix (``except``) is told apart from the rest of its
  block. Prefixes that the same rules mean share one identity (see ``address_groups``).
- An *ipBlock identity* is the same for ``ipBlock`` of NetworkPolicies, but for every address, those of endpoints and
  nodes included. An address has it in addition to its endpoint's identity, not in place of it.
- A *name identity* belongs to a name or pattern of ``toFQDNs``. An address has the name identities of all patterns that
  match a name of it, in addition to its CIDR identity; workers know the names of addresses (``core.tables.names``).
- A *port set identity* tells apart endpoints of one identity with different named ports, for egress rules to a named
  port.

The numbers are derived in the same way as those of label sets, from the first prefix of a group, and have the bit
``LOCAL``: a stamp never carries them. Docs: decisions/0004, decisions/0015.
"""

from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_network

from nfq_enforcer.core.identity import LOCAL, Identity, derive
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.policy.address_groups import AddressGroup, group_addresses
from nfq_enforcer.policy.rules import NamePeer, PortSet, Rule

_WORLD = Label("reserved", "world", "")
_NONE: frozenset[Identity] = frozenset()


class LocalIdentities:
    """LocalIdentities: the local identities that a set of rules needs, by prefix and by port set."""

    def __init__(
        self, rules: Iterable[Rule], ports: Mapping[Identity, Iterable[PortSet]], named: Collection[str] = ()
    ) -> None:
        """Derive the identities of the rules; ``ports`` are the port sets of the endpoints of each identity.

        ``named``: prefixes that selectors name as a label ``cidr:PREFIX``; each has an identity of its own.
        """
        self._rules = tuple(rule for rule in rules if rule.has_local_peers)  # their ids stay unique
        cidrs = group_addresses(self._rules, includes_endpoints=False, apart=named)
        ip_blocks = group_addresses(self._rules, includes_endpoints=True)
        port_sets = {
            (identity, port_set): _port_set_labels(identity, port_set)
            for identity, of_identity in ports.items()
            if len(distinct := set(of_identity)) > 1
            for port_set in distinct
        }
        cidr_labels = [cidr_label(group.prefixes[0]) for group in cidrs]
        block_labels = [Labels([Label("block", str(group.prefixes[0]), "")]) for group in ip_blocks]
        patterns = {peer.pattern for rule in self._rules for peer in rule.peers or () if isinstance(peer, NamePeer)}
        name_labels = {pattern: Labels([Label("fqdn", pattern, "")]) for pattern in sorted(patterns)}
        derived = derive([*cidr_labels, *block_labels, *port_sets.values(), *name_labels.values()])
        local = {labels: Identity(LOCAL | number) for labels, number in derived.items()}
        numbered = [(group, local[labels]) for group, labels in zip(cidrs, cidr_labels, strict=True)]
        blocks = [(group, local[labels]) for group, labels in zip(ip_blocks, block_labels, strict=True)]
        self.cidr_labels = {labels: local[labels] for labels in cidr_labels}  # selectors find CIDR identities by them
        self.cidr_names = {identity: _name(group) for group, identity in numbered}  # for lists
        self.by_name = {pattern: local[labels] for pattern, labels in name_labels.items()}
        self.name_labels = {local[labels]: labels for labels in name_labels.values()}  # for lists
        self.by_cidr = _by_prefix(numbered)
        self.by_ip_block = _by_prefix(blocks)
        self.by_port_set = {key: local[labels] for key, labels in port_sets.items()}
        self._of_rule = _by_rule([*numbered, *blocks])
        for rule in self._rules if patterns else ():
            names = {self.by_name[peer.pattern] for peer in rule.peers or () if isinstance(peer, NamePeer)}
            self._of_rule[id(rule)] = self.of_rule(rule) | names
        self._lengths = _lengths(self.by_cidr)

    def of_rule(self, rule: Rule) -> frozenset[Identity]:
        """Return the identities of the addresses that a rule names by blocks or names, none for an unknown rule."""
        return self._of_rule.get(id(rule), _NONE)

    def fit(self, rules: Iterable[Rule]) -> bool:
        """Return whether these are the rule objects that the identities were derived for."""
        return list(map(id, self._rules)) == list(map(id, rules))

    def labels_of(self, address: Network) -> Labels | None:
        """Return the labels of the longest prefix of the CIDR identities that contains a network, None without one."""
        for length in self._lengths.get(address.version, ()):
            if length <= address.prefixlen:
                network = address.supernet(new_prefix=length)
                if network in self.by_cidr:
                    return cidr_label(network)
        return None

    def changed_since(self, before: "LocalIdentities") -> set[Identity]:
        """Return the local identities with another meaning than before, and the identities whose port sets changed."""
        of_prefixes = {
            identity
            for now, then in ((self.by_cidr, before.by_cidr), (self.by_ip_block, before.by_ip_block))
            if now != then
            for _, identity in now.items() ^ then.items()
        }
        of_names = {identity for _, identity in self.by_name.items() ^ before.by_name.items()}
        return of_prefixes | of_names | {key[0] for key, _ in self.by_port_set.items() ^ before.by_port_set.items()}


def cidr_label(network: Network) -> Labels:
    """Return the labels of the addresses in a prefix."""
    return Labels((Label("cidr", str(network), ""), _WORLD))


def is_prefix(text: str) -> bool:
    """Return whether the key of a label is a prefix, as in ``cidr:10.0.0.0/8``."""
    try:
        return "/" in text and bool(ip_network(text))
    except ValueError:
        return False


def _name(group: AddressGroup) -> Labels:
    """Return the labels of the first prefix, and the number of the others."""
    labels, more = cidr_label(group.prefixes[0]), len(group.prefixes) - 1
    return labels.union(Labels([Label("cidr", f"and-{more}-more", "")])) if more else labels


_Numbered = Iterable[tuple[AddressGroup, Identity]]


def _by_prefix(groups: _Numbered) -> dict[Network, Identity]:
    return {network: identity for group, identity in groups for network in group.prefixes}


def _by_rule(groups: _Numbered) -> dict[int, frozenset[Identity]]:
    of_rule: dict[int, set[Identity]] = {}
    for group, identity in groups:
        for rule in group.rules:
            of_rule.setdefault(rule, set()).add(identity)
    return {rule: frozenset(identities) for rule, identities in of_rule.items()}


def _lengths(networks: Iterable[Network]) -> dict[int, list[int]]:
    """Return the prefix lengths of each IP version, longest first."""
    lengths: dict[int, set[int]] = {4: set(), 6: set()}
    for network in networks:
        lengths[network.version].add(network.prefixlen)
    return {version: sorted(found, reverse=True) for version, found in lengths.items()}


def _port_set_labels(identity: Identity, port_set: PortSet) -> Labels:
    # The number is the hash of this text: other label names would give other numbers.
    ports = (Label("port", f"{port.name}.{port.proto}", str(port.number)) for port in port_set)
    return Labels((Label("site", str(identity), ""), *ports))
