"""The kernel's connection tracking table, read and changed by netlink (ctnetlink).

Our rules make the kernel track the connections of queued packets (see ``ruleset``). The kernel enters a connection
into its table when the first packet has passed all hooks. So the table holds the flows that an earlier worker
accepted, and which end opened each. This module also changes the connmarks of flows (see ``connmark``) where no rule
can do so.

The table arrives as netlink messages of attributes, each with length, type and data, padded to four bytes
(linux/netfilter/nfnetlink_conntrack.h). Headers are in host byte order, numbers in attributes in network byte order.
Where an address is translated, a flow has the addresses that our hooks see: after DNAT and before SNAT.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from nfq_enforcer.core.tables.conntrack import FlowState, KernelFlow
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, flow_key, has_ports, query_key
from nfq_enforcer.dataplane.queue import netlink, requests
from nfq_enforcer.dataplane.queue.netlink import ATTRIBUTE, HEADER, MessageError, attributes
from nfq_enforcer.dataplane.queue.requests import ACK, FAMILY, REQUEST, four_bytes
from nfq_enforcer.dataplane.rules import connmark

_NEW, _GET = 0x100, 0x101  # NFNL_SUBSYS_CTNETLINK: IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET

_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK, _ZONE, _MARK_MASK = 1, 2, 3, 4, 7, 8, 18, 21  # ctattr_type
_NESTED = 0x8000  # NLA_F_NESTED
_ADDRESSES, _PROTOCOL = 1, 2  # enum ctattr_tuple
_IPV4_SOURCE, _IPV6_SOURCE = 1, 3  # enum ctattr_ip
_NUMBER, _SOURCE_PORT = 1, 2  # enum ctattr_l4proto
_QUERIES = {ICMP: (4, 5), ICMPV6: (7, 8)}  # enum ctattr_l4proto: attributes of identifier and type
_ADDRESS_SIZES = {48: 4, 72: 16}  # bytes of a tuple with ports: bytes of an address
_NUMBER_START, _PORT_START = ATTRIBUTE.pack(5, _NUMBER), ATTRIBUTE.pack(6, _SOURCE_PORT)
_TCP_INFO, _TCP_STATE = 1, 1  # enum ctattr_protoinfo, ctattr_protoinfo_tcp
_SEEN_REPLY = 0x02  # IPS_SEEN_REPLY, in the last byte of the status

# enum tcp_conntrack: SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE, SYN_SENT2
_TCP_STATES = (
    *(FlowState.NEW, FlowState.NEW, FlowState.ANSWERED, FlowState.ESTABLISHED),
    *(FlowState.CLOSING, FlowState.CLOSING, FlowState.CLOSING, FlowState.CLOSING, FlowState.CLOSED, FlowState.NEW),
)


def dump_flows() -> Iterator[KernelFlow]:
    """Yield the flows in the table of this network namespace; raise OSError if the kernel refuses the dump.

    Malformed entries are skipped.
    """
    for body in _dump():
        flow = None
        with suppress(MessageError):
            flow = read_flow(body)
        if flow is not None:
            yield flow


def retire_marks() -> None:
    """Replace each of our connmarks by one that no epoch ever has; raise OSError if the kernel refuses.

    Malformed entries are skipped.
    """
    with requests.open_socket() as connection:
        for body in _dump():
            change = None
            with suppress(MessageError):
                change = retire_message(body)
            if change is not None:
                connection.send(change)
                # NLM_F_ACK: the kernel replies to each change, so one receive follows each send.
                error = netlink.read_errno(connection.recv(requests.RECEIVE_BYTES))
                if error not in (0, errno.ENOENT):  # ENOENT: the flow has expired meanwhile
                    raise OSError(error, os.strerror(error))


def _dump() -> Iterator[bytes]:
    return (body for kind, body in requests.dump(_GET) if kind == _NEW)


def retire_message(body: bytes) -> bytes | None:
    """Return the message that retires the connmark of an entry; None if the entry has none of ours.

    Raise MessageError for a malformed entry.
    """
    entry = attributes(body[FAMILY.size :])
    if not int.from_bytes(entry.get(_MARK, b""), "big") & connmark.MASK:
        return None
    if _ORIGINAL not in entry:
        raise MessageError("a required attribute of the entry is missing")
    change = {
        _ORIGINAL | _NESTED: entry[_ORIGINAL],
        _MARK: four_bytes(connmark.RETIRED),
        _MARK_MASK: four_bytes(connmark.MASK),
    }
    if _ZONE in entry:
        change[_ZONE] = entry[_ZONE]
    data = body[: FAMILY.size] + b"".join(netlink.attribute(kind, value) for kind, value in change.items())
    return HEADER.pack(HEADER.size + len(data), _NEW, REQUEST | ACK, 0, 0) + data


def read_flow(body: bytes) -> KernelFlow | None:
    """Return the flow of an entry, None for an entry that is not ours; raise MessageError if it is malformed.

    Entries in a conntrack zone belong to another network, which may use the same addresses. ICMP messages other than
    queries have no flow.
    """
    entry = attributes(body[FAMILY.size :])
    if _ZONE in entry:
        return None
    try:
        # The sender of the original tuple has its address before SNAT, and the sender of the reply tuple is the
        # destination after DNAT: the two addresses that our hooks see.
        opener, replier = _sender(entry[_ORIGINAL]), _sender(entry[_REPLY])
        key = _key(opener, replier)
        state, timeout = _state(opener.proto, entry), int.from_bytes(entry[_TIMEOUT], "big")  # timeout in seconds
    except (KeyError, IndexError):
        raise MessageError("a required attribute of the entry is missing") from None
    of_process = bool(int.from_bytes(entry.get(_MARK, b""), "big") & connmark.OF_PROCESS)
    return None if key is None else KernelFlow(key, state, timeout, of_process)


class _Sender(NamedTuple):
    """Sender of one direction of a flow."""

    address: bytes
    proto: int
    port: bytes = b""
    identifier: bytes = b""  # of an ICMP query
    icmp_type: int = 0


def _sender(data: bytes) -> _Sender:
    """Return the sender in a tuple; the fast path reads ports at the offsets at which the kernel writes them."""
    size = _ADDRESS_SIZES.get(len(data), 0)
    offset = 16 + 2 * size  # of the protocol number
    if size and data[offset : offset + 4] == _NUMBER_START and data[offset + 8 : offset + 12] == _PORT_START:
        return _Sender(data[8 : 8 + size], data[offset + 4], data[offset + 12 : offset + 14])
    parts = attributes(data)
    addresses, protocol = attributes(parts[_ADDRESSES]), attributes(parts[_PROTOCOL])
    address, proto = addresses.get(_IPV4_SOURCE) or addresses[_IPV6_SOURCE], protocol[_NUMBER][0]
    if proto in _QUERIES:
        identifier, icmp_type = _QUERIES[proto]
        return _Sender(address, proto, identifier=protocol[identifier], icmp_type=protocol[icmp_type][0])
    return _Sender(address, proto, protocol.get(_SOURCE_PORT, b""))


def _key(opener: _Sender, replier: _Sender) -> bytes | None:
    src, proto, port, identifier, icmp_type = opener
    if not len(src) == len(replier.address) in (4, 16):
        raise MessageError("the two addresses are not of one IP family")
    if proto in _QUERIES:
        return query_key(proto, src, replier.address, _of_size(2, identifier), icmp_type)
    if has_ports(proto):
        return flow_key(proto, src, replier.address, _of_size(4, port + replier.port))
    return flow_key(proto, src, replier.address)


def _of_size(size: int, numbers: bytes) -> bytes:
    if len(numbers) != size:
        raise MessageError("the ports or the ICMP identifier are missing")
    return numbers


def _state(proto: int, entry: dict[int, bytes]) -> FlowState:
    if proto == TCP and _PROTOCOL_INFO in entry:
        info = attributes(attributes(entry[_PROTOCOL_INFO])[_TCP_INFO])
        return _TCP_STATES[info[_TCP_STATE][0]]
    return FlowState.ESTABLISHED if entry[_STATUS][-1] & _SEEN_REPLY else FlowState.NEW
