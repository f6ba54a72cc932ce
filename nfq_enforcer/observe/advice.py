"""Advice for drops that no rule of a policy decides: what the reason usually means, and what to look at."""

from collections.abc import Mapping

from nfq_enforcer.core.verdict import DropReason

BY_POLICY = frozenset(
    (
        *(DropReason.POLICY_DENIED, DropReason.POLICY_DENY),
        *(DropReason.DNS_REFUSED, DropReason.HTTP_REFUSED, DropReason.TLS_REFUSED),
    )
)
"""Reasons that the documents decide."""

_PARTS = "'nfq-enforcer status' shows the state of its parts"
_STRANGER = "The interfaces that lead to other nodes are 'node.cluster_interfaces'; a stamp from elsewhere is forged."

ADVICE: Mapping[DropReason, str] = {
    DropReason.INVALID_PACKET: "The sender, or a device between, damages packets; a capture shows the bytes.",
    DropReason.FRAG_NOT_SUPPORTED: "The kernel reassembles fragments before the queue, unless conntrack is off.",
    DropReason.INVALID_SOURCE_IP: (
        "The sender forges an address, or its Endpoint document lacks this one, or names another interface: compare "
        "'nfq-enforcer endpoint get' with the addresses of the interface."
    ),
    DropReason.CT_NO_MATCH: (
        "It is a late packet of a connection that has ended or was cut, or an answer that nobody has asked for. The "
        "connection has to be opened again; 'nfq-enforcer observe --type flow-end' shows how it ended."
    ),
    DropReason.NO_ENDPOINT: "An endpoint was removed, or moved to another node, while its packets were on the way.",
    DropReason.STAMP_UNTRUSTED: _STRANGER,
    DropReason.STAMP_MALFORMED: f"Only nodes write stamps. {_STRANGER}",
    DropReason.STAMP_DUPLICATE: f"Only nodes write stamps, one in each packet. {_STRANGER}",
    DropReason.STAMP_VERSION: "The sender's node has a later version: 'nfq-enforcer node list' shows it.",
    DropReason.STAMP_IDENTITY: f"Reserved and local identities never travel. {_STRANGER}",
    DropReason.INVALID_IDENTITY: (
        "This node does not know the identity, because it is not in step with the store ('nfq-enforcer store status'), "
        "or the nodes use different stores."
    ),
    DropReason.STAMP_MISSING: (
        "The agent of the other node does not run, or a device between removes IP options: capture the packet there."
    ),
    DropReason.STAMP_NO_ROOM: "The sender uses other IP options, which leave no room; it must not.",
    DropReason.FRAG_NEEDED: "Its sender was told the size that fits; it has to obey ICMP, or use a lower MTU.",
    DropReason.DNS_MALFORMED: "The client does not speak DNS on this port, or asks several questions at once.",
    DropReason.DNS_UNSOLICITED: "An answer came late, twice, or from a server that was not asked.",
    DropReason.DNS_SEGMENT: "Queries over TCP have to come whole and in order; the client repeats them by itself.",
    DropReason.DNS_NOT_LEARNED: f"The workers did not answer in time, and the client asks again; {_PARTS}.",
    DropReason.HTTP_MALFORMED: "The client's request is no HTTP that the proxy accepts (docs/http.md).",
    DropReason.TLS_MALFORMED: "The client does not begin with a complete TLS handshake, as server names need.",
    DropReason.PROXY_MISSING: f"Envoy does not run on this node; {_PARTS}.",
    DropReason.PROXY_SLOT: "A process of this host uses the proxy's marks, or the connection is older than it.",
    DropReason.UNKNOWN_PROCESS: (
        "The socket has been closed, or belongs to no running command: see 'nfq-enforcer endpoint list', and the "
        "services in 'processes.units'."
    ),
    DropReason.PROCESS_L7: "A process endpoint needs rules without HTTP, DNS and server names.",
    DropReason.PAYLOAD_TOO_LONG: "The driver netlink copies longer packets than the driver netfilterqueue ('driver').",
    DropReason.INTERNAL_ERROR: "The log of the agent has the details; please report it.",
}
