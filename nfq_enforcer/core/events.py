"""Results of a verdict: the decision on a packet, and the flow event for the log."""

from typing import NamedTuple

from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict


class FlowEvent(NamedTuple):
    """Flow event: a new flow or a drop, for the log. Addresses are bytes, empty for an unreadable packet."""

    time: float  # on the clock of ``decide``'s ``now``
    verdict: FlowVerdict
    reason: DropReason | None
    direction: Direction  # the side that decided; for a flow that both sides allow: ingress
    opening: Opening  # the evaluated opening of the flow; for other drops: the packet's own addresses and ports
    tcp_flags: int
    is_reply: bool
    allowed_by: tuple[RuleRef, ...] = ()  # the rules that allow the flow
    enforced_by: tuple[RuleRef, ...] = ()  # the rules that enforce the direction in which no rule allows the flow
    denied_by: tuple[RuleRef, ...] = ()  # the deny rules that match the flow


class Decision(NamedTuple):
    """Decision on a packet: the verdict, and its side effects."""

    verdict: Verdict
    payload: bytes | None = None  # the rewritten packet; None: the packet goes on unchanged
    answer: bytes | None = None  # a packet to send back to the sender
    event: FlowEvent | None = None


ACCEPT = Decision(Verdict.ACCEPT)
