"""Routing rules: by them the kernel delivers packets of redirected connections to this host (``redirect_rules``).

A rule for each of two packet marks sends the packet to a routing table of our own, whose one route is local. Both exist
for each IP family. Messages: linux/fib_rules.h, linux/rtnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nfq_enforcer.dataplane import rtnetlink
from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.netlink import HEADER
from nfq_enforcer.dataplane.queue.requests import ACK, RECEIVE_BYTES, REQUEST, split_messages
from nfq_enforcer.dataplane.rules.packet_mark import REDIRECTED, TO_PROXY, WAY
from nfq_enforcer.errors import NfqError

TABLE = 28262  # of routes; others use numbers below 256, and a few above
PRIORITY = 90  # before the rules of others: VRF has 1000, and most programs take higher ones
MARKS = (TO_PROXY, REDIRECTED)

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ELSEWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}  # addresses of documentation, which no host has
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE, _NEW_RULE, _DELETE_RULE = 24, 25, 26, 32, 33  # RTM_*
_EXCLUSIVE, _CREATE, _REPLACE = 0x200, 0x400, 0x100  # NLM_F_EXCL, NLM_F_CREATE, NLM_F_REPLACE
_BODY = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr, struct rtmsg
_NUMBER = struct.Struct("=I")
_TO_TABLE = 1  # FR_ACT_TO_TBL
_RULE_PRIORITY, _RULE_MARK, _RULE_TABLE, _RULE_MASK = 6, 10, 15, 16  # FRA_*
_DESTINATION, _OUTPUT, _ROUTE_TABLE, _ROUTE_MARK = 1, 4, 15, 16  # RTA_DST, RTA_OIF, RTA_TABLE, RTA_MARK
_COMPAT, _STATIC, _HOST_SCOPE, _LOCAL = 252, 4, 254, 2  # RT_TABLE_COMPAT, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL
_MATCH = 0x3000  # RTM_F_FIB_MATCH, RTM_F_LOOKUP_TABLE
_ABSENT = (errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)


def restore(versions: Iterable[int]) -> None:
    """Add the missing ones of the rules and routes of these IP versions; raise NfqError if the kernel refuses."""
    with _connection() as connection:
        for version in versions:
            for message in (*(_rule(_NEW_RULE, version, mark) for mark in MARKS), _route(_NEW_ROUTE, version)):
                error = _send(connection, message)
                if error not in (0, errno.EEXIST):
                    raise NfqError(f"the kernel refuses a routing rule of IPv{version}: {os.strerror(error)}")


def missing(versions: Iterable[int]) -> list[int]:
    """Return the IP versions of which a packet to the proxy is not delivered to this host."""
    with _connection() as connection:
        return [version for version in versions if not all(_is_delivered(connection, version, mark) for mark in MARKS)]


def remove() -> list[str]:
    """Remove all rules and routes; return the removed ones, by family."""
    removed = []
    with _connection() as connection:
        for version in _FAMILIES:
            messages = (*(_rule(_DELETE_RULE, version, mark) for mark in MARKS), _route(_DELETE_ROUTE, version))
            if sum(_remove_all(connection, message) for message in messages):
                removed.append(f"routing rules of IPv{version}")
    return removed


def _remove_all(connection: socket.socket, message: bytes) -> int:
    count = 0
    while (error := _send(connection, message)) == 0:
        count += 1
    if error not in _ABSENT:
        raise NfqError(f"a routing rule cannot be removed: {os.strerror(error)}")
    return count


@contextmanager
def _connection() -> Iterator[socket.socket]:
    try:
        with rtnetlink.open_socket() as connection:
            yield connection
    except OSError as error:
        raise NfqError(f"routing rules cannot be read or changed: {error.strerror}") from error


def _send(connection: socket.socket, message: bytes) -> int:
    """Return the kernel's errno for a request that it acknowledges."""
    connection.send(message)
    return netlink.read_errno(connection.recv(RECEIVE_BYTES))


def _is_delivered(connection: socket.socket, version: int, mark: int) -> bool:
    """Tell whether our route is the one for a packet with this mark to another host."""
    connection.send(_lookup(version, mark))
    try:
        ((_, body),) = split_messages(connection.recv(RECEIVE_BYTES))
    except OSError:  # no route
        return False
    table = netlink.attributes(body[_BODY.size :]).get(_ROUTE_TABLE, b"")
    return table == _NUMBER.pack(TABLE)


def _rule(kind: int, version: int, mark: int) -> bytes:
    body = _BODY.pack(_FAMILIES[version], 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    numbers = {_RULE_PRIORITY: PRIORITY, _RULE_MARK: mark, _RULE_MASK: WAY, _RULE_TABLE: TABLE}
    return _request(kind, body, numbers, _CREATE | _EXCLUSIVE if kind == _NEW_RULE else 0)


def _route(kind: int, version: int) -> bytes:
    body = _BODY.pack(_FAMILIES[version], 0, 0, 0, _COMPAT, _STATIC, _HOST_SCOPE, _LOCAL, 0)
    numbers = {_OUTPUT: socket.if_nametoindex("lo"), _ROUTE_TABLE: TABLE}
    return _request(kind, body, numbers, _CREATE | _REPLACE if kind == _NEW_ROUTE else 0)


def _lookup(version: int, mark: int) -> bytes:
    family = _FAMILIES[version]
    destination = netlink.attribute(_DESTINATION, socket.inet_pton(family, _ELSEWHERE[version]))
    bits = {4: 32, 6: 128}[version]
    body = _BODY.pack(family, bits, 0, 0, 0, 0, 0, 0, _MATCH) + destination
    return _request(_GET_ROUTE, body, {_ROUTE_MARK: mark}, acknowledged=False)


def _request(kind: int, body: bytes, numbers: dict[int, int], flags: int = 0, *, acknowledged: bool = True) -> bytes:
    attributes = b"".join(netlink.attribute(name, _NUMBER.pack(number)) for name, number in numbers.items())
    flags |= REQUEST | (ACK if acknowledged else 0)
    return HEADER.pack(HEADER.size + len(body) + len(attributes), kind, flags, 0, 0) + body + attributes
