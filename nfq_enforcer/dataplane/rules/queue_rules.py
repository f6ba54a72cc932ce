"""Rules of our table of nftables that send packets to a range of queues, made by netlink.

The expression ``queue`` of nftables needs a module that some kernels lack, whereas the target of iptables
(``xt_NFQUEUE``) is needed for table ``security`` anyway. A rule of nftables can have that target (``nft_compat``), but
nft cannot write such a rule. Messages: linux/netfilter/nf_tables.h, nf_tables_compat.h, xt_NFQUEUE.h.
"""

import os
import struct
from collections.abc import Iterable, Iterator

from nfq_enforcer.dataplane.queue import netlink, requests
from nfq_enforcer.dataplane.queue.netlink import HEADER, attribute
from nfq_enforcer.dataplane.queue.requests import ACK, FAMILY, REQUEST
from nfq_enforcer.dataplane.rules.filter_table import NAME, QueueRule, tag
from nfq_enforcer.errors import NfqError

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_NEW_RULE, _DELETE_RULE = _SUBSYSTEM << 8 | 6, _SUBSYSTEM << 8 | 8  # NFT_MSG_NEWRULE, NFT_MSG_DELRULE
_CREATE, _APPEND = 0x400, 0x800  # NLM_F_CREATE, NLM_F_APPEND
_INET = 1  # NFPROTO_INET
_NESTED = 0x8000  # NLA_F_NESTED
_TABLE, _CHAIN, _EXPRESSIONS, _USER_DATA = 1, 2, 4, 7  # NFTA_RULE_*
_ELEMENT = 1  # NFTA_LIST_ELEM; names and data follow
_NAME, _DATA = 1, 2  # NFTA_EXPR_NAME, NFTA_EXPR_DATA
_TARGET_NAME, _TARGET_REVISION, _TARGET_INFO = 1, 2, 3  # NFTA_TARGET_*
_TARGET, _REVISION = "NFQUEUE", 3
_INFO, _BYPASS = struct.Struct("=HHH2x"), 1  # struct xt_NFQ_info_v3, aligned; NFQ_FLAG_BYPASS
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_TIMEOUT = 5.0  # s


def replace(rules: Iterable[QueueRule]) -> None:
    """Replace the rules of the chains of these rules, in one transaction; raise NfqError if the kernel refuses."""
    messages = list(_messages(rules))
    if not messages:
        return
    batch = _message(_BEGIN, REQUEST, 0, _SUBSYSTEM)
    for message in messages:
        batch += message
    batch += _message(_END, REQUEST, 0, _SUBSYSTEM)
    try:
        with requests.open_socket(_TIMEOUT) as connection:
            connection.send(batch)
            error = netlink.read_errno(connection.recv(requests.RECEIVE_BYTES))
    except OSError as failure:
        raise NfqError(f"a rule for a queue cannot be made: {failure.strerror}") from failure
    if error:
        raise NfqError(f"the kernel refuses a rule for a queue (xt_{_TARGET} in nf_tables): {os.strerror(error)}")


def _messages(rules: Iterable[QueueRule]) -> Iterator[bytes]:
    """Yield the messages of the transaction; the kernel acknowledges the last one, or names the first refused one."""
    rules = tuple(rules)
    for place, rule in enumerate(rules, start=1):
        chain = attribute(_TABLE, _text(NAME)) + attribute(_CHAIN, _text(rule.chain))
        yield _message(_DELETE_RULE, REQUEST, _INET, attributes=chain)
        flags = REQUEST | _CREATE | _APPEND | (ACK if place == len(rules) else 0)
        yield _message(_NEW_RULE, flags, _INET, attributes=chain + _expression(rule))


def _expression(rule: QueueRule) -> bytes:
    info = _INFO.pack(rule.first, rule.number, _BYPASS if rule.bypass else 0)
    target = attribute(_TARGET_NAME, _text(_TARGET))
    target += attribute(_TARGET_REVISION, struct.pack("!I", _REVISION)) + attribute(_TARGET_INFO, info)
    expression = attribute(_NAME, _text("target")) + attribute(_DATA | _NESTED, target)
    comment = _text(tag(rule.text))
    return attribute(_EXPRESSIONS | _NESTED, attribute(_ELEMENT | _NESTED, expression)) + attribute(
        _USER_DATA, bytes((_COMMENT, len(comment))) + comment
    )


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _message(kind: int, flags: int, family: int, number: int = 0, attributes: bytes = b"") -> bytes:
    body = FAMILY.pack(family, 0, number) + attributes
    return HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body
