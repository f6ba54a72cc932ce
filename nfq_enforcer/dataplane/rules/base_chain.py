"""Position of our jumps in base chains: before every rule of others by which a packet could skip them.

A rule that can end the base chain with ACCEPT takes enforcement away from the packets that it matches, if it precedes
our jump: ``ACCEPT`` itself, ``RETURN`` (the policy of the chain follows), a jump to a chain of others, a queue of
others. Targets that drop the packet, or after which the base chain goes on (``LOG``, ``SECMARK``), may precede it.
Where our chains match the packet mark, a rule that changes our bits of it must follow our jump as well.
"""

import shlex
from collections.abc import Sequence

from nfq_enforcer.dataplane.rules import packet_mark

_DROPPING = ("DROP", "REJECT")
_CONTINUING = (
    *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "LED"),
    *("LOG", "MARK", "NFLOG", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL"),
    "ULOG",
)
_HARMLESS = frozenset((*_DROPPING, *_CONTINUING))


def target(rule: str) -> str | None:
    """Return the target of a rule in the form of iptables-save, None for a rule that only counts packets."""
    words = shlex.split(rule)  # a comment, quoted, is one word
    places = [place for place, word in enumerate(words[:-1]) if word in ("-j", "-g")]
    return words[places[-1] + 1] if places else None


def can_accept(rule: str) -> bool:
    """Return whether the rule can end its base chain with ACCEPT; an unknown target can."""
    try:
        name = target(rule)
    except ValueError:  # quotes that do not end
        return True
    return name is not None and name not in _HARMLESS


def changes_mark(rule: str) -> bool:
    """Return whether the rule, in the form of iptables-save, can change our bits of the packet mark."""
    try:
        words = shlex.split(rule)
    except ValueError:
        return True
    name = target(rule)
    if name == "MARK":
        return _names_our_bits(words, "--set-xmark")
    if name == "CONNMARK":
        return "--restore-mark" in words and _names_our_bits(words, "--nfmask")
    return name == "HMARK" or (name == "SET" and "--map-mark" in words)


def _names_our_bits(words: Sequence[str], option: str) -> bool:
    """Return whether one of the numbers of an option, value or mask, has bits of ours; without any, all bits count."""
    try:
        numbers = [int(number, 0) for number in words[words.index(option) + 1].split("/")]
    except (ValueError, IndexError):
        return True
    return any(number & packet_mark.MASK for number in numbers)


def must_follow(rules: Sequence[str], chain: str, *, first: bool) -> str | None:
    """Return the first rule of a base chain that must follow our jump; ``first``: our chain matches no mark."""
    others = (rule for rule in rules if rule != f"-j {chain}")
    return next((rule for rule in others if can_accept(rule) or (not first and changes_mark(rule))), None)


def place_jump(base: str, chain: str, rules: Sequence[str], *, first: bool) -> list[str]:
    """Return the lines for ``iptables-restore --noflush`` that put the jump from a base chain into its place.

    ``rules`` are those that the base chain has; no line means that the jump is in its place. An absent jump becomes the
    first rule, or with ``first=False`` the last one before a rule that must follow it. Deletion and insertion are in
    one transaction of iptables-restore, so no packet meets the chain without the jump.
    """
    jump = f"-j {chain}"
    following = must_follow(rules, chain, first=first)
    end = len(rules) if following is None else rules.index(following)
    if jump in rules[:end]:
        return []
    surplus = [f"-D {base} {jump}"] * rules.count(jump)
    if first:
        return [*surplus, f"-I {base} 1 {jump}"]
    return [*surplus, f"-A {base} {jump}" if end == len(rules) else f"-I {base} {end + 1} {jump}"]
