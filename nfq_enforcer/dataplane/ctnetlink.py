"""The connections that the kernel keeps record of, read from its conntrack (ctnetlink).

Our rules have the kernel track what they queue (see ``ruleset``), and it enters a connection once its first packet has
passed all hooks. So it remembers what a worker that is gone has let pass, and who opened it.

The table comes as netlink messages of attributes, each with its length, its type and its data, filled up to four bytes
(linux/netfilter/nfnetlink_conntrack.h). Headers are in the host's byte order, numbers in attributes in the network's.
Where an address is translated, a flow has the ends that our hooks see: behind DNAT, and before SNAT.
"""

import os
import socket
import struct
from collections.abc import Iterator

from nfq_enforcer.core.conntrack import KnownFlow, State
from nfq_enforcer.core.packet import ICMP, ICMPV6, TCP, flow_key, has_ports, query_key

_NETLINK_NETFILTER = 12  # linux/netlink.h
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _DUMP = 0x001, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_NEW, _GET = 0x100, 0x101  # NFNL_SUBSYS_CTNETLINK: IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ERRNO = struct.Struct("=i")
_FAMILY = bytes(4)  # of a request: any; struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type
_KIND = 0x3FFF  # of an attribute's type, without its flags

_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _ZONE = 1, 2, 3, 4, 7, 18  # enum ctattr_type
_ADDRESSES, _PROTOCOL = 1, 2  # enum ctattr_tuple
_IPV4_SOURCE, _IPV6_SOURCE = 1, 3  # enum ctattr_ip
_NUMBER, _SOURCE_PORT = 1, 2  # enum ctattr_l4proto
_ICMP_QUERY, _ICMPV6_QUERY = (4, 5), (7, 8)  # identifier and type
_TCP_INFO, _TCP_STATE = 1, 1  # enum ctattr_protoinfo, ctattr_protoinfo_tcp
_SEEN_REPLY = 0x02  # in the last byte of the status

# enum tcp_conntrack: SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE, SYN_SENT2
_TCP_STATES = (
    *(State.NEW, State.NEW, State.ANSWERED, State.ESTABLISHED),
    *(State.CLOSING, State.CLOSING, State.CLOSING, State.CLOSING, State.CLOSED, State.NEW),
)

_RECEIVED = 0x10000


class MessageError(Exception):
    """Bytes that are no message of the kernel's."""


def open_flows() -> Iterator[KnownFlow]:
    """Yield what the kernel of this network namespace has on record; raise OSError if it does not tell."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asked:
        asked.send(request())
        while True:
            for kind, body in messages(asked.recv(_RECEIVED)):
                if kind == _DONE:
                    return
                if kind == _NEW:
                    flow = read_flow(body)
                    if flow is not None:
                        yield flow


def request() -> bytes:
    """Return the message that asks for the whole table."""
    return _HEADER.pack(_HEADER.size + len(_FAMILY), _GET, _REQUEST | _DUMP, 0, 0) + _FAMILY


def messages(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message; raise OSError for one that tells of an error."""
    at = 0
    while at + _HEADER.size <= len(received):
        size, kind, *_ = _HEADER.unpack_from(received, at)
        body = received[at + _HEADER.size : at + size]
        if size < _HEADER.size or at + size > len(received) or (kind == _ERROR and len(body) < _ERRNO.size):
            raise MessageError("the message is longer or shorter than it can be")
        if kind == _ERROR:
            (number,) = _ERRNO.unpack_from(body)
            raise OSError(-number, os.strerror(-number))
        yield kind, body
        at += size + 3 & ~3


def read_flow(body: bytes) -> KnownFlow | None:
    """Return the flow of one entry, None for what is not one of ours; raise MessageError if it cannot be read.

    Entries in a zone are of a network of somebody else's, who may use the same addresses.
    """
    entry = _attributes(body[len(_FAMILY) :])
    if _ZONE in entry:
        return None
    try:
        opener, replier = _tuple(entry[_ORIGINAL]), _tuple(entry[_REPLY])
        key = _key(opener, replier)
        state, seconds = _state(opener, entry), int.from_bytes(entry[_TIMEOUT], "big")
    except (KeyError, IndexError):
        raise MessageError("the entry lacks what makes it one") from None
    return None if key is None else KnownFlow(key, state, seconds)


_Attributes = dict[int, bytes]


def _attributes(data: bytes) -> _Attributes:
    found, at, end = {}, 0, len(data)
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > end:
            raise MessageError("an attribute is longer or shorter than it can be")
        found[kind & _KIND] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return found


def _tuple(data: bytes) -> tuple[bytes, _Attributes]:
    """Return the source address of one direction, and what its protocol has."""
    parts = _attributes(data)
    addresses = _attributes(parts[_ADDRESSES])
    source = addresses.get(_IPV4_SOURCE) or addresses[_IPV6_SOURCE]
    return source, _attributes(parts[_PROTOCOL])


def _key(opener: tuple[bytes, _Attributes], replier: tuple[bytes, _Attributes]) -> bytes | None:
    (src, sent), (dst, answered) = opener, replier
    proto = sent[_NUMBER][0]
    if len(src) != len(dst):
        raise MessageError("the ends are of two families")
    if proto in (ICMP, ICMPV6):
        identifier, kind = _ICMP_QUERY if proto == ICMP else _ICMPV6_QUERY
        return query_key(proto, src, dst, sent[identifier], sent[kind][0])
    if not has_ports(proto):
        return flow_key(proto, src, dst)
    return flow_key(proto, src, dst, sent[_SOURCE_PORT] + answered[_SOURCE_PORT])


def _state(opener: tuple[bytes, _Attributes], entry: _Attributes) -> State:
    if opener[1][_NUMBER][0] == TCP and _PROTOCOL_INFO in entry:
        info = _attributes(_attributes(entry[_PROTOCOL_INFO])[_TCP_INFO])
        return _TCP_STATES[info[_TCP_STATE][0]]
    return State.ESTABLISHED if entry[_STATUS][-1] & _SEEN_REPLY else State.NEW
