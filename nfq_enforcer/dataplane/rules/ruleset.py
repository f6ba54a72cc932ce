"""The kernel's rules, as text: which packets go through a queue.

Our chains are in table ``security``, whose hooks come after those of ``filter`` and of DNAT and before those of SNAT.
The verdict of a queue ends the base chain that the packet came from; our jump follows the administrator's rules that
drop or mark packets, so none of these is skipped (docs/decisions/0001-security-table.md, 0011-rules-guard.md). Table
``mangle`` lowers the MSS of TCP connections that cross a cluster interface, to leave room for the stamp.

Each packet goes through a queue at most once on a node: in INPUT, FORWARD or OUTPUT. Loopback packets do so in OUTPUT.
If the driver has a separate queue for packets that may be stamped, packets that leave by a cluster interface go through
that one. With several workers, each kind of queue is a range, over which the kernel spreads packets by their addresses
(``--queue-balance``). The addresses of an ICMP error differ from those of the flow that it concerns, so all ICMP errors
go to the first worker.

In per-flow mode the connmark of a packet's flow is matched before anything else (see ``offload``). The connection of
a helper (an FTP transfer) inherits the connmark of its master: its first packet is RELATED and is queued all the same,
like ICMP errors.

Connections from the host itself to the store, and their replies, go through no queue: a policy for the host as an
endpoint must not cut the agent off from its source of policy. Endpoints behind the host have no such exemption.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from nfq_enforcer.core.wire import stamp
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.rules.base_chain import place_jump
from nfq_enforcer.dataplane.rules.offload_rules import MARKED, PER_PACKET, SENDER, SIGNED, OffloadRules, PerFlowRules

Service = tuple[IPv4Address | IPv6Address, int]
"""Service: an address and a TCP port."""


class AddressFamily(NamedTuple):
    """Address family: an IP version, with its names in iptables and ipset."""

    version: int
    command: str
    ipset: str  # name of the set with the addresses of local endpoints
    store: str  # name of the set with the addresses and ports of the store
    ipset_family: str
    header: int  # bytes of the fixed IP header

    @property
    def label(self) -> str:
        """Return the name of the family for people."""
        return f"IPv{self.version}"


IPV4 = AddressFamily(4, "iptables", "nfqe-local4", "nfqe-store4", "inet", 20)
IPV6 = AddressFamily(6, "ip6tables", "nfqe-local6", "nfqe-store6", "inet6", 40)

LOCAL_TYPE, STORE_TYPE = "hash:ip", "hash:ip,port"  # of the sets

QUEUE = "NFQE-QUEUE"  # sends packets to the queues
ERRORS = "NFQE-ERRORS"  # sends ICMP errors to the first worker
SOURCES = "NFQE-SOURCE"  # one rule for each endpoint's interface, against forged source addresses
_ENDS = "NFQE-ENDS"  # matches packets from or to a local endpoint
_ICMPV6 = "NFQE-ICMPV6"  # exempts neighbour and listener discovery
_ENTRIES = {"INPUT": "NFQE-INPUT", "FORWARD": "NFQE-FORWARD", "OUTPUT": "NFQE-OUTPUT"}
_UNMARK = "NFQE-UNMARK"  # clears our bits in the packet marks of locally sent packets
_MANGLED = {"PREROUTING": "NFQE-MSS-IN", "POSTROUTING": "NFQE-MSS-OUT", "OUTPUT": _UNMARK}
HOOKS = {"security": _ENTRIES, "mangle": _MANGLED}
# In table security our verdict ends the base chain, so our jump follows those of the administrator's rules that cannot
# accept a packet (see ``base_chain``). In table mangle nothing of ours ends a base chain, so our jump comes first.
_FIRST = {"security": False, "mangle": True}
CHAINS = {
    "security": (*_ENTRIES.values(), MARKED, SIGNED, SENDER, _ICMPV6, _ENDS, SOURCES, QUEUE, ERRORS),
    "mangle": tuple(_MANGLED.values()),
}

_TCP_HEADER, _MAX_TCP_HEADER = 20, 60  # bytes
_SPARE = 8  # bytes
_NEIGHBOUR_DISCOVERY = (133, 134, 135, 136, 137)  # RFC 4861; valid only with hop limit 255, so never forwarded
_LISTENER_DISCOVERY = (130, 131, 132, 143)  # RFC 3810; link-local as well, with hop limit 1
_ICMP = {4: ("icmp", "icmp --icmp-type"), 6: ("ipv6-icmp", "icmp6 --icmpv6-type")}
# IPv4: a header of more than 5 words. IPv6: a Destination Options header, also after other extension headers.
_OPTIONS = {4: '-m u32 --u32 "0x0>>0x18&0xf=0x6:0xf"', 6: "-m ipv6header --header dst --soft"}
_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}  # types that ``Packet.error`` classifies as errors


@dataclass(frozen=True)
class Ruleset:
    """Ruleset: the parameters of the rules."""

    queues: Sequence[QueueNumbers]  # of each worker
    fail_open: bool  # packets are accepted while no socket is bound to their queue (else they are dropped)
    cluster_mtus: Mapping[str, int]  # cluster interface: its MTU
    offload: OffloadRules = PER_PACKET

    @property
    def unsegmented(self) -> bool:
        """Return whether GSO packets are stamped before the kernel segments them."""
        return self.queues[0].whole != self.queues[0].headers


def render(
    rules: Ruleset,
    family: AddressFamily,
    interfaces: Iterable[str],
    base_chains: Mapping[tuple[str, str], Sequence[str]],
) -> str:
    """Return the input of ``iptables-restore --noflush`` that creates or replaces all chains, and places the jumps.

    ``interfaces`` are those of local endpoints. ``base_chains`` has the present rules by table and base chain.
    """
    chains = {table: [f":{chain} - [0:0]" for chain in CHAINS[table]] for table in CHAINS}
    unused = set() if rules.offload.uses_marks else {_UNMARK}
    jumps = {
        table: [
            line
            for base, chain in HOOKS[table].items()
            if chain not in unused
            for line in place_jump(base, chain, base_chains.get((table, base), ()), first=_FIRST[table])
        ]
        for table in HOOKS
    }
    return _tables(
        mangle=[
            *chains["mangle"],
            *rules.offload.cleanup_rules(_MANGLED.values()),
            *_mss_rules(rules, family),
            *jumps["mangle"],
        ],
        security=[
            *chains["security"],
            *_stamp_rules(rules, family),
            *rules.offload.entry_rules(_ENTRIES.values(), QUEUE),
            *_match_rules(family),
            *_source_rules(interfaces),
            *_queue_rules(rules, family),
            *jumps["security"],
        ],
    )


def render_exemption(family: AddressFamily) -> str:
    """Return the input that creates only the exemption of the store, on a host without rules of ours.

    It queues no packet. But its conntrack matches make the kernel track connections, so that one that the host opens
    now has its direction (``--ctdir``) recorded when the other rules follow.
    """
    chains = _ENTRIES["INPUT"], _ENTRIES["OUTPUT"]
    jumps = [f"-A {base} -j {_ENTRIES[base]}" for base in ("INPUT", "OUTPUT")]
    return _tables(security=[*(f":{chain} - [0:0]" for chain in chains), *_exemption_rules(family), *jumps])


def render_sources(interfaces: Iterable[str]) -> str:
    """Return the input that replaces only the rules of the endpoints' interfaces."""
    return _tables(security=[f":{SOURCES} - [0:0]", *_source_rules(interfaces)])


def render_epoch(per_flow: PerFlowRules) -> str:
    """Return the input that replaces the rules that match and set connmarks of the epoch in force."""
    return _tables(security=[f":{MARKED} - [0:0]", f":{SIGNED} - [0:0]", *per_flow.epoch_rules()])


def render_removal(hooked: Sequence[tuple[str, str]], chains: Collection[tuple[str, str]]) -> str:
    """Return the input that removes these jumps, by (table, base chain), and these chains, by (table, chain).

    A jump that occurs several times in a base chain is in ``hooked`` as often.
    """
    return _tables(
        **{
            table: [
                *(
                    f"-D {base} -j {chain}"
                    for base, chain in HOOKS[table].items()
                    for _ in range(hooked.count((table, base)))
                ),
                *(f"-{action} {chain}" for action in "FX" for chain in CHAINS[table] if (table, chain) in chains),
            ]
            for table in HOOKS
        }
    )


def render_set(family: AddressFamily, addresses: Iterable[str]) -> str:
    """Return the input of ``ipset restore`` that replaces the set of local endpoints' addresses."""
    return _replace_set(family.ipset, f"{LOCAL_TYPE} family {family.ipset_family} maxelem 1048576", addresses)


def render_store(family: AddressFamily, services: Iterable[Service]) -> str:
    """Return the input of ``ipset restore`` that replaces the set of exempt services by those of this family."""
    return _replace_set(family.store, f"{STORE_TYPE} family {family.ipset_family}", store_members(family, services))


def store_members(family: AddressFamily, services: Iterable[Service]) -> list[str]:
    """Return the members of this family's set of exempt services."""
    return [f"{address},tcp:{port}" for address, port in services if address.version == family.version]


def mss(mtu: int, family: AddressFamily, *, unsegmented: bool) -> int:
    """Return the largest TCP segment, in bytes of data, that fits into the MTU together with a stamp.

    A stamp moves the TCP header of an unsegmented packet. The kernel still reads the length of that header at its old
    offset when it compares the segments with the MTU (skb_gso_transport_seglen, net/core/gso.c), so it may read any
    length, up to the maximum.
    """
    header = _MAX_TCP_HEADER + _SPARE if unsegmented else _TCP_HEADER
    return mtu - family.header - header - stamp.overhead(family.version)


def _replace_set(name: str, kind: str, members: Iterable[str]) -> str:
    """Return the input that creates a set with these members, or replaces its members at once (``swap``)."""
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


def _exemption_rules(family: AddressFamily) -> list[str]:
    """Return the rules for connections from the host itself to the store; connections from the store are queued."""
    store = f"-m set --match-set {family.store}"
    return [
        f"-A NFQE-OUTPUT -p tcp {store} dst,dst -m conntrack --ctdir ORIGINAL -j RETURN",
        f"-A NFQE-INPUT -p tcp {store} src,src -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN",
    ]


def _stamp_rules(rules: Ruleset, family: AddressFamily) -> list[str]:
    """Return the rules that queue every packet with options, from every source, that leaves by a cluster interface.

    Only the worker can read whether the options contain a stamp, and no stamp but this node's may go to other nodes.
    The rules come before those of offloaded flows: an endpoint may add a stamp to a packet of an offloaded flow.
    """
    match = " ".join(filter(None, (_OPTIONS[family.version], rules.offload.undecided)))
    return [
        f"-A {_ENTRIES[base]} -o {name} {match} -g {QUEUE}"
        for base in ("FORWARD", "OUTPUT")
        for name in sorted(rules.cluster_mtus)
    ]


def _match_rules(family: AddressFamily) -> list[str]:
    """Return the rules that select packets for a queue; ``-g``, so that the end of a chain leaves all of ours."""
    local = f"-m set --match-set {family.ipset}"
    link_local = [f"-A {chain} -p ipv6-icmp -g {_ICMPV6}" for chain in ("NFQE-INPUT", "NFQE-OUTPUT")]
    return [
        *_exemption_rules(family),
        "-A NFQE-INPUT -i lo -j RETURN",
        *(link_local if family is IPV6 else ()),
        *(f"-A {chain} -g {_ENDS}" for chain in _ENTRIES.values()),
        *(_discovery_rules() if family is IPV6 else ()),
        f"-A {_ENDS} {local} src -j {QUEUE}",
        f"-A {_ENDS} {local} dst -j {QUEUE}",
        f"-A {_ENDS} -g {SOURCES}",
    ]


def _discovery_rules() -> list[str]:
    """Return the rules that exempt neighbour and listener discovery: IPv6 needs them, and no policy covers them."""
    types = [(number, 255) for number in _NEIGHBOUR_DISCOVERY] + [(number, 1) for number in _LISTENER_DISCOVERY]
    return [
        *(
            f"-A {_ICMPV6} -p ipv6-icmp -m icmp6 --icmpv6-type {number} -m hl --hl-eq {hops} -j RETURN"
            for number, hops in types
        ),
        f"-A {_ICMPV6} -g {_ENDS}",
    ]


def _source_rules(interfaces: Iterable[str]) -> list[str]:
    return [f"-A {SOURCES} -i {interface} -j {QUEUE}" for interface in sorted(set(interfaces))]


def _queue_rules(rules: Ruleset, family: AddressFamily) -> list[str]:
    # This match matches every packet. It is needed because a conntrack match makes the kernel reassemble fragments
    # before our hooks (nf_defrag) and track connections.
    every_state = "-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED"
    whole = (
        f"-A {QUEUE} -o {name} {_nfqueue(rules, [queues.whole for queues in rules.queues])}"
        for name in sorted(rules.cluster_mtus)
        if rules.unsegmented
    )
    headers = f"-A {QUEUE} {every_state} {_nfqueue(rules, [queues.headers for queues in rules.queues])}"
    return [*(_error_rules(rules, family) if len(rules.queues) > 1 else ()), *whole, headers]


def _error_rules(rules: Ruleset, family: AddressFamily) -> list[str]:
    proto, match = _ICMP[family.version]
    first = _nfqueue(rules, [rules.queues[0].headers])
    return [
        *(f"-A {ERRORS} -p {proto} -m {match} {kind} {first}" for kind in _ERRORS[family.version]),
        f"-A {QUEUE} -p {proto} -j {ERRORS}",
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
