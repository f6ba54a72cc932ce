"""Results of a verdict: the decision on a packet, and the flow event for the log."""

from typing import NamedTuple

from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.tables.slots import SlotKey
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, Verdict


class DnsMessage(NamedTuple):
    """DNS message: a query or an answer, for the log. Lists are cut to a few dozen entries."""

    is_answer: bool
    name: str  # in lower case, without the trailing dot
    type: int
    rcode: int = 0
    ttl: int = 0  # seconds, the shortest of the addresses
    addresses: tuple[bytes, ...] = ()
    aliases: tuple[str, ...] = ()


class HttpMessage(NamedTuple):
    """HTTP message: a request, or its response with the request's fields, for the log. Texts are printable and cut."""

    is_response: bool
    method: str
    url: str  # http://HOST/PATH, with the query
    protocol: str  # HTTP/1.1
    code: int = 0  # of the response; 0: none yet
    latency_ns: int = 0
    headers: tuple[tuple[str, str], ...] = ()  # of the request, those that rules name
    grpc_status: int | None = None  # None: no gRPC


class TlsMessage(NamedTuple):
    """TLS message: the ClientHello of a connection, for the log. The name is printable and cut."""

    server_name: str  # empty: none


L7Message = DnsMessage | HttpMessage | TlsMessage


class FlowEnd(NamedTuple):
    """End of a flow, with its packets as they arrived at this node's queues."""

    cause: EndCause
    duration: float | None  # s, from its first packet to its last; None: the first packet is not known here
    sent: Traffic  # by the opener
    received: Traffic  # replies


class FlowEvent(NamedTuple):
    """Flow event: a new flow, its end, a message of a flow with layer-7 rules, or a drop, for the log.

    Addresses are bytes, empty for an unreadable packet.
    """

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
    l7: L7Message | None = None
    end: FlowEnd | None = None


class Learned(NamedTuple):
    """Learned: the addresses that a DNS answer gives to the name that a client has asked for, with their TTL in s.

    ``dns.learnable`` tells which of them the name may have.
    """

    client: bytes
    name: str
    addresses: tuple[tuple[bytes, int], ...]


class Decision(NamedTuple):
    """Decision on a packet: the verdict, and its side effects."""

    verdict: Verdict
    payload: bytes | None = None  # the rewritten packet; None: the packet goes on unchanged
    answer: bytes | None = None  # a packet to send back to the sender
    event: FlowEvent | None = None
    learned: tuple[Learned, ...] = ()  # all workers have to know the learnable ones before the packet arrives
    slot: int = 0  # of a packet that is redirected; 0: ``wants`` has none that is open
    wants: SlotKey | None = None
    further: tuple[FlowEvent, ...] = ()  # events of further messages


ACCEPT = Decision(Verdict.ACCEPT)
