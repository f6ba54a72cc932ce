"""Members of sets of nftables, changed by netlink: a process of nft takes twenty times as long.

A change of an endpoint changes a few members of a few sets, and the next endpoint waits for it. Sets of intervals and
large changes are left to nft. Messages: linux/netfilter/nf_tables.h.
"""

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from nfq_enforcer.dataplane.queue.netlink import attribute
from nfq_enforcer.dataplane.queue.requests import nul_terminated
from nfq_enforcer.dataplane.rules import transaction
from nfq_enforcer.dataplane.rules.filter_table import NAME, Content, Member, MemberChange
from nfq_enforcer.dataplane.rules.transaction import CREATE, NESTED, Request
from nfq_enforcer.errors import NfqError

MOST = 200  # members of one change: one message of netlink has at most 64 KiB
_NEW_ELEMENTS, _DELETE_ELEMENTS = 12, 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_ELEMENT, _KEY, _VALUE = 1, 1, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
_REGISTER = 4  # bytes; each part of a member begins at the next one
_NAME_BYTES = 16  # IFNAMSIZ

_ENCODERS: Mapping[str, Callable[[str], bytes]] = {
    "ipv4_addr": lambda text: IPv4Address(text).packed,
    "ipv6_addr": lambda text: IPv6Address(text).packed,
    "ifname": lambda text: text.encode(errors="surrogateescape").ljust(_NAME_BYTES, b"\0"),
    "inet_service": lambda text: struct.pack("!H", int(text)),
}


def can_make(wanted: Content, change: MemberChange) -> bool:
    """Return whether this module can make a change: it is small, and each set has keys of known types alone."""
    if sum(len(members) for part in change for members in part.values()) > MOST:
        return False
    return all(_types(wanted.sets[name]) is not None for part in change for name in part)


def make(wanted: Content, change: MemberChange) -> None:
    """Change the members, in one transaction; raise NfqError if the kernel refuses."""
    try:
        error = transaction.commit(wanted.family, list(_requests(wanted, change)))
    except OSError as failure:
        raise NfqError(f"the members of sets cannot be changed: {failure.strerror}") from failure
    if error:
        raise NfqError(f"the kernel refuses other members of sets: {os.strerror(error)}")


def _requests(wanted: Content, change: MemberChange) -> Iterator[Request]:
    for kind, flags, sets in ((_DELETE_ELEMENTS, 0, change.gone), (_NEW_ELEMENTS, CREATE, change.added)):
        for name, members in sets.items():
            if members:
                types = _types(wanted.sets[name]) or ()
                elements = b"".join(_element(types, member) for member in sorted(members, key=str))
                place = attribute(_TABLE, nul_terminated(NAME)) + attribute(_SET, nul_terminated(name))
                yield Request(kind, place + attribute(_ELEMENTS | NESTED, elements), flags)


def _types(declaration: str) -> tuple[str, ...] | None:
    """Return the types of the parts of a member, None for a set that needs more than a key for each member."""
    kind, *options = (part.strip() for part in declaration.split(";"))
    types = tuple(kind.removeprefix("type ").split(" . "))
    return types if not any(options) and set(types) <= set(_ENCODERS) else None


def _element(types: tuple[str, ...], member: Member) -> bytes:
    parts = (member,) if isinstance(member, str) else member
    encoded = (_ENCODERS[one](part) for one, part in zip(types, parts, strict=True))
    key = b"".join(part.ljust(-len(part) % _REGISTER + len(part), b"\0") for part in encoded)
    return attribute(_ELEMENT | NESTED, attribute(_KEY | NESTED, attribute(_VALUE, key)))
