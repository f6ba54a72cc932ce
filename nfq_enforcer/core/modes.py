"""Modes of operation, by the words of the configuration. String enumerations: a member equals its word."""

from enum import StrEnum


class Datapath(StrEnum):
    """Extent of the verdict loop's work: every packet, or the packets of flows that are not established."""

    PER_PACKET = "per-packet"
    PER_FLOW = "per-flow"


class FailMode(StrEnum):
    """Fate of packets while no worker is bound to their queue."""

    CLOSED = "closed"
    OPEN = "open"


class Driver(StrEnum):
    """NFQUEUE driver: the netlink driver of this package, or the library NetfilterQueue; AUTO: the first that works."""

    AUTO = "auto"
    NETLINK = "netlink"
    NETFILTERQUEUE = "netfilterqueue"


class IdentitySource(StrEnum):
    """Source of a remote packet's identity: its stamp alone, or without a stamp the ipcache entry of its address."""

    STAMP = "stamp"
    STAMP_OR_IPCACHE = "stamp-or-ipcache"


class Enforcement(StrEnum):
    """Enforcement: the condition for default deny, evaluated for each direction."""

    AUTO = "auto"  # every endpoint, as soon as any rule isolates in the direction
    PER_ENDPOINT = "per-endpoint"  # an endpoint, as soon as a rule that selects it isolates in the direction
    ALWAYS = "always"
    NEVER = "never"
