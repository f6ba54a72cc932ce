"""The kernel's rules, as text: which packets go through a queue.

Our chains are in table ``security``, whose hooks come after those of ``filter`` and of DNAT and before those of SNAT.
The verdict of a queue ends the base chain that the packet came from; our jump follows the administrator's rules that
drop or mark packets, so none of these is skipped (docs/decisions/0001-security-table.md, 0011-rules-guard.md). Table
``mangle`` lowers the MSS of TCP connections that cross a cluster interface, to leave room for the stamp. Table
``filter`` accepts packets between the proxy and other hosts: rules of the administrator for packets to and from the
host itself do not know them (docs/decisions/0019-http-by-envoy.md).

Each packet goes through a queue at most once on a node: in INPUT, FORWARD or OUTPUT. Loopback packets do so in OUTPUT.
Packets of known flows and openings have queues of their own (see ``opening_rules``). If the driver has a separate queue
for packets that may be stamped, packets of known flows that leave by a cluster interface go through that one. Each kind
of queue for known flows, and with several workers every kind, is a range, over which the kernel spreads packets by
their addresses (``--queue-balance``, see ``QueueNumbers``). The addresses of an ICMP error differ from those of the
flow that it concerns, so all ICMP errors go to the first worker.

Which packets are those of endpoints is in their packet mark (see ``address_marks``): no rule here names a set, and no
rule changes with the endpoints. Packets in transit, with no end on this node, go through a queue if they may bear a
stamp, and if they go to a remote endpoint and may be translated (docs/decisions/0013-stamps-by-us-or-nobody.md).

In per-flow mode the connmark of a packet's flow is matched before anything else (see ``offload``). The connection of
a helper (an FTP transfer) inherits the connmark of its master: its first packet is RELATED and is queued all the same,
like ICMP errors.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nfq_enforcer.core.wire import stamp
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, all_queues
from nfq_enforcer.dataplane.rules import opening_rules, packet_mark
from nfq_enforcer.dataplane.rules.base_chain import place_jump
from nfq_enforcer.dataplane.rules.link_rules import CLASSIFIED, DISCOVERY, REPORTS, exempt_rules
from nfq_enforcer.dataplane.rules.offload_rules import MARKED, PER_PACKET, SENDER, SIGNED, OffloadRules, PerFlowRules
from nfq_enforcer.dataplane.rules.opening_rules import EXCESS, KNOWN, OPENINGS, QUEUED, Budgets
from nfq_enforcer.dataplane.rules.option_matches import WITH_OPTIONS
from nfq_enforcer.dataplane.rules.packet_mark import FROM_PROXY, TO_PROXY, WAY


class AddressFamily(NamedTuple):
    """Address family: an IP version."""

    version: int
    command: str
    header: int  # bytes of the fixed IP header

    @property
    def label(self) -> str:
        """Return the name of the family for people."""
        return f"IPv{self.version}"


IPV4 = AddressFamily(4, "iptables", 20)
IPV6 = AddressFamily(6, "ip6tables", 40)

PREFIX = "NFQE-"  # of the names of our chains, of every version
QUEUE = "NFQE-QUEUE"  # sends packets to the chains of the queues
_ENTRIES = {"INPUT": "NFQE-INPUT", "FORWARD": "NFQE-FORWARD", "OUTPUT": "NFQE-OUTPUT"}
_MANGLED = {"PREROUTING": "NFQE-MSS-IN", "POSTROUTING": "NFQE-MSS-OUT"}
_PROXIED = {"INPUT": "NFQE-TO-PROXY", "OUTPUT": "NFQE-FROM-PROXY"}
HOOKS = {"security": _ENTRIES, "mangle": _MANGLED, "filter": _PROXIED}
# In table security our verdict ends the base chain, so our jump follows those of the administrator's rules that neither
# accept a packet nor change our bits of the mark (see ``base_chain``). In table mangle nothing of ours ends a base
# chain, or matches the mark, so our jump comes first. In table filter it precedes chains of others, which may drop.
FIRST = {"security": False, "mangle": True, "filter": True}
CHAINS = {
    "security": (*_ENTRIES.values(), MARKED, SIGNED, SENDER, DISCOVERY, REPORTS, QUEUE, *QUEUED),
    "mangle": tuple(_MANGLED.values()),
    "filter": tuple(_PROXIED.values()),
}

_TCP_HEADER, _MAX_TCP_HEADER = 20, 60  # bytes
_SPARE = 8  # bytes
_ICMP = {4: ("icmp", "icmp --icmp-type"), 6: ("ipv6-icmp", "icmp6 --icmpv6-type")}
_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}  # types that ``Packet.error`` classifies as errors


@dataclass(frozen=True)
class Ruleset:
    """Ruleset: the parameters of the rules."""

    queues: Sequence[QueueNumbers]  # of each worker
    fail_open: bool  # packets are accepted while no socket is bound to their queue (else they are dropped)
    cluster_mtus: Mapping[str, int]  # cluster interface: its MTU
    offload: OffloadRules = PER_PACKET
    budgets: Budgets | None = None  # of openings, for each worker
    proxied: bool = False  # connections are redirected to a proxy

    @property
    def unsegmented(self) -> bool:
        """Return whether GSO packets are stamped before the kernel segments them."""
        return self.queues[0].whole != self.queues[0].headers


def render(rules: Ruleset, family: AddressFamily, base_chains: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """Return the input of ``iptables-restore --noflush`` that creates or replaces all chains, and places the jumps.

    ``base_chains`` has the present rules by table and base chain.
    """
    chains = {table: [f":{chain} - [0:0]" for chain in CHAINS[table]] for table in CHAINS}
    jumps = {
        table: [
            line
            for base, chain in HOOKS[table].items()
            for line in place_jump(base, chain, base_chains.get((table, base), ()), first=FIRST[table])
        ]
        for table in HOOKS
    }
    return _tables(
        mangle=[
            *chains["mangle"],
            *_mss_rules(rules, family),
            *jumps["mangle"],
        ],
        security=[
            *chains["security"],
            *_stamp_rules(rules, family),
            *rules.offload.entry_rules(_ENTRIES.values(), KNOWN, family.version),
            *exempt_rules(family.version, _ENTRIES, QUEUE),
            *(f"-A {chain} {CLASSIFIED} -g {QUEUE}" for chain in _ENTRIES.values()),
            *_queue_rules(rules, family),
            *jumps["security"],
        ],
        filter=[*chains["filter"], *_proxy_rules(), *jumps["filter"]] if rules.proxied else [],
    )


def _proxy_rules() -> list[str]:
    """Return the rules that accept packets between the proxy and other hosts.

    Packets to and from a service of this host meet the administrator's rules for it, with the proxy as without.
    """
    accept = "-A {} {} -m addrtype ! --{}-type LOCAL -j ACCEPT"
    return [
        accept.format(_PROXIED["INPUT"], packet_mark.match(TO_PROXY, WAY), "dst"),
        accept.format(_PROXIED["OUTPUT"], packet_mark.match(FROM_PROXY, WAY), "src"),
    ]


def render_epoch(per_flow: PerFlowRules, family: AddressFamily) -> str:
    """Return the input that replaces the rules that match and set connmarks of the epoch in force."""
    return _tables(security=[f":{MARKED} - [0:0]", f":{SIGNED} - [0:0]", *per_flow.epoch_rules(family.version)])


def render_removal(jumps: Iterable[tuple[str, str, str]], chains: Collection[tuple[str, str]]) -> str:
    """Return the input that removes these jumps, by (table, base chain, rule), and chains, by (table, chain).

    Jumps are first, then the rules of all chains, then the chains: a chain with a reference cannot be deleted.
    """
    lines: dict[str, list[str]] = {table: [] for table in HOOKS}
    for table, base, rule in jumps:
        lines[table].append(f"-D {base} {rule}")
    for action in "FX":
        for table, chain in sorted(chains):
            lines[table].append(f"-{action} {chain}")
    return _tables(**lines)


def mss(mtu: int, family: AddressFamily, *, unsegmented: bool) -> int:
    """Return the largest TCP segment, in bytes of data, that fits into the MTU together with a stamp.

    A stamp moves the TCP header of an unsegmented packet. The kernel still reads the length of that header at its old
    offset when it compares the segments with the MTU (skb_gso_transport_seglen, net/core/gso.c), so it may read any
    length, up to the maximum.
    """
    header = _MAX_TCP_HEADER + _SPARE if unsegmented else _TCP_HEADER
    return mtu - family.header - header - stamp.overhead(family.version)


def _stamp_rules(rules: Ruleset, family: AddressFamily) -> list[str]:
    """Return the rules that queue every packet with options, from every source, that leaves by a cluster interface.

    Only the worker can read whether the options contain a stamp, and no stamp but this node's may go to other nodes.
    The rules come before those of offloaded flows: an endpoint may add a stamp to a packet of an offloaded flow.
    """
    match = " ".join(filter(None, (WITH_OPTIONS[family.version], rules.offload.undecided)))
    return [
        f"-A {_ENTRIES[base]} -o {name} {match} -g {QUEUE}"
        for base in ("FORWARD", "OUTPUT")
        for name in sorted(rules.cluster_mtus)
    ]


def _queue_rules(rules: Ruleset, family: AddressFamily) -> list[str]:
    # A conntrack match is needed in any case: it makes the kernel reassemble fragments before our hooks (nf_defrag) and
    # track connections.
    budgets = rules.budgets.times(len(rules.queues)) if rules.budgets else None
    whole = (
        f"-A {KNOWN} -o {name} {_nfqueue(rules, all_queues([queues.whole for queues in rules.queues]))}"
        for name in sorted(rules.cluster_mtus)
        if rules.unsegmented
    )
    return [
        *opening_rules.split_rules(QUEUE, budgets, family.version),
        *whole,
        f"-A {KNOWN} {_nfqueue(rules, all_queues([queues.headers for queues in rules.queues]))}",
        *_opening_queue_rules(rules, family, OPENINGS, [queues.openings for queues in rules.queues]),
        *(opening_rules.excess_rules(budgets) if budgets else ()),
        *_opening_queue_rules(rules, family, EXCESS, [queues.excess for queues in rules.queues]),
    ]


def _opening_queue_rules(rules: Ruleset, family: AddressFamily, chain: str, queues: Sequence[int]) -> list[str]:
    proto, match = _ICMP[family.version]
    errors = _ERRORS[family.version] if len(queues) > 1 else ()
    return [
        *(f"-A {chain} -p {proto} -m {match} {kind} {_nfqueue(rules, queues[:1])}" for kind in errors),
        f"-A {chain} {_nfqueue(rules, queues)}",
    ]


def _nfqueue(rules: Ruleset, numbers: Sequence[int]) -> str:
    """Return the target that spreads packets over queues with consecutive numbers."""
    queues = f"--queue-num {numbers[0]}" if len(numbers) == 1 else f"--queue-balance {numbers[0]}:{numbers[-1]}"
    return f"-j NFQUEUE {queues}{' --queue-bypass' if rules.fail_open else ''}"


def _mss_rules(rules: Ruleset, family: AddressFamily) -> list[str]:
    syn = "-p tcp -m tcp --tcp-flags SYN,RST SYN"
    return [
        f"-A {chain} {side} {name} {syn} -j TCPMSS --set-mss {mss(mtu, family, unsegmented=rules.unsegmented)}"
        for name, mtu in sorted(rules.cluster_mtus.items())
        for chain, side in (("NFQE-MSS-IN", "-i"), ("NFQE-MSS-OUT", "-o"))
    ]


def _tables(**tables: Sequence[str]) -> str:
    return "".join(
        "".join(f"{line}\n" for line in (f"*{table}", *lines, "COMMIT")) for table, lines in tables.items() if lines
    )
