"""Rules of our table of nftables that nft cannot write, made by netlink: for queues, and for sockets of cgroups.

The expression ``queue`` of nftables needs a module that some kernels lack, whereas the target of iptables
(``xt_NFQUEUE``) is needed for table ``security`` anyway. A rule of nftables can have that target (``nft_compat``), but
nft cannot write such a rule. The expression ``socket`` compares the number of a cgroup, for which nft wants a path: it
refuses one that does not exist, and with it the whole table. Messages: linux/netfilter/nf_tables.h, nf_tables_compat.h,
xt_NFQUEUE.h.
"""

import os
import struct
from collections.abc import Iterator, Mapping, Sequence

from nfq_enforcer.dataplane.queue import netlink, requests
from nfq_enforcer.dataplane.queue.netlink import HEADER, attribute
from nfq_enforcer.dataplane.queue.requests import ACK, FAMILY, REQUEST
from nfq_enforcer.dataplane.rules.filter_table import NAME, QueueRule, SocketRule, tag
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
_SOCKET_KEY, _SOCKET_REGISTER, _SOCKET_LEVEL = 1, 2, 3  # NFTA_SOCKET_*
_CGROUP2 = 3  # NFT_SOCKET_CGROUPV2
_CMP_REGISTER, _CMP_OPERATION, _CMP_DATA = 1, 2, 3  # NFTA_CMP_*; the operation 0 is NFT_CMP_EQ
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2  # NFTA_IMMEDIATE_*
_VALUE, _VERDICT = 1, 2  # NFTA_DATA_*
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2  # NFTA_VERDICT_*
_GOTO = -4  # NFT_GOTO
_VERDICT_REGISTER, _REGISTER = 0, 1  # NFT_REG_VERDICT, NFT_REG_1
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_TIMEOUT = 5.0  # s


Rule = QueueRule | SocketRule


def replace(rules: Mapping[str, Sequence[Rule]]) -> None:
    """Replace the rules of these chains, in one transaction; raise NfqError if the kernel refuses."""
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
        raise NfqError(f"a rule cannot be made by netlink: {failure.strerror}") from failure
    if error:
        needed = "nft_socket" if any(isinstance(one, SocketRule) for each in rules.values() for one in each) else ""
        needed = " and ".join(filter(None, (f"xt_{_TARGET} in nf_tables", needed)))
        raise NfqError(f"the kernel refuses a rule for a queue or a socket ({needed}): {os.strerror(error)}")


def _messages(rules: Mapping[str, Sequence[Rule]]) -> Iterator[bytes]:
    """Yield the messages of the transaction; the kernel acknowledges the last one, or names the first refused one."""
    changes: list[tuple[int, int, bytes]] = []
    for name, each in rules.items():
        chain = attribute(_TABLE, _text(NAME)) + attribute(_CHAIN, _text(name))
        changes.append((_DELETE_RULE, REQUEST, chain))
        changes += ((_NEW_RULE, REQUEST | _CREATE | _APPEND, chain + _body(rule)) for rule in each)
    for place, (kind, flags, attributes) in enumerate(changes, start=1):
        yield _message(kind, flags | (ACK if place == len(changes) else 0), _INET, attributes=attributes)


def _body(rule: Rule) -> bytes:
    """Return the expressions of a rule, and its comment."""
    expressions = _of_queue(rule) if isinstance(rule, QueueRule) else _of_socket(rule)
    comment = _text(tag(rule.text))
    return attribute(_EXPRESSIONS | _NESTED, expressions) + attribute(
        _USER_DATA, bytes((_COMMENT, len(comment))) + comment
    )


def _of_queue(rule: QueueRule) -> bytes:
    info = _INFO.pack(rule.first, rule.number, _BYPASS if rule.bypass else 0)
    target = attribute(_TARGET_NAME, _text(_TARGET))
    target += attribute(_TARGET_REVISION, _number(_REVISION)) + attribute(_TARGET_INFO, info)
    return _expression("target", target)


def _of_socket(rule: SocketRule) -> bytes:
    verdict = attribute(_VERDICT_CODE, struct.pack("!i", _GOTO)) + attribute(_VERDICT_CHAIN, _text(rule.target))
    goto = attribute(_IMMEDIATE_REGISTER, _number(_VERDICT_REGISTER))
    goto += attribute(_IMMEDIATE_DATA | _NESTED, attribute(_VERDICT | _NESTED, verdict))
    if not rule.level:
        return _expression("immediate", goto)
    load = attribute(_SOCKET_KEY, _number(_CGROUP2)) + attribute(_SOCKET_REGISTER, _number(_REGISTER))
    load += attribute(_SOCKET_LEVEL, _number(rule.level))
    compare = attribute(_CMP_REGISTER, _number(_REGISTER)) + attribute(_CMP_OPERATION, _number(0))
    compare += attribute(_CMP_DATA | _NESTED, attribute(_VALUE, struct.pack("=Q", rule.cgroup)))
    return _expression("socket", load) + _expression("cmp", compare) + _expression("immediate", goto)


def _expression(name: str, data: bytes) -> bytes:
    return attribute(_ELEMENT | _NESTED, attribute(_NAME, _text(name)) + attribute(_DATA | _NESTED, data))


def _number(number: int) -> bytes:
    return struct.pack("!I", number)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _message(kind: int, flags: int, family: int, number: int = 0, attributes: bytes = b"") -> bytes:
    body = FAMILY.pack(family, 0, number) + attributes
    return HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body
