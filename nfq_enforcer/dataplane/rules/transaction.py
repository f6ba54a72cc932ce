"""Transactions of nf_tables by netlink: several requests, all of which take effect at once, or none.

Messages: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h (batches).
"""

from collections.abc import Sequence
from typing import NamedTuple

from nfq_enforcer.dataplane.queue import netlink, requests
from nfq_enforcer.dataplane.queue.requests import ACK, REQUEST

CREATE = 0x400  # NLM_F_CREATE
NESTED = 0x8000  # NLA_F_NESTED
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_*
_TIMEOUT = 5.0  # s


class Request(NamedTuple):
    """Request: one of a transaction."""

    kind: int  # NFT_MSG_*
    attributes: bytes
    flags: int = 0  # NLM_F_*, beside those that every request has


def commit(family: str, changes: Sequence[Request]) -> int:
    """Execute the requests for tables of a family; return 0, or the error number of the first refused request.

    Raise OSError if the kernel does not answer.
    """
    if not changes:
        return 0
    with requests.open_socket(_TIMEOUT) as connection:
        connection.send(b"".join(_batch(family, changes)))
        return netlink.read_errno(connection.recv(requests.RECEIVE_BYTES))


def _batch(family: str, changes: Sequence[Request]) -> list[bytes]:
    """Return the messages; the kernel acknowledges the last request, or names the first one that it refuses."""
    acknowledged = len(changes) - 1
    return [
        requests.request(_BEGIN, number=_SUBSYSTEM),
        *(
            requests.request(
                _SUBSYSTEM << 8 | change.kind,
                REQUEST | change.flags | (ACK if place == acknowledged else 0),
                FAMILIES[family],
                attributes=change.attributes,
            )
            for place, change in enumerate(changes)
        ),
        requests.request(_END, number=_SUBSYSTEM),
    ]
