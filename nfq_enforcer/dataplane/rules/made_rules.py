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

from nfq_enforcer.dataplane.queue.netlink import attribute
from nfq_enforcer.dataplane.queue.requests import four_bytes, nul_terminated
from nfq_enforcer.dataplane.rules import transaction
from nfq_enforcer.dataplane.rules.filter_table import FAMILY, NAME, QueueRule, SocketRule, tag
from nfq_enforcer.dataplane.rules.transaction import CREATE, NESTED, Request
from nfq_enforcer.errors import NfqError

_NEW_RULE, _DELETE_RULE = 6, 8  # NFT_MSG_NEWRULE, NFT_MSG_DELRULE
_APPEND = 0x800  # NLM_F_APPEND
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


Rule = QueueRule | SocketRule


def replace(rules: Mapping[str, Sequence[Rule]]) -> None:
    """Replace the rules of these chains, in one transaction; raise NfqError if the kernel refuses."""
    try:
        error = transaction.commit(FAMILY, list(_requests(rules)))
    except OSError as failure:
        raise NfqError(f"a rule cannot be made by netlink: {failure.strerror}") from failure
    if error:
        needed = "nft_socket" if any(isinstance(one, SocketRule) for each in rules.values() for one in each) else ""
        needed = " and ".join(filter(None, (f"xt_{_TARGET} in nf_tables", needed)))
        raise NfqError(f"the kernel refuses a rule for a queue or a socket ({needed}): {os.strerror(error)}")


def _requests(rules: Mapping[str, Sequence[Rule]]) -> Iterator[Request]:
    for name, each in rules.items():
        chain = attribute(_TABLE, nul_terminated(NAME)) + attribute(_CHAIN, nul_terminated(name))
        yield Request(_DELETE_RULE, chain)
        yield from (Request(_NEW_RULE, chain + _body(rule), CREATE | _APPEND) for rule in each)


def _body(rule: Rule) -> bytes:
    """Return the expressions of a rule, and its comment."""
    expressions = _of_queue(rule) if isinstance(rule, QueueRule) else _of_socket(rule)
    comment = nul_terminated(tag(rule.text))
    return attribute(_EXPRESSIONS | NESTED, expressions) + attribute(
        _USER_DATA, bytes((_COMMENT, len(comment))) + comment
    )


def _of_queue(rule: QueueRule) -> bytes:
    info = _INFO.pack(rule.first, rule.number, _BYPASS if rule.bypass else 0)
    target = attribute(_TARGET_NAME, nul_terminated(_TARGET))
    target += attribute(_TARGET_REVISION, four_bytes(_REVISION)) + attribute(_TARGET_INFO, info)
    return _expression("target", target)


def _of_socket(rule: SocketRule) -> bytes:
    verdict = attribute(_VERDICT_CODE, struct.pack("!i", _GOTO)) + attribute(
        _VERDICT_CHAIN, nul_terminated(rule.target)
    )
    goto = attribute(_IMMEDIATE_REGISTER, four_bytes(_VERDICT_REGISTER))
    goto += attribute(_IMMEDIATE_DATA | NESTED, attribute(_VERDICT | NESTED, verdict))
    if not rule.level:
        return _expression("immediate", goto)
    load = attribute(_SOCKET_KEY, four_bytes(_CGROUP2)) + attribute(_SOCKET_REGISTER, four_bytes(_REGISTER))
    load += attribute(_SOCKET_LEVEL, four_bytes(rule.level))
    compare = attribute(_CMP_REGISTER, four_bytes(_REGISTER)) + attribute(_CMP_OPERATION, four_bytes(0))
    compare += attribute(_CMP_DATA | NESTED, attribute(_VALUE, struct.pack("=Q", rule.cgroup)))
    return _expression("socket", load) + _expression("cmp", compare) + _expression("immediate", goto)


def _expression(name: str, data: bytes) -> bytes:
    return attribute(_ELEMENT | NESTED, attribute(_NAME, nul_terminated(name)) + attribute(_DATA | NESTED, data))
