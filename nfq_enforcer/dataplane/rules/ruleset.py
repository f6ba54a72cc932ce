"""The kernel's rules, as text: which packets meet the queue.

Our chains hang in table ``security``, whose hooks lie behind those of ``filter`` and of DNAT and before SNAT's. The
verdict of a queue ends the base chain that the packet came from; here no rule of the administrator comes after it,
so none is skipped (docs/decisions/0001-security-table.md). Table ``mangle`` lowers the MSS of TCP connections that
cross a cluster interface, to leave room for the stamp.

Each packet meets a queue at most once on a node: in INPUT, FORWARD or OUTPUT. Loopback is judged in OUTPUT. Where the
driver has a queue of its own for packets that may be stamped, those that leave by a cluster interface meet that one.
Of several workers there is a row of queues of either kind, over which the kernel spreads packets by their addresses.
An ICMP error has other addresses than the flow that it is about, so all of them meet the first worker.

Where the kernel shall pass established flows by itself, it looks at the mark of a packet's flow before all else
(see ``marks``). A connection that belongs to another one (an FTP transfer) inherits its mark: the first packet is
RELATED, and so it is judged all the same, like ICMP errors.

What the host itself says to the store, and what that answers, meets no queue: policy for the host as an endpoint must
not cut the agent off what it learns policy from. Endpoints behind the host have no such way.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.rules import connmark

Service = tuple[IPv4Address | IPv6Address, int]
"""An address, and a port of TCP there."""


class AddressFamily(NamedTuple):
    """One of the two IP families, with the words that iptables and ipset have for it."""

    version: int
    command: str
    ipset: str  # the set of the addresses of local endpoints
    store: str  # the set of addresses and ports where the store is
    ipset_family: str
    header: int  # bytes of the fixed IP header


IPV4 = AddressFamily(4, "iptables", "nfqe-local4", "nfqe-store4", "inet", 20)
IPV6 = AddressFamily(6, "ip6tables", "nfqe-local6", "nfqe-store6", "inet6", 40)

QUEUE = "NFQE-QUEUE"  # hands over to the queues
ERRORS = "NFQE-ERRORS"  # hands ICMP errors over to the first worker
SOURCES = "NFQE-SOURCE"  # one rule for each endpoint's interface, against forged source addresses
_MARKED = "NFQE-MARKED"  # passes packets of flows that have been judged in this epoch
_SIGNED = "NFQE-SIGNED"  # marks the flows of packets whose verdict says so
_TOLD = "NFQE-TOLD"  # signs packets of flows that have had a mark, for us to know
_ENDS = "NFQE-ENDS"  # whether an end of the packet is a local endpoint
_ICMPV6 = "NFQE-ICMPV6"  # lets pass what IPv6 itself needs
_JUDGED = {"INPUT": "NFQE-INPUT", "FORWARD": "NFQE-FORWARD", "OUTPUT": "NFQE-OUTPUT"}
_UNMARK = "NFQE-UNMARK"  # takes off what packets that this host sends may bear of our own marks
_MANGLED = {"PREROUTING": "NFQE-MSS-IN", "POSTROUTING": "NFQE-MSS-OUT", "OUTPUT": _UNMARK}
HOOKS = {"security": _JUDGED, "mangle": _MANGLED}
# Behind what the administrator has in the table that ends with our verdict; before what may end the one that does not.
_JUMP = {"security": "-A {} -j {}", "mangle": "-I {} 1 -j {}"}
CHAINS = {
    "security": (*_JUDGED.values(), _MARKED, _SIGNED, _TOLD, _ICMPV6, _ENDS, SOURCES, QUEUE, ERRORS),
    "mangle": tuple(_MANGLED.values()),
}

_TCP_HEADER, _LONGEST_TCP_HEADER = 20, 60
_SPARE = 8
_NEIGHBOUR_DISCOVERY = (133, 134, 135, 136, 137)  # RFC 4861; valid only with hop limit 255, so never forwarded
_LISTENER_DISCOVERY = (130, 131, 132, 143)  # RFC 3810; link-local too, with hop limit 1
_ICMP = {4: ("icmp", "icmp --icmp-type"), 6: ("ipv6-icmp", "icmp6 --icmpv6-type")}
_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}  # what ``Packet.error`` takes for one


@dataclass(frozen=True)
class Ruleset:
    """What the rules depend on."""

    queues: Sequence[QueueNumbers]  # of each worker
    fail_open: bool  # with nobody bound to the queues, packets pass (else they are dropped)
    cluster_mtus: Mapping[str, int]  # cluster interface: its MTU
    epoch: int | None = None  # of the marks that are in force; None: every packet is judged

    @property
    def uncut(self) -> bool:
        """Say whether large pieces of data are stamped before they are cut into segments."""
        return self.queues[0].stamped != self.queues[0].judged


def render(
    rules: Ruleset, family: AddressFamily, interfaces: Iterable[str], hooked: Collection[tuple[str, str]]
) -> str:
    """Return the input of ``iptables-restore --noflush`` that brings all chains into place.

    ``interfaces`` are those of local endpoints. ``hooked`` has the (table, base chain) pairs whose jump is there.
    """
    chains = {table: [f":{chain} - [0:0]" for chain in CHAINS[table]] for table in CHAINS}
    unused = {_UNMARK} if rules.epoch is None else set()
    jumps = {
        table: [
            _JUMP[table].format(base, chain)
            for base, chain in HOOKS[table].items()
            if (table, base) not in hooked and chain not in unused
        ]
        for table in HOOKS
    }
    return _tables(
        mangle=[*chains["mangle"], *_unmark(rules), *_clamps(rules, family), *jumps["mangle"]],
        security=[
            *chains["security"],
            *_pass_marked(rules),
            *_judged(family),
            *_sources(interfaces),
            *_queue(rules, family),
            *jumps["security"],
        ],
    )


def render_exemption(family: AddressFamily) -> str:
    """Return the input that brings only the store's exemption into place, where nothing of ours is yet.

    No packet is queued by it. But the kernel begins to keep its record of connections, so that one which is opened
    now is known, later, to be one that this host has opened.
    """
    chains = _JUDGED["INPUT"], _JUDGED["OUTPUT"]
    jumps = [_JUMP["security"].format(base, _JUDGED[base]) for base in ("INPUT", "OUTPUT")]
    return _tables(security=[*(f":{chain} - [0:0]" for chain in chains), *_exempt(family), *jumps])


def render_sources(interfaces: Iterable[str]) -> str:
    """Return the input that replaces only the rules of the endpoints' interfaces."""
    return _tables(security=[f":{SOURCES} - [0:0]", *_sources(interfaces)])


def render_epoch(epoch: int | None) -> str:
    """Return the input by which only marks of this epoch are in force, or none, and are given to flows."""
    return _tables(security=[f":{_MARKED} - [0:0]", f":{_SIGNED} - [0:0]", *_of_epoch(epoch)])


def render_removal(hooked: Collection[tuple[str, str]], chains: Collection[tuple[str, str]]) -> str:
    """Return the input that removes the jumps and (table, chain) pairs that are there."""
    return _tables(
        **{
            table: [
                *(f"-D {base} -j {chain}" for base, chain in HOOKS[table].items() if (table, base) in hooked),
                *(f"-{action} {chain}" for action in "FX" for chain in CHAINS[table] if (table, chain) in chains),
            ]
            for table in HOOKS
        }
    )


def render_set(family: AddressFamily, addresses: Iterable[str]) -> str:
    """Return the input of ``ipset restore`` that makes the set of local endpoints hold just these addresses."""
    return _replaced(family.ipset, f"hash:ip family {family.ipset_family} maxelem 1048576", addresses)


def render_store(family: AddressFamily, services: Iterable[Service]) -> str:
    """Return the input of ``ipset restore`` that exempts just those of these services that the family can reach."""
    members = (f"{address},tcp:{port}" for address, port in services if address.version == family.version)
    return _replaced(family.store, f"hash:ip,port family {family.ipset_family}", members)


def mss(mtu: int, family: AddressFamily, *, uncut: bool) -> int:
    """Return the largest TCP segment, in bytes of data, that fits into the MTU together with a stamp.

    When a stamp has moved the TCP header of an uncut piece, the kernel holds its segments against the MTU by what now
    stands where that header began (skb_gso_transport_seglen, net/core/gso.c). It may take it for one of any length.
    """
    header = _LONGEST_TCP_HEADER + _SPARE if uncut else _TCP_HEADER
    return mtu - family.header - header - stamp.overhead(family.version)


def _replaced(name: str, kind: str, members: Iterable[str]) -> str:
    """Return the input that makes a set hold just these members at once, whether it is there or not."""
    fresh = f"{name}-new"
    lines = [
        f"create {name} {kind} -exist",
        f"create {fresh} {kind} -exist",
        f"flush {fresh}",
        *(f"add {fresh} {member}" for member in members),
        f"swap {fresh} {name}",
        f"destroy {fresh}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _exempt(family: AddressFamily) -> list[str]:
    """Return the rules for connections that the host itself opens to the store; what opens one to it is judged."""
    store = f"-m set --match-set {family.store}"
    return [
        f"-A NFQE-OUTPUT -p tcp {store} dst,dst -m conntrack --ctdir ORIGINAL -j RETURN",
        f"-A NFQE-INPUT -p tcp {store} src,src -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN",
    ]


def _pass_marked(rules: Ruleset) -> list[str]:
    """Return the rules for flows that the kernel passes by itself, and those that tell of their packets if it does not.

    To be told of, a flow must have been answered: then its packets have a direction that nobody could have made up.
    """
    if rules.epoch is None:
        return []
    told = f"-A {_TOLD} -m conntrack --ctstate ESTABLISHED --ctdir {{}} -j MARK --set-xmark {{:#x}}/{connmark.FIELD:#x}"
    return [
        *(f"-A {chain} -j {_MARKED}" for chain in _JUDGED.values()),
        *_of_epoch(rules.epoch),
        f"-A {QUEUE} -j MARK --set-xmark 0/{connmark.FIELD:#x}",
        f"-A {QUEUE} -m connmark ! --mark 0/{connmark.MASK:#x} -j {_TOLD}",
        told.format("ORIGINAL", connmark.FROM_OPENER),
        told.format("REPLY", connmark.FROM_REPLIER),
    ]


def _of_epoch(epoch: int | None) -> list[str]:
    """Return the rules that only the epoch in force is known to; None: none is, and every packet is judged.

    A packet whose verdict asks for a mark ends its way here. What is asked for in another epoch is given without power:
    so that the flow is known to have been judged.
    """
    passing, given = [], []
    if epoch is not None:
        match = f"-A {_MARKED} -m connmark --mark {{:#x}}/{connmark.MASK:#x} -m conntrack --ctstate {{}} -j ACCEPT"
        passing = [
            match.format(connmark.of_flow(epoch), "ESTABLISHED"),
            match.format(connmark.of_opener(epoch), "NEW,ESTABLISHED --ctdir ORIGINAL"),
        ]
        connmarks = f"-j CONNMARK --set-xmark {{:#x}}/{connmark.MASK:#x}"
        signs = f"-A {_SIGNED} -m mark --mark {{:#x}}/{connmark.FIELD:#x} {connmarks}"
        given = [
            signs.format(connmark.sign(Verdict.OFFLOAD_FLOW, epoch), connmark.of_flow(epoch)),
            signs.format(connmark.sign(Verdict.OFFLOAD_OPENER, epoch), connmark.of_opener(epoch)),
        ]
    return [
        *passing,
        f"-A {_MARKED} -m mark --mark {connmark.SIGNED:#x}/{connmark.SIGNED:#x} -g {_SIGNED}",
        f"-A {_SIGNED} -j CONNMARK --set-xmark {connmark.EARLIER:#x}/{connmark.MASK:#x}",
        *given,
        f"-A {_SIGNED} -j MARK --set-xmark 0/{connmark.FIELD:#x}",
        f"-A {_SIGNED} -j ACCEPT",
    ]


def _unmark(rules: Ruleset) -> list[str]:
    """Return the rules that keep our marks of packets to ourselves.

    What comes, or is sent here by who may mark his packets (SO_MARK), must not look like what has had its verdict; what
    leaves shall not show what we were told by.
    """
    off = f"-m mark ! --mark 0/{connmark.FIELD:#x} -j MARK --set-xmark 0/{connmark.FIELD:#x}"
    return [] if rules.epoch is None else [f"-A {chain} {off}" for chain in _MANGLED.values()]


def _judged(family: AddressFamily) -> list[str]:
    """Return the rules that lead to the queue; ``-g`` so that the end of a chain leaves all of ours."""
    local = f"-m set --match-set {family.ipset}"
    link_local = [f"-A {chain} -p ipv6-icmp -g {_ICMPV6}" for chain in ("NFQE-INPUT", "NFQE-OUTPUT")]
    return [
        *_exempt(family),
        "-A NFQE-INPUT -i lo -j RETURN",
        *(link_local if family is IPV6 else ()),
        *(f"-A {chain} -g {_ENDS}" for chain in _JUDGED.values()),
        *(_discovery() if family is IPV6 else ()),
        f"-A {_ENDS} {local} src -j {QUEUE}",
        f"-A {_ENDS} {local} dst -j {QUEUE}",
        f"-A {_ENDS} -g {SOURCES}",
    ]


def _discovery() -> list[str]:
    """Neighbour and listener discovery: without them IPv6 does not work, and no policy speaks of them."""
    types = [(number, 255) for number in _NEIGHBOUR_DISCOVERY] + [(number, 1) for number in _LISTENER_DISCOVERY]
    return [
        *(
            f"-A {_ICMPV6} -p ipv6-icmp -m icmp6 --icmpv6-type {number} -m hl --hl-eq {hops} -j RETURN"
            for number, hops in types
        ),
        f"-A {_ICMPV6} -g {_ENDS}",
    ]


def _sources(interfaces: Iterable[str]) -> list[str]:
    return [f"-A {SOURCES} -i {interface} -j {QUEUE}" for interface in sorted(set(interfaces))]


def _queue(rules: Ruleset, family: AddressFamily) -> list[str]:
    # The state match matches everything: it is there because it has the kernel reassemble fragments before our hooks
    # and keep its own record of connections.
    every_state = "-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED"
    stamped = (
        f"-A {QUEUE} -o {name} {_nfqueue(rules, [queues.stamped for queues in rules.queues])}"
        for name in sorted(rules.cluster_mtus)
        if rules.uncut
    )
    judged = f"-A {QUEUE} {every_state} {_nfqueue(rules, [queues.judged for queues in rules.queues])}"
    return [*(_errors(rules, family) if len(rules.queues) > 1 else ()), *stamped, judged]


def _errors(rules: Ruleset, family: AddressFamily) -> list[str]:
    proto, match = _ICMP[family.version]
    first = _nfqueue(rules, [rules.queues[0].judged])
    return [
        *(f"-A {ERRORS} -p {proto} -m {match} {kind} {first}" for kind in _ERRORS[family.version]),
        f"-A {QUEUE} -p {proto} -j {ERRORS}",
    ]


def _nfqueue(rules: Ruleset, row: Sequence[int]) -> str:
    """Return the target that spreads packets over queues with numbers in a row."""
    where = f"--queue-num {row[0]}" if len(row) == 1 else f"--queue-balance {row[0]}:{row[-1]}"
    return f"-j NFQUEUE {where}{' --queue-bypass' if rules.fail_open else ''}"


def _clamps(rules: Ruleset, family: AddressFamily) -> list[str]:
    syn = "-p tcp -m tcp --tcp-flags SYN,RST SYN"
    return [
        f"-A {chain} {side} {name} {syn} -j TCPMSS --set-mss {mss(mtu, family, uncut=rules.uncut)}"
        for name, mtu in sorted(rules.cluster_mtus.items())
        for chain, side in (("NFQE-MSS-IN", "-i"), ("NFQE-MSS-OUT", "-o"))
    ]


def _tables(**tables: Sequence[str]) -> str:
    return "".join(
        "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT")) for table, lines in tables.items() if lines
    )
