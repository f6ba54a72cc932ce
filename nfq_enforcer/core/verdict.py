"""What is said of a packet: verdicts, directions and the reasons for a drop.

Names follow Hubble's ``flow.proto`` (cilium/cilium, api/v1/flow) where it has one for the same thing, so that tools
made for Hubble read ours; reasons that only exist here (the stamp's) have names of their own.
"""

from enum import Enum, StrEnum


class Verdict(Enum):
    """The word given to the kernel for one packet."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    OFFLOAD_OPENER = "OFFLOAD_OPENER"  # accept; what the flow's opener sends from here on, the kernel passes by itself
    OFFLOAD_FLOW = "OFFLOAD_FLOW"  # accept; from here on the kernel passes all of the flow by itself
    REQUEUE_WHOLE = "REQUEUE_WHOLE"  # to a queue that copies all of a packet; it is decided when it comes from there
    REQUEUE_SEGMENTED = "REQUEUE_SEGMENTED"  # to a queue where it comes in segments, their checksums finished
    REQUEUE_NEXT = "REQUEUE_NEXT"  # to the next worker, who may know the flow that it is about


class FlowVerdict(StrEnum):
    """The word given to a reader of the log for one flow or drop."""

    FORWARDED = "FORWARDED"
    DROPPED = "DROPPED"
    AUDIT = "AUDIT"


class Direction(StrEnum):
    """The side of an endpoint that a packet passes: into it or out of it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class DropReason(StrEnum):
    """Why a packet was dropped; the value is the name, ``description`` the sentence."""

    description: str

    def __new__(cls, name: str, description: str) -> "DropReason":
        """Make a member whose value is the name, with its sentence beside it."""
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
    STAMP_UNTRUSTED = "STAMP_UNTRUSTED", "it bears a stamp but came from an interface where stamps are not believed"
    STAMP_MALFORMED = "STAMP_MALFORMED", "its stamp has a wrong length or unknown flags"
    STAMP_DUPLICATE = "STAMP_DUPLICATE", "it bears more than one stamp"
    STAMP_VERSION = "STAMP_VERSION", "its stamp has a version that this node does not know"
    STAMP_IDENTITY = "STAMP_IDENTITY", "its stamp names an identity that never travels"
    STAMP_MISSING = "STAMP_MISSING", "a reply from an endpoint of another node came without that node's stamp"
    STAMP_NO_ROOM = "STAMP_NO_ROOM", "its header has no room left for the stamp"
    FRAG_NEEDED = "FRAG_NEEDED", "with its stamp it exceeds the MTU and it must not be fragmented; the sender was told"
    PAYLOAD_TOO_LONG = "PAYLOAD_TOO_LONG", "it is longer than the queue can copy, so it cannot be stamped"
    INTERNAL_ERROR = "INTERNAL_ERROR", "the engine failed on it; this is a bug"


class PacketError(Exception):
    """A packet that cannot be judged; ``reason`` says why. Raised in core only, caught in ``Enforcer.decide``."""

    def __init__(self, reason: DropReason) -> None:
        """Keep the reason; it is all there is to say."""
        super().__init__(reason.description)
        self.reason = reason
