"""Members of sets as netlink messages: which changes, and their bytes."""

import pytest

from nfq_enforcer.dataplane.queue.netlink import attributes
from nfq_enforcer.dataplane.queue.requests import FAMILY, split_messages
from nfq_enforcer.dataplane.rules import made_members, transaction
from nfq_enforcer.dataplane.rules.filter_table import Content, MemberChange, member_change

SETS = {
    "v4": "type ipv4_addr;",
    "owned": "type ifname . ipv4_addr;",
    "store": "type ipv4_addr . inet_service;",
    "ranges": "type ipv4_addr; flags interval;",
    "slots": "type mark : inet_service;",
    "marks": "type mark;",
}
EMPTY = Content(SETS, {}, {name: frozenset() for name in SETS})


def change(**members: frozenset[object]) -> MemberChange:
    return member_change(EMPTY, EMPTY.changed(members))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "member", "possible"),
    [
        ("v4", "10.0.0.1", True),
        ("owned", ("veth-a", "10.0.0.1"), True),
        ("store", ("10.0.0.1", "6379"), True),
        ("ranges", "10.0.0.0/8", False),
        ("slots", ("1", "15001"), False),
        ("marks", "1", False),
    ],
)
def test_sets_of_intervals_and_maps_are_left_to_nft(name: str, member: object, possible: bool) -> None:
    assert made_members.can_make(EMPTY, change(**{name: frozenset((member,))})) is possible


@pytest.mark.parametrize(("number", "possible"), [(made_members.MOST, True), (made_members.MOST + 1, False)])
def test_large_changes_are_left_to_nft(number: int, possible: bool) -> None:
    members = frozenset(f"10.0.{one // 256}.{one % 256}" for one in range(number))

    assert made_members.can_make(EMPTY, change(v4=members)) is possible


def test_each_part_of_a_member_begins_at_a_register() -> None:
    before = EMPTY.changed({"v4": frozenset({"10.0.0.1"})})
    after = EMPTY.changed({"owned": frozenset({("veth-a", "10.0.0.2")}), "store": frozenset({("10.0.0.3", "6379")})})
    _, *messages, _ = transaction._batch("inet", list(made_members._requests(after, member_change(before, after))))

    found = []
    for message in messages:
        ((kind, body),) = split_messages(message)
        fields = attributes(body[FAMILY.size :])
        (key,) = attributes(fields[3]).values()
        found.append((kind & 0xFF, fields[2], attributes(attributes(key)[1])[1]))
    assert found == [
        (14, b"v4\0", bytes((10, 0, 0, 1))),
        (12, b"owned\0", b"veth-a".ljust(16, b"\0") + bytes((10, 0, 0, 2))),
        (12, b"store\0", bytes((10, 0, 0, 3, 0x18, 0xEB, 0, 0))),
    ]
