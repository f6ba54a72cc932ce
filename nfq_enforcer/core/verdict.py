"""Verdicts, directions and drop reasons.

Names follow Hubble's ``flow.proto`` (cilium/cilium, api/v1/flow) where it has one for the same thing, so that tools
made for Hubble read ours; reasons that exist only here (for stamps) have names of their own.
"""

from enum import Enum, StrEnum


class Verdict(Enum):
    """Verdict: the instruction to the kernel for one packet."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    OFFLOAD_OPENER = "OFFLOAD_OPENER"  # accept; the kernel passes the opener's further packets
    OFFLOAD_FLOW = "OFFLOAD_FLOW"  # accept; the kernel passes all further packets of the flow
    REQUEUE_WHOLE = "REQUEUE_WHOLE"  # to the queue that copies complete packets; decided when it arrives from there
    REQUEUE_SEGMENTED = "REQUEUE_SEGMENTED"  # to the queue that delivers segments with finished checksums
    REDIRECT = "REDIRECT"  # to a slot of the proxy
    UNDECIDED = "UNDECIDED"  # not redirected: it goes on to the hook at which it is decided
    REQUEUE_NEXT = "REQUEUE_NEXT"  # to the next worker, which may know the related flow


class FlowVerdict(StrEnum):
    """Flow verdict: the verdict of one flow or drop in the log."""

    FORWARDED = "FORWARDED"
    DROPPED = "DROPPED"
    AUDIT = "AUDIT"
    TRACED = "TRACED"  # the end of a flow, which is no decision
    REDIRECTED = "REDIRECTED"  # this one and the following come from streams of Hubble's only
    TRANSLATED = "TRANSLATED"
    ERROR = "ERROR"
    UNKNOWN = "VERDICT_UNKNOWN"


class Direction(StrEnum):
    """Direction of a packet, seen from an endpoint."""

    INGRESS = "ingress"
    EGRESS = "egress"


class DropReason(StrEnum):
    """Drop reason; the value is its name, ``description`` its sentence."""

    description: str

    def __new__(cls, name: str, description: str) -> "DropReason":
        """Make a member with the name as value, and its sentence."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.description = description
        return member

    POLICY_DENIED = "POLICY_DENIED", "no rule allows it"
    POLICY_DENY = "POLICY_DENY", "a deny rule forbids it"
    INVALID_PACKET = "INVALID_PACKET", "the packet's headers are malformed"
    FRAG_NOT_SUPPORTED = "FRAG_NOT_SUPPORTED", "a fragment reached the queue before the kernel reassembled it"
    INVALID_SOURCE_IP = "INVALID_SOURCE_IP", "the source address does not belong to the interface it came from"
    CT_NO_MATCH = "CT_NO_MATCH", "it belongs to no known connection and cannot open one"
    NO_ENDPOINT = "NO_ENDPOINT", "neither end is an endpoint of this node (any more)"
    STAMP_UNTRUSTED = "STAMP_UNTRUSTED", "it bears a stamp but came from an interface where stamps are not trusted"
    STAMP_MALFORMED = "STAMP_MALFORMED", "its stamp has a wrong length or unknown flags"
    STAMP_DUPLICATE = "STAMP_DUPLICATE", "it bears more than one stamp"
    STAMP_VERSION = "STAMP_VERSION", "its stamp has a version that this node does not know"
    STAMP_IDENTITY = "STAMP_IDENTITY", "its stamp names an identity that never travels"
    INVALID_IDENTITY = "INVALID_IDENTITY", "its stamp names an identity that nobody in the cluster has"
    STAMP_MISSING = "STAMP_MISSING", "a reply from an endpoint of another node came without that node's stamp"
    STAMP_NO_ROOM = "STAMP_NO_ROOM", "its header has no room left for the stamp"
    FRAG_NEEDED = (
        "FRAG_NEEDED",
        "with its stamp it exceeds the MTU and it must not be fragmented; its sender was informed",
    )
    DNS_REFUSED = "DNS_REFUSED", "no DNS rule allows the name that it queries; its sender was answered REFUSED"
    DNS_MALFORMED = "DNS_MALFORMED", "DNS rules apply to it, and it is no well-formed DNS message with one question"
    DNS_UNSOLICITED = "DNS_UNSOLICITED", "it is a DNS answer to a question that its flow has not asked"
    DNS_SEGMENT = (
        "DNS_SEGMENT",
        "DNS rules apply to it, and it is no segment of whole queries, or of an answer, in the order of its connection",
    )
    DNS_NOT_LEARNED = (
        "DNS_NOT_LEARNED",
        "not all workers learned the addresses of this DNS answer in time",
    )
    HTTP_REFUSED = "HTTP_REFUSED", "no HTTP rule allows the request; its client was answered 403"
    HTTP_MALFORMED = "HTTP_MALFORMED", "the proxy does not accept the form of the request; its client was answered 400"
    TLS_REFUSED = "TLS_REFUSED", "no rule allows the server name of its TLS handshake; its client was disconnected"
    TLS_MALFORMED = (
        "TLS_MALFORMED",
        "server names apply to it, and it does not begin with a complete TLS handshake; its client was disconnected",
    )
    PROXY_MISSING = (
        "PROXY_MISSING",
        "HTTP rules or server names apply to it, and no proxy runs on this node to check them",
    )
    PROXY_SLOT = "PROXY_SLOT", "it is not of a connection that the proxy of this node has for these ends"
    UNKNOWN_PROCESS = (
        "UNKNOWN_PROCESS",
        "it is of a process with an identity, and its socket belongs to no process endpoint of this node",
    )
    PROCESS_L7 = "PROCESS_L7", "layer-7 rules apply to it, which cannot be checked for process endpoints"
    PAYLOAD_TOO_LONG = "PAYLOAD_TOO_LONG", "it is longer than the queue can copy, so it cannot be stamped"
    INTERNAL_ERROR = "INTERNAL_ERROR", "the engine failed on it; this is a bug"


class PacketError(Exception):
    """Packet that cannot be accepted, for a drop reason. Raised in core only, caught in ``Enforcer.slow_path``."""

    def __init__(self, reason: DropReason) -> None:
        """Keep the reason; its description is the message."""
        super().__init__(reason.description)
        self.reason = reason
