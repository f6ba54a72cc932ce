"""Signs of a change in the kernel's rules and sets, by netlink: cheap enough for every second.

The generation of nf_tables increases with every transaction, and each transaction is announced to a multicast group.
This includes iptables with the nf_tables backend. The members of a set, as the kernel dumps them, are compared by their
hash: nft would need seconds to list many.
"""

import errno
import hashlib
import socket
import struct
from contextlib import suppress

from nfq_enforcer.dataplane.queue import netlink, requests
from nfq_enforcer.dataplane.queue.netlink import ATTRIBUTE
from nfq_enforcer.dataplane.queue.requests import FAMILY
from nfq_enforcer.dataplane.rules.transaction import FAMILIES

_NFTABLES_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES: NFT_MSG_NEWGEN, NFT_MSG_GETGEN
_GET_MEMBERS = 10 << 8 | 13  # NFT_MSG_GETSETELEM
_TABLE_NAME, _SET_NAME = 1, 2  # NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET
_TIMEOUT = 1.0  # s
_DISCARDED = 256  # messages at a time; a transaction has one for each object


def open_notifications() -> socket.socket:
    """Return a non-blocking socket that becomes readable with each transaction of nf_tables; raise OSError."""
    notifications = requests.open_socket()
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
        with requests.open_socket(_TIMEOUT) as connection:
            connection.send(requests.request(_GET_GENERATION))
            answer = connection.recv(requests.RECEIVE_BYTES)
        for kind, body in requests.split_messages(answer):
            if kind == _NEW_GENERATION and len(body) >= FAMILY.size + ATTRIBUTE.size + 4:
                number: int = struct.unpack_from("!I", body, FAMILY.size + ATTRIBUTE.size)[0]  # NFTA_GEN_ID
                return number
    except OSError:
        pass
    return None


def set_digest(family: str, table: str, name: str) -> bytes | None:
    """Return a hash of the members of a set in a table, None if the kernel refuses.

    Equal members may have different hashes, because their order may change.
    """
    attributes = netlink.attribute(_TABLE_NAME, requests.nul_terminated(table))
    attributes += netlink.attribute(_SET_NAME, requests.nul_terminated(name))
    digest = hashlib.blake2b(digest_size=16)
    try:
        for _, body in requests.dump(_GET_MEMBERS, FAMILIES[family], attributes, _TIMEOUT):
            digest.update(body[FAMILY.size :])
    except OSError:
        return None
    return digest.digest()
