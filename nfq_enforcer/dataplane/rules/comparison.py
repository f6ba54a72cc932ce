"""Comparison of the kernel's rules with those of the ruleset: names each difference. Pure.

The wanted state is the text of ``ruleset.render``, the other one the text of ``iptables-save``; ``ruleset`` writes its
rules in the form of iptables-save, so equal rules are equal text. If a version of iptables writes them in another form,
``learn`` records that form, read directly after a change of ours.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from nfq_enforcer.dataplane.rules import ruleset
from nfq_enforcer.dataplane.rules.base_chain import must_follow, place_jump, target

ChainName = tuple[str, str]  # table and chain
Chains = Mapping[ChainName, Sequence[str]]  # the rules of each chain, without ``-A CHAIN``

_SHOWN = 4  # faults of one place in a description


class Fault(NamedTuple):
    """Fault: a difference between the kernel and the ruleset."""

    place: str  # family and table
    text: str


def parse_chains(text: str) -> dict[ChainName, list[str]]:
    """Return the chains of the output of iptables-save or of the input of iptables-restore, with their rules."""
    chains: dict[ChainName, list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chains.setdefault((table, line[1:].split(" ", 1)[0]), [])
        elif line.startswith("-A "):
            _, chain, *rule = line.split(" ", 2)
            chains.setdefault((table, chain), []).append("".join(rule))
        elif line.startswith("-I "):
            _, chain, place, rule_text = line.split(" ", 3)
            chains.setdefault((table, chain), []).insert(int(place) - 1, rule_text)
    return chains


def rule_faults(family: str, saved: Chains, wanted: Chains, forms: Mapping[str, str]) -> Iterator[Fault]:
    """Yield the differences, in jumps first; ``forms`` has the other forms of rules (see ``learn``)."""
    for (table, chain), rules in sorted(wanted.items(), key=lambda item: item[0][1] not in ruleset.HOOKS[item[0][0]]):
        if chain in ruleset.HOOKS[table]:
            others, first = saved.get((table, chain), ()), ruleset.FIRST[table]
            found = (fault for rule in rules if (fault := _jump_fault(chain, rule, others, first=first)))
            yield from (Fault(f"{family} {table}", text) for text in found)
        elif (actual := saved.get((table, chain))) is None:
            yield Fault(f"{family} {table}", f"chain {chain} is missing")
        elif (difference := _chain_difference(actual, [forms.get(rule, rule) for rule in rules])) is not None:
            yield Fault(f"{family} {table}", f"chain {chain} {difference}")


def _jump_fault(base: str, jump: str, rules: Sequence[str], *, first: bool) -> str | None:
    chain = target(jump) or ""
    if not place_jump(base, chain, rules, first=first):
        return None
    if jump not in rules:
        return f"jump from {base} to {chain} is missing"
    return f"jump from {base} to {chain} comes after '{must_follow(rules, chain, first=first)}'"


def _chain_difference(actual: Sequence[str], wanted: Sequence[str]) -> str | None:
    if list(actual) == list(wanted):
        return None
    return (
        count_difference(set(actual), set(wanted), "rules", "other rules") or "has its rules in another order or twice"
    )


def count_difference(actual: Set[Any], wanted: Set[Any], noun: str, others: str) -> str:
    """Return the number of missing and of foreign elements in words, for elements with these names."""
    missing, foreign = len(wanted - actual), len(actual - wanted)
    counts = (f"lacks {missing} of {len(wanted)} {noun}" * bool(missing), f"has {foreign} {others}" * bool(foreign))
    return " and ".join(filter(None, counts))


def learn(saved: Chains, wanted: Chains) -> dict[str, str]:
    """Return the forms in which iptables-save writes rules, where they differ from ours.

    Only a chain with all of its rules counts, each with its target: a change of others is not learned.
    """
    forms: dict[str, str] = {}
    for (table, chain), rules in wanted.items():
        actual = saved.get((table, chain), ())
        if chain not in ruleset.HOOKS[table] and list(map(target, actual)) == list(map(target, rules)):
            forms |= {ours: theirs for ours, theirs in zip(rules, actual, strict=True) if ours != theirs}
    return forms


def describe(faults: Iterable[Fault]) -> str:
    """Return the faults in one line, with the first ones of each place."""
    places: dict[str, list[str]] = {}
    for place, text in faults:
        places.setdefault(place, []).append(text)
    return "; ".join(f"{place}: {', '.join(_shorten(texts))}" for place, texts in places.items())


def _shorten(texts: list[str]) -> list[str]:
    more = len(texts) - _SHOWN
    return [*texts[:_SHOWN], f"{more} more"] if more > 0 else texts
