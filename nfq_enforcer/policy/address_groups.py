"""Address groups: the prefixes that rules name, grouped by the rules that mean them.

Two prefixes of the same rules have the same meaning in every policy map, so they share one local identity. A rule for a
million prefixes thus has one identity, and one entry in a policy map, unless other rules name some of the prefixes. A
prefix within another belongs to the rules of both, unless ``except`` takes it out of the outer one.

A sweep over the prefixes in the order of their addresses finds the rules of each: those of the prefix that contains it,
with its own, without those that exclude it.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.policy.rules import Rule

_Blocks = frozenset[int]
"""Numbers of address blocks. The blocks of one rule without ``except`` share a number."""


class AddressGroup(NamedTuple):
    """AddressGroup: prefixes in the order of their addresses, and the ids of the rule objects that mean them."""

    prefixes: list[Network]
    rules: frozenset[int]


def group_addresses(
    rules: Iterable[Rule], *, includes_endpoints: bool, apart: Collection[str] = ()
) -> list[AddressGroup]:
    """Return the groups of all prefixes of address blocks, in the order of their first addresses.

    ``includes_endpoints`` selects the kind of block. A prefix with its text in ``apart`` is a group of its own.
    """
    blocks = _NamedBlocks()
    for rule in rules:
        blocks.add(rule, includes_endpoints)
    groups: dict[tuple[frozenset[int], Network | None], AddressGroup] = {}
    meanings: dict[_Blocks, frozenset[int]] = {}
    for network, active in blocks.sweep():
        meaning = meanings.get(active)
        if meaning is None:
            meaning = meanings[active] = frozenset(blocks.rule_of[number] for number in active)
        key = meaning, network if apart and str(network) in apart else None
        group = groups.get(key)
        if group is None:
            group = groups[key] = AddressGroup([], meaning)
        group.prefixes.append(network)
    return list(groups.values())


class _NamedBlocks:
    """NamedBlocks: for each prefix the blocks that begin with it, and those that exclude it."""

    def __init__(self) -> None:
        self.rule_of: dict[int, int] = {}  # number of a block: id of its rule
        self._numbers = count()
        self._begun: dict[Network, tuple[int, ...]] = {}
        self._excluded: dict[Network, tuple[int, ...]] = {}

    def add(self, rule: Rule, includes_endpoints: bool) -> None:
        plain: tuple[int, ...] = ()  # the number of the blocks without exclusions
        for block in rule.address_blocks:
            if block.includes_endpoints is not includes_endpoints:
                continue
            if block.excluded:
                numbers = self._number(rule)
            else:
                numbers = plain = plain or self._number(rule)
            before = self._begun.get(block.prefix)
            self._begun[block.prefix] = numbers if before is None else before + numbers
            for hole in block.excluded:
                self._begun.setdefault(hole, ())
                self._excluded[hole] = self._excluded.get(hole, ()) + numbers

    def _number(self, rule: Rule) -> tuple[int, ...]:
        number = next(self._numbers)
        self.rule_of[number] = id(rule)
        return (number,)

    def sweep(self) -> Iterator[tuple[Network, _Blocks]]:
        """Yield each prefix with the blocks that contain it, in the order of addresses."""
        covers: list[tuple[int, int, _Blocks]] = []  # version, last address, blocks: of prefixes around the current one
        steps: dict[tuple[_Blocks, Sequence[int], Sequence[int]], _Blocks] = {}
        for network in sorted(self._begun, key=position):
            version, first, length = position(network)
            while covers and (covers[-1][0] != version or covers[-1][1] < first):
                covers.pop()
            step = covers[-1][2] if covers else frozenset(), self._begun[network], self._excluded.get(network, ())
            active = steps.get(step)
            if active is None:
                active = steps[step] = step[0].union(step[1]).difference(step[2])
            covers.append((version, first | (1 << (network.max_prefixlen - length)) - 1, active))
            yield network, active


def position(network: Network) -> tuple[int, int, int]:
    """Return the key that sorts prefixes by address, each before those that it contains."""
    return network.version, int(network.network_address), network.prefixlen
