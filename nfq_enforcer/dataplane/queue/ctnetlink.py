"""The connections that the kernel keeps record of, read from its conntrack (ctnetlink).

Our rules have the kernel track what they queue (see ``ruleset``), and it enters a connection once its first packet has
passed all hooks. So it remembers what a worker that is gone has let pass, and who opened it. Besides, here marks of
flows are changed (see ``marks``) when no rule can do that.

The table comes as netlink messages of attributes, each with its length, its type and its data, filled up to four bytes
(linux/netfilter/nfnetlink_conntrack.h). Headers are in the host's byte order, numbers in attributes in the network's.
Where an address is translated, a flow has the ends that our hooks see: behind DNAT, and before SNAT.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from nfq_enforcer.core.tables.conntrack import FlowState, KernelFlow
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, flow_key, has_ports, query_key
from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.rules import connmark

_NETLINK_NETFILTER = 12  # linux/netlink.h
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _ACK, _DUMP = 0x001, 0x004, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
_NEW, _GET = 0x100, 0x101  # NFNL_SUBSYS_CTNETLINK: IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ERRNO = struct.Struct("=i")
_FAMILY = bytes(4)  # of a request: any; struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type
_KIND = 0x3FFF  # of an attribute's type, without its flags

_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK, _ZONE, _MARK_MASK = 1, 2, 3, 4, 7, 8, 18, 21  # ctattr_type
_NESTED = 0x8000  # NLA_F_NESTED
_ADDRESSES, _PROTOCOL = 1, 2  # enum ctattr_tuple
_IPV4_SOURCE, _IPV6_SOURCE = 1, 3  # enum ctattr_ip
_NUMBER, _SOURCE_PORT = 1, 2  # enum ctattr_l4proto
_QUERIES = {ICMP: (4, 5), ICMPV6: (7, 8)}  # identifier and type
_ADDRESS_SIZES = {48: 4, 72: 16}  # by the length of a tuple with ports
_NUMBER_START, _PORT_START = _ATTRIBUTE.pack(5, _NUMBER), _ATTRIBUTE.pack(6, _SOURCE_PORT)
_TCP_INFO, _TCP_STATE = 1, 1  # enum ctattr_protoinfo, ctattr_protoinfo_tcp
_SEEN_REPLY = 0x02  # in the last byte of the status

# enum tcp_conntrack: SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE, SYN_SENT2
_TCP_STATES = (
    *(FlowState.NEW, FlowState.NEW, FlowState.ANSWERED, FlowState.ESTABLISHED),
    *(FlowState.CLOSING, FlowState.CLOSING, FlowState.CLOSING, FlowState.CLOSING, FlowState.CLOSED, FlowState.NEW),
)

_RECEIVED = 0x10000


class MessageError(Exception):
    """Bytes that are no message of the kernel's."""


def open_flows() -> Iterator[KernelFlow]:
    """Yield what the kernel of this network namespace has on record; raise OSError if it does not tell.

    An entry that cannot be read is left out.
    """
    for body in _entries():
        flow = None
        with suppress(MessageError):
            flow = read_flow(body)
        if flow is not None:
            yield flow


def retire_marks() -> None:
    """Have every flow that has a mark of ours bear one that is never in force; raise OSError if the kernel refuses."""
    with _kernel() as asked:
        for body in _entries():
            change = retirement(body)
            if change is not None:
                asked.send(change)
                refused = netlink.error(asked.recv(_RECEIVED))
                if refused not in (0, errno.ENOENT):  # gone meanwhile
                    raise OSError(refused, os.strerror(refused))


def _kernel() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)


def _entries() -> Iterator[bytes]:
    with _kernel() as asked:
        asked.send(request())
        while True:
            for kind, body in messages(asked.recv(_RECEIVED)):
                if kind == _DONE:
                    return
                if kind == _NEW:
                    yield body


def request() -> bytes:
    """Return the message that asks for the whole table."""
    return _HEADER.pack(_HEADER.size + len(_FAMILY), _GET, _REQUEST | _DUMP, 0, 0) + _FAMILY


def messages(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each whole message; raise OSError for one that tells of an error."""
    at = 0
    while at + _HEADER.size <= len(received):
        size, kind, *_ = _HEADER.unpack_from(received, at)
        body = received[at + _HEADER.size : at + size]
        if size < _HEADER.size or at + size > len(received):
            return
        if kind == _ERROR and len(body) >= _ERRNO.size:
            (number,) = _ERRNO.unpack_from(body)
            raise OSError(-number, os.strerror(-number))
        yield kind, body
        at += size + 3 & ~3


def retirement(body: bytes) -> bytes | None:
    """Return the message that retires the mark of an entry; None if it has none of ours."""
    entry = _attributes(body[len(_FAMILY) :])
    if not int.from_bytes(entry.get(_MARK, b""), "big") & connmark.MASK:
        return None
    change = {
        _ORIGINAL | _NESTED: entry[_ORIGINAL],
        _MARK: _in_four(connmark.EARLIER),
        _MARK_MASK: _in_four(connmark.MASK),
    }
    if _ZONE in entry:
        change[_ZONE] = entry[_ZONE]
    data = body[: len(_FAMILY)] + b"".join(netlink.attribute(kind, value) for kind, value in change.items())
    return _HEADER.pack(_HEADER.size + len(data), _NEW, _REQUEST | _ACK, 0, 0) + data


def _in_four(number: int) -> bytes:
    return number.to_bytes(4, "big")


def read_flow(body: bytes) -> KernelFlow | None:
    """Return the flow of one entry, None for what is not one of ours; raise MessageError if it cannot be read.

    Entries in a zone are of a network of somebody else's, who may use the same addresses.
    """
    entry = _attributes(body[len(_FAMILY) :])
    if _ZONE in entry:
        return None
    try:
        opener, replier = _end(entry[_ORIGINAL]), _end(entry[_REPLY])
        key = _key(opener, replier)
        state, seconds = _state(opener.proto, entry), int.from_bytes(entry[_TIMEOUT], "big")
    except (KeyError, IndexError):
        raise MessageError("the entry lacks what makes it one") from None
    return None if key is None else KernelFlow(key, state, seconds)


_Attributes = dict[int, bytes]


class _End(NamedTuple):
    """Who sends in one direction of a flow."""

    address: bytes
    proto: int
    port: bytes = b""
    identifier: bytes = b""  # of an ICMP query
    icmp_type: int = 0


def _end(data: bytes) -> _End:
    """Return the sender of a tuple's direction: of a protocol with ports from where the kernel always puts it."""
    size = _ADDRESS_SIZES.get(len(data), 0)
    number = 16 + 2 * size  # where the protocol's number is
    if size and data[number : number + 4] == _NUMBER_START and data[number + 8 : number + 12] == _PORT_START:
        return _End(data[8 : 8 + size], data[number + 4], data[number + 12 : number + 14])
    parts = _attributes(data)
    addresses, protocol = _attributes(parts[_ADDRESSES]), _attributes(parts[_PROTOCOL])
    address, proto = addresses.get(_IPV4_SOURCE) or addresses[_IPV6_SOURCE], protocol[_NUMBER][0]
    if proto in _QUERIES:
        identifier, icmp_type = _QUERIES[proto]
        return _End(address, proto, identifier=protocol[identifier], icmp_type=protocol[icmp_type][0])
    return _End(address, proto, protocol.get(_SOURCE_PORT, b""))


def _key(opener: _End, replier: _End) -> bytes | None:
    src, proto, port, identifier, icmp_type = opener
    if not len(src) == len(replier.address) in (4, 16):
        raise MessageError("the ends are of no family, or of two")
    if proto in _QUERIES:
        return query_key(proto, src, replier.address, _of_size(2, identifier), icmp_type)
    if has_ports(proto):
        return flow_key(proto, src, replier.address, _of_size(4, port + replier.port))
    return flow_key(proto, src, replier.address)


def _of_size(size: int, numbers: bytes) -> bytes:
    if len(numbers) != size:
        raise MessageError("the ends lack what tells them from others")
    return numbers


def _state(proto: int, entry: _Attributes) -> FlowState:
    if proto == TCP and _PROTOCOL_INFO in entry:
        info = _attributes(_attributes(entry[_PROTOCOL_INFO])[_TCP_INFO])
        return _TCP_STATES[info[_TCP_STATE][0]]
    return FlowState.ESTABLISHED if entry[_STATUS][-1] & _SEEN_REPLY else FlowState.NEW


def _attributes(data: bytes) -> _Attributes:
    found, at, end = {}, 0, len(data)
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > end:
            raise MessageError("an attribute is longer or shorter than it can be")
        found[kind & _KIND] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return found
