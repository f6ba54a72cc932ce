"""Any bytes are a DNS query, an answer, or malformed; the refusal of a query is an answer to it, with its question."""

from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.dns import REFUSED, parse_answer, parse_query, refusal

_NAME = b"\3WWW\7example\3com\0"
_QUESTION = _NAME + b"\0\1\0\1"
_OPT = b"\0\0\x29\x10\0\0\0\x80\0\0\0"
_ALIAS = b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\4\1b\xc0\x10"
_ADDRESS = b"\xc0\x2d\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1"
SEEDS = [
    b"\0\1\1\0\0\1\0\0\0\0\0\0" + _QUESTION,
    b"\0\1\1\0\0\1\0\0\0\0\0\1" + _QUESTION + _OPT,
    b"\0\1\x81\x80\0\1\0\2\0\0\0\1" + _QUESTION + _ALIAS + _ADDRESS + _OPT,
    b"\0\1\x83\x80\0\1\0\0\0\0\0\0" + _QUESTION,
]
_ADDRESS_LENGTHS = {4, 16}


def check(data: bytes) -> None:
    try:
        query = parse_query(data)
    except PacketError as error:
        assert error.reason is DropReason.DNS_MALFORMED
    else:
        refused = parse_answer(refusal(data, query))
        assert (refused.question, refused.rcode) == (query.question, REFUSED)
        assert query.name.isprintable() and query.name == query.name.lower()
    try:
        answer = parse_answer(data)
    except PacketError as error:
        assert error.reason is DropReason.DNS_MALFORMED
        return
    assert {len(address) for address, _ in answer.addresses} <= _ADDRESS_LENGTHS
    assert all(ttl < 1 << 31 for _, ttl in answer.addresses)
    assert all(name.isprintable() and " " not in name for name in (answer.name, *answer.aliases))
    assert not (answer.truncated and answer.addresses)
