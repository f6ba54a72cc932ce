"""Process rules, as text: chains of nftables that classify packets by sockets of process endpoints.

Many processes share the addresses of this host, so a set of addresses cannot tell which of them sends or receives a
packet. The kernel finds the socket of each packet and the cgroup in which the socket was made (the expression
``socket cgroupv2``, Linux 5.13). In INPUT it looks a listener up as well. Rules with the numbers of cgroups
(``SocketRule``) are made by netlink: nft writes paths, and refuses a whole file if one of them does not exist.

Sockets of connections that open or end have no cgroup (SYN-ACK, TIME-WAIT). So the first packet of a connection sets a
bit of its connmark, by which all others are classified. A new connection under old ports starts without the bit.

A packet to this host itself passes OUTPUT and INPUT. It is decided in OUTPUT if its sender is a process endpoint, or
its connection has the bit; otherwise in INPUT, by the socket of its receiver. Its mark tells the second hook.

Without process endpoints the two chains of ``SWITCHES`` are empty, and no packet meets any of these rules.
"""

from collections.abc import Iterable

from nfq_enforcer.cluster.replica import Cgroup
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.dataplane.rules.filter_table import FAMILIES, Chain, SocketRule
from nfq_enforcer.dataplane.rules.packet_mark import DECIDED, MASK, OF_PROCESS, SENT_BY_PROCESS, WAY

SWITCH_IN, SWITCH_OUT = "switch_in", "switch_out"  # the chains to which packets of the host jump first
_SOCKETS_IN, _SOCKETS_OUT = "sockets_in", "sockets_out"
_UNMARKED = ~(MASK | WAY) & 0xFFFFFFFF
_KNOWN = f"ct mark & {connmark.OF_PROCESS:#x} != 0"
_BEGIN = f"ct state new {_KNOWN} ct mark set ct mark & {~connmark.OF_PROCESS & 0xFFFFFFFF:#x}"


def _classify(way: int) -> list[str]:
    return [
        f"meta mark & {WAY:#x} != 0 drop",  # of the proxy: it cannot check the requests of a process
        f"ct mark set ct mark | {connmark.OF_PROCESS:#x}",
        f"meta mark set meta mark & {_UNMARKED:#x} | {way:#x}",
    ]


def chains() -> dict[str, Chain]:
    """Return the chains, which follow those of the classes of ``address_marks``."""
    return {
        "from_process": Chain("", [*_classify(SENT_BY_PROCESS), "jump from_endpoint", "accept"]),
        "of_process": Chain("", [*_classify(OF_PROCESS), "jump from_endpoint", "accept"]),
        "to_process": Chain(
            "",
            [
                *_classify(OF_PROCESS),
                *(f"{ip} saddr @ends{version} jump from_endpoint" for version, ip in FAMILIES),
                "iifname @end_interfaces jump from_endpoint",
                f"meta mark & {MASK:#x} == 0 jump to_endpoint",
                "accept",
            ],
        ),
        _SOCKETS_IN: Chain("", []),
        _SOCKETS_OUT: Chain("", []),
        "processes_in": Chain(
            "",
            [
                f'iifname "lo" meta mark & {WAY:#x} == {DECIDED:#x} meta mark set meta mark & {_UNMARKED:#x} return',
                _BEGIN,
                f"{_KNOWN} goto to_process",
                f"jump {_SOCKETS_IN}",
            ],
        ),
        "processes_out": Chain("", [_BEGIN, f"jump {_SOCKETS_OUT}", f"{_KNOWN} goto of_process"]),
        SWITCH_IN: Chain("", []),
        SWITCH_OUT: Chain("", []),
    }


def clear_chain(others: int) -> Chain:
    """Return the chain that clears the mark of a packet with a class; ``others``: the bits that stay."""
    of_process = f"meta mark & {OF_PROCESS:#x} == {OF_PROCESS:#x}"  # sent by one, or not
    return Chain(
        "",
        [
            f'oifname "lo" meta mark & {WAY:#x} == 0 meta mark set meta mark & {others:#x} | {DECIDED:#x} accept',
            f'{of_process} oifname "lo" meta mark set meta mark & {_UNMARKED:#x} | {DECIDED:#x} accept',
            f"{of_process} meta mark set meta mark & {_UNMARKED:#x} accept",
            f"meta mark set meta mark & {others:#x}",
        ],
    )


def socket_rules(cgroups: Iterable[Cgroup]) -> dict[str, tuple[SocketRule, ...]]:
    """Return the rules that classify packets with sockets of these cgroups, and of those below them, by chain."""
    wanted = sorted(cgroups)
    return {
        _SOCKETS_IN: tuple(SocketRule("to_process", *cgroup) for cgroup in wanted),
        _SOCKETS_OUT: tuple(SocketRule("from_process", *cgroup) for cgroup in wanted),
        SWITCH_IN: (SocketRule("processes_in"),) if wanted else (),
        SWITCH_OUT: (SocketRule("processes_out"),) if wanted else (),
    }
