"""Signs of a change in the kernel's rules and sets, by netlink: cheap enough for every second.

The generation of nf_tables increases with every transaction, and each transaction is announced to a multicast group.
Both concern iptables with the nf_tables backend only. Sets announce nothing: their content, as the kernel dumps it, is
compared by its hash.
"""

import errno
import hashlib
import socket
import struct
from contextlib import suppress

from nfq_enforcer.dataplane.queue import netlink
from nfq_enforcer.dataplane.queue.ctnetlink import split_messages
from nfq_enforcer.dataplane.queue.netlink import ATTRIBUTE, HEADER

_NFTABLES_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_REQUEST, _DONE = 1, 3  # NLM_F_REQUEST, NLMSG_DONE
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES: NFT_MSG_NEWGEN, NFT_MSG_GETGEN
_LIST_SET = 6 << 8 | 7  # NFNL_SUBSYS_IPSET: IPSET_CMD_LIST
_SET_PROTOCOL, _SET_NAME = 1, 2  # IPSET_ATTR_PROTOCOL, IPSET_ATTR_SETNAME
_PROTOCOL_VERSION = 6  # of ipset; the kernel accepts 6 and 7
_FAMILY = bytes(4)  # struct nfgenmsg: any family
_RECEIVE_BYTES = 0x10000
_DISCARDED = 256  # messages at a time; a transaction has one for each object


def open_notifications() -> socket.socket:
    """Return a non-blocking socket that becomes readable with each transaction of nf_tables; raise OSError."""
    notifications = _open_socket()
    try:
        notifications.bind((0, _NFTABLES_GROUP))
        notifications.setblocking(False)
    except OSError:
        notifications.close()
        raise
    return notifications


def discard(notifications: socket.socket) -> None:
    """Discard waiting notifications; whether the socket had room for all of them does not matter."""
    with suppress(BlockingIOError):
        for _ in range(_DISCARDED):
            try:
                notifications.recv(1)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise


def generation() -> int | None:
    """Return the generation of nf_tables in this network namespace, None if the kernel has none."""
    try:
        for kind, body in _request(_GET_GENERATION, b""):
            if kind == _NEW_GENERATION and len(body) >= len(_FAMILY) + ATTRIBUTE.size + 4:
                number: int = struct.unpack_from("!I", body, len(_FAMILY) + ATTRIBUTE.size)[0]  # NFTA_GEN_ID
                return number
    except OSError:
        pass
    return None


def set_digest(name: str) -> bytes | None:
    """Return a hash of a set's properties and members, None if no set has the name or the kernel refuses."""
    attributes = netlink.attribute(_SET_PROTOCOL, bytes((_PROTOCOL_VERSION,)))
    attributes += netlink.attribute(_SET_NAME, name.encode() + b"\0")
    digest = hashlib.blake2b(digest_size=16)
    try:
        for _, body in _request(_LIST_SET, attributes, dump=True):
            digest.update(body)
    except OSError:
        return None
    return digest.digest()


def _request(kind: int, attributes: bytes, *, dump: bool = False) -> list[tuple[int, bytes]]:
    """Return the messages of the answer; with ``dump`` up to the one that ends it."""
    size = HEADER.size + len(_FAMILY) + len(attributes)
    answer: list[tuple[int, bytes]] = []
    with _open_socket() as connection:
        connection.settimeout(1.0)
        connection.send(HEADER.pack(size, kind, _REQUEST, 0, 0) + _FAMILY + attributes)
        while True:
            answer += split_messages(connection.recv(_RECEIVE_BYTES))
            if not dump or any(kind == _DONE for kind, _ in answer[-1:]):
                return answer


def _open_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
