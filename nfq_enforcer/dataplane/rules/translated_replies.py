"""Replies to connections that this host has opened to a translated address, as text: chains that decide them early.

The host connects to an address that its rules translate (DNAT in ``nat`` OUTPUT: the address of a service). Its packets
are decided in OUTPUT, with the address of the server. In INPUT the kernel gives replies the service's address back as
their source (``nat`` INPUT, priority 100). The chains of table ``security`` come before that with iptables-legacy (50),
but after it with the nft backend (150), and no flow has the service's address as its end. So with the nft backend such
replies have chains of their own, between table ``filter`` and that translation: the first one gives them a class, the
second one queues them, and table ``security`` lets them pass (``address_marks``).

A reply belongs to a known connection, so it goes to the queues for known flows; no connmark offloads it. An ICMP error
goes to the openings of the first worker, as all ICMP errors do (``ruleset``).
"""

from collections.abc import Collection, Sequence

from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, all_queues
from nfq_enforcer.dataplane.rules import connmark
from nfq_enforcer.dataplane.rules.filter_table import FAMILIES, Chain, QueueRule
from nfq_enforcer.dataplane.rules.packet_mark import (
    FROM_ENDPOINT,
    FROM_REPLIER,
    MASK,
    NFT,
    OF_PROCESS,
    REQUEST,
    TO_ENDPOINT,
    WAY,
)

_REPLY = 'ct status dnat ct direction reply iifname != "lo"'
_KNOWN, _ERRORS = "translated_known", "translated_errors"  # chains with a rule that queues
_MARK, _QUEUE = 98, 99  # right before NF_IP_PRI_NAT_SRC
_CLEAR = f"meta mark set meta mark & {~(MASK | WAY) & 0xFFFFFFFF:#x}"


def are_late(security: Collection[int]) -> bool:
    """Return whether replies reach table security without their own source; ``security``: its priorities.

    If only one IP family has the nft backend, which no distribution sets up, its replies stay as they are.
    """
    return set(security) == {NFT}


def decided_rule() -> str:
    """Return the rule of the chain before table security, in INPUT, for replies that were decided here."""
    return f"{_REPLY} goto decided"


def chains(exempt: Sequence[str], *, uses_marks: bool) -> dict[str, Chain]:
    """Return the chains; ``exempt``: matches of replies without a class, ``uses_marks``: flows have connmarks of ours.

    The worker learns from the mark which end of a flow with a connmark sent a packet (``offload_rules``).
    """
    hook = "type filter hook input priority {}; policy accept;"
    once_offloaded = (
        f"ct state established ct mark & {connmark.MASK:#x} != 0 meta mark set meta mark | {FROM_REPLIER:#x}"
    )
    return {
        "translated": Chain(
            "",
            [
                _CLEAR,
                f"ct mark & {connmark.OF_PROCESS:#x} != 0 {_set(OF_PROCESS | FROM_ENDPOINT)}",
                *(f"{match} accept" for match in exempt),
                *(f"{ip} saddr @ends{version} {_set(FROM_ENDPOINT)}" for version, ip in FAMILIES),
                f"iifname @end_interfaces {_set(FROM_ENDPOINT)}",
                *(f"{ip} daddr @ends{version} {_set(TO_ENDPOINT)}" for version, ip in FAMILIES),
            ],
        ),
        _KNOWN: Chain("", []),
        _ERRORS: Chain("", []),
        "undecided": Chain(
            "",
            [
                f"meta mark & {MASK:#x} == 0 accept",
                f"meta mark & {REQUEST:#x} != 0 accept",  # by its verdict, which has repeated the hook
                f"ct state related goto {_ERRORS}",
                *([once_offloaded] if uses_marks else []),
                f"goto {_KNOWN}",
            ],
        ),
        "decided": Chain("", [f"meta mark & {REQUEST:#x} != 0 accept", _CLEAR]),
        "mark_translated": Chain(hook.format(_MARK), [f"{_REPLY} goto translated"]),
        "queue_translated": Chain(hook.format(_QUEUE), [f"{_REPLY} goto undecided"]),
    }


def queue_rules(queues: Sequence[QueueNumbers], *, bypass: bool) -> tuple[QueueRule, ...]:
    """Return the rules that queue, for the queues of each worker."""
    known = all_queues([each.headers for each in queues])
    return QueueRule(_KNOWN, known[0], len(known), bypass), QueueRule(_ERRORS, queues[0].openings, 1, bypass)


def _set(bits: int) -> str:
    return f"meta mark set meta mark | {bits:#x} accept"
