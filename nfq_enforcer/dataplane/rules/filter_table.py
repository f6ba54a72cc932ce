"""Tables of nftables, as text: sets, chains, and the comparison with the kernel's tables. Pure.

iptables cannot see an interface's packets before fragments are joined, and a rule of it that names a set cannot be
restored on a host without the set. So the table of family ``inet`` has all sets of ours. Its chains drop packets with a
forged source (``source_filter``) and mark packets by their addresses for the rules of iptables (``address_marks``). A
table of the same name, of family ``bridge``, checks the source of frames at the ports of bridges. Further chains
redirect connections to the proxy (``redirect_rules``).

No chain changes with the endpoints: addresses and interfaces are members of sets, so a change costs as much as itself.
Each rule has a comment with a checksum of its text, by which ``structure_faults`` recognizes it in the form of every
version of nft.
"""

import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any, NamedTuple

from nfq_enforcer.dataplane.rules.comparison import Fault, count_difference

FAMILY, BRIDGE, NAME = "inet", "bridge", "nfq_enforcer"
TABLE = f"{FAMILY} {NAME}"
PLACE = f"table {TABLE}"
_COMMENT = re.compile(r'comment "(\w+)"$')

Member = str | tuple[str, str]
Members = Mapping[str, frozenset[Member]]
"""Members: of each set to which only we add any."""

FAMILIES = ((4, "ip"), (6, "ip6"))  # IP versions, with their names in matches


class Chain(NamedTuple):
    """Chain: its hook (empty for a chain that others jump to), and its rules."""

    hook: str
    rules: list[str]


class QueueRule(NamedTuple):
    """Queue rule: the only rule of a chain, which spreads packets over queues with consecutive numbers."""

    chain: str
    first: int
    number: int
    bypass: bool  # packets pass while no socket is bound to their queue (else they are dropped)

    @property
    def text(self) -> str:
        """Return the rule, for its checksum."""
        return f"NFQUEUE {self.first}:{self.first + self.number - 1}{' bypass' if self.bypass else ''}"


class SocketRule(NamedTuple):
    """Socket rule: packets with a socket of a cgroup, or of one below it, continue in a chain."""

    target: str  # the chain
    level: int = 0  # of the cgroup below the root of cgroup2; 0: every packet
    cgroup: int = 0  # its number

    @property
    def text(self) -> str:
        """Return the rule, for its checksum."""
        return f"socket cgroupv2 level {self.level} {self.cgroup} goto {self.target}"


@dataclass(frozen=True)
class Content:
    """Content of the table."""

    sets: Mapping[str, str]  # declaration of each set or map
    chains: Mapping[str, Chain]  # a chain follows those that it jumps to
    members: Members  # the kernel adds those of other sets
    family: str = FAMILY
    queue_rules: tuple[QueueRule, ...] = ()  # of chains without other rules, made by ``made_rules.replace``
    socket_rules: Mapping[str, tuple[SocketRule, ...]] = field(
        default_factory=dict
    )  # by chain, of chains without others
    timeouts: Mapping[str, str] = field(default_factory=dict)  # declaration of each object of kind ``ct timeout``

    @property
    def table(self) -> str:
        """Return family and name of the table, as nft writes them."""
        return f"{self.family} {NAME}"

    @property
    def place(self) -> str:
        """Return the place of faults in the table."""
        return f"table {self.table}"

    @property
    def made_rules(self) -> dict[str, tuple[QueueRule | SocketRule, ...]]:
        """Return the rules that nft cannot write, by chain; such a chain has no others."""
        return {**{rule.chain: (rule,) for rule in self.queue_rules}, **self.socket_rules}

    def changed(self, members: Members) -> "Content":
        """Return the same table with these members in place of those of the same sets."""
        return replace(self, members={**self.members, **members})


def render_structure(wanted: Content) -> str:
    """Return the input of ``nft -f`` that creates sets and chains, or restores them, in one transaction.

    Chains that exist are filled anew and not replaced: with a base chain the kernel drops all packets that wait in a
    queue (nf_queue_nf_hook_drop, net/netfilter/nf_queue.c). nft refuses it if a set or chain of the same name is of
    another kind.
    """
    made = wanted.made_rules
    lines = (
        f"add table {wanted.table}",
        *(f"add ct timeout {wanted.table} {name} {{ {text} }}" for name, text in wanted.timeouts.items()),
        *(f"add {kind(text)} {wanted.table} {name} {{ {text} }}" for name, text in wanted.sets.items()),
        *(f"add chain {wanted.table} {name} {{ {chain.hook} }}" for name, chain in wanted.chains.items()),
        *(f"flush chain {wanted.table} {name}" for name in wanted.chains if name not in made),
        *(
            f'add rule {wanted.table} {name} {rule} comment "{tag(rule)}"'
            for name, chain in wanted.chains.items()
            for rule in chain.rules
        ),
    )
    return "".join(f"{line}\n" for line in lines)


def render_replacement(wanted: Content) -> str:
    """Return the input of ``nft -f`` that replaces any table of this name by one without members."""
    return f"add table {wanted.table}\ndelete table {wanted.table}\n{render_structure(wanted)}"


def render_base_chain(wanted: Content, name: str) -> str:
    """Return the input of ``nft -f`` that adds a base chain, or deletes it if the wanted table has none of the name.

    The kernel puts the chain before all others of its hook and priority.
    """
    chain = wanted.chains.get(name)
    if chain is None:
        return f"delete chain {wanted.table} {name}\n"
    lines = (
        f"add chain {wanted.table} {name} {{ {chain.hook} }}",
        f"flush chain {wanted.table} {name}",
        *(f'add rule {wanted.table} {name} {rule} comment "{tag(rule)}"' for rule in chain.rules),
    )
    return "".join(f"{line}\n" for line in lines)


class MemberChange(NamedTuple):
    """Member change: the members that sets lose and receive."""

    gone: Members
    added: Members

    def __bool__(self) -> bool:
        """Return whether a set changes."""
        return bool(self.gone or self.added)


def member_change(old: Content, new: Content) -> MemberChange:
    """Return the change of the members from one content to another, with the sets that differ only."""
    differing = [name for name, members in new.members.items() if members != old.members[name]]
    gone = {name: old.members[name] - new.members[name] for name in differing}
    return MemberChange(gone, {name: new.members[name] - old.members[name] for name in differing})


def render_change(new: Content, change: MemberChange) -> str:
    """Return the input of ``nft -f`` that makes a change, to the members of this content."""
    # Ranges that overlap, an old one and a new one, cannot be exchanged one by one.
    ranges = [name for name in change.gone if "interval" in new.sets[name]]
    lines = (
        *_elements("delete", new, {name: members for name, members in change.gone.items() if name not in ranges}),
        *(f"flush set {new.table} {name}" for name in ranges),
        *_elements("add", new, {**change.added, **{name: new.members[name] for name in ranges}}),
    )
    return "".join(f"{line}\n" for line in lines)


def render_members(wanted: Content, names: Collection[str]) -> str:
    """Return the input of ``nft -f`` that replaces the members of these sets in one transaction.

    It is apart from the structure, because nft needs the square of its time for both in one transaction.
    """
    lines = (
        *(f"flush {kind(wanted.sets[name])} {wanted.table} {name}" for name in names),
        *_elements("add", wanted, {name: wanted.members[name] for name in names}),
    )
    return "".join(f"{line}\n" for line in lines)


def _elements(action: str, wanted: Content, members: Members) -> Iterator[str]:
    for name, each in members.items():
        if each:
            quoted = "ifname" in wanted.sets[name]
            between = " : " if kind(wanted.sets[name]) == "map" else " . "
            elements = sorted(_element(one, between, quoted=quoted) for one in each)
            yield f"{action} element {wanted.table} {name} {{ {', '.join(elements)} }}"


def kind(declaration: str) -> str:
    """Return the word of nft for a set, or for a map, whose members have two parts: a key and its value."""
    return "map" if " : " in declaration else "set"


def _element(member: Member, between: str, *, quoted: bool) -> str:
    """Return a member as nft reads it; ``quoted``: its first part is the name of an interface."""
    first, *rest = (member,) if isinstance(member, str) else member
    return between.join((f'"{first}"' if quoted else first, *rest))


def tag(rule: str) -> str:
    """Return the comment of a rule, by which ``structure_faults`` recognizes it."""
    return f"{zlib.crc32(rule.encode()):08x}"


def structure_faults(listed: str, wanted: Content) -> Iterator[Fault]:
    """Yield the differences in chains and sets, from ``nft -n -y -t list ruleset``.

    The options of nft: with numbers (``-n``), also as priorities (``-y``), and without members (``-t``). In JSON some
    versions write a table that is switched off with random bytes.
    """
    table = re.search(rf"^table {wanted.table} {{\n(.*?)^}}", listed, re.MULTILINE | re.DOTALL)
    if table is None:
        yield Fault(wanted.place, "is missing")
        return
    if re.search(r"^\tflags .*dormant", table[1], re.MULTILINE):
        yield Fault(wanted.place, "is switched off")
    found = dict(re.findall(r"^\tchain (\S+) {\n(.*?)^\t}", table[1], re.MULTILINE | re.DOTALL))
    made = {name: [rule.text for rule in rules] for name, rules in wanted.made_rules.items()}
    for name, (hook, rules) in wanted.chains.items():
        lines = [line.strip() for line in found.get(name, "").splitlines()]
        actual_hook = lines.pop(0) if lines and lines[0].startswith("type ") else ""
        if name not in found:
            yield Fault(wanted.place, f"chain {name} is missing")
        elif actual_hook != hook:
            yield Fault(wanted.place, f"chain {name} has another hook")
        elif [_COMMENT.findall(line) for line in lines] != [[tag(rule)] for rule in (*rules, *made.get(name, ()))]:
            yield Fault(wanted.place, f"chain {name} has other rules")
    hooked = (name for name, text in found.items() if text.startswith("\t\ttype ") and name not in wanted.chains)
    yield from (Fault(wanted.place, f"chain {name} is none of this version") for name in hooked)
    sets = set(re.findall(r"^\t((?:set|map) \S+) {", table[1], re.MULTILINE))
    named = (f"{kind(text)} {name}" for name, text in wanted.sets.items())
    yield from (Fault(wanted.place, f"{one} is missing") for one in named if one not in sets)


def member_fault(name: str, listed: str | None, wanted: frozenset[Member], place: str = PLACE) -> Fault | None:
    """Return the difference in a set, from ``nft -j list set``, or in a map; None is no set."""
    if listed is None:
        return Fault(place, f"set {name} is missing")
    found = frozenset(map(_member, _listed_elements(listed)))
    if found != wanted:
        found, wanted = frozenset(map(_canonical, found)), frozenset(map(_canonical, wanted))
    text = count_difference(found, wanted, "members", "others")
    return Fault(place, f"set {name} {text}") if text else None


def _listed_elements(listed: str) -> list[Any]:
    objects = (one.get("set") or one.get("map") or {} for one in json.loads(listed)["nftables"])
    return [element for one in objects for element in one.get("elem", ())]


def _member(element: Any) -> Member:
    if isinstance(element, list):  # of a map
        first, second = element
        return str(first), str(second)
    if isinstance(element, dict) and "concat" in element:
        first, second = element["concat"]
        return str(first), "-".join(map(str, second["range"])) if isinstance(second, dict) else str(second)
    if isinstance(element, dict) and "prefix" in element:
        return "{addr}/{len}".format(**element["prefix"])
    return json.dumps(element) if isinstance(element, dict) else str(element)


def _canonical(member: Member) -> Member:
    """Return a member in one notation: two versions of nft may write an address differently."""
    if isinstance(member, tuple):
        return str(_canonical(member[0])), str(_canonical(member[1]))
    try:
        return str(ip_network(member))
    except ValueError:  # a port, the name of an interface
        return member


def read_counters(listed: str) -> dict[str, int]:
    """Return the packets that each member of a set has counted, from ``nft -j list set``."""
    elements = (element["elem"] for element in _listed_elements(listed))
    return {str(element["val"]): int(element["counter"]["packets"]) for element in elements}
