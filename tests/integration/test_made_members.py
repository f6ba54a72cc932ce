"""Members of sets that were changed by netlink are those that nft lists."""

import subprocess
from typing import Any

import pytest

from nfq_enforcer.dataplane.rules import kernel_table, made_members
from nfq_enforcer.dataplane.rules.commands import run
from nfq_enforcer.dataplane.rules.filter_table import BRIDGE, FAMILY, Content, MemberChange
from nfq_enforcer.dataplane.rules.kernel_table import KernelTable
from nfq_enforcer.errors import NfqError
from tests.support.apart import run_apart

SETS = {
    "v4": "type ipv4_addr;",
    "v6": "type ipv6_addr;",
    "names": "type ifname;",
    "owned4": "type ifname . ipv4_addr;",
    "owned6": "type ifname . ipv6_addr;",
    "store6": "type ipv6_addr . inet_service;",
}
FIRST: dict[str, frozenset[Any]] = {
    "v4": frozenset({"10.0.0.1", "192.0.2.255"}),
    "v6": frozenset({"fd00::1", "2001:db8::ff"}),
    "names": frozenset({"veth-a", "cali0123456789a"}),
    "owned4": frozenset({("veth-a", "10.0.0.1"), ("lo", "10.0.0.2")}),
    "owned6": frozenset({("veth-a", "fd00::1")}),
    "store6": frozenset({("fd00::9", "6379"), ("fd00::9", "26379")}),
}
SECOND: dict[str, frozenset[Any]] = {
    "v4": frozenset({"10.0.0.1", "10.0.0.3"}),
    "v6": frozenset(),
    "names": frozenset({"eth0.100"}),
    "owned4": frozenset({("veth-a", "10.0.0.9")}),
    "owned6": frozenset({("veth-a", "fd00::1"), ("veth-b", "fd00::2")}),
    "store6": frozenset({("fd00::8", "1")}),
}
EMPTY: dict[str, frozenset[Any]] = {name: frozenset() for name in SETS}


@pytest.fixture
def no_nft(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the changes that nft has made, in place of netlink."""
    made: list[str] = []

    def record(command: list[str], text: str | None = None) -> str:
        if text is not None and "element" in text:
            made.append(text)
        return run(command, text)

    monkeypatch.setattr(kernel_table, "run", record)
    return made


@pytest.mark.parametrize("family", [FAMILY, BRIDGE])
def test_nft_lists_the_members_that_were_changed_by_netlink(root: None, family: str, no_nft: list[str]) -> None:
    async def scenario() -> None:
        table = KernelTable()
        table.install(Content(SETS, {}, EMPTY, family))
        no_nft.clear()
        for members in (FIRST, SECOND, EMPTY, FIRST):
            assert table.change(members) == 1
            assert table.faults() == []
        assert table.change(FIRST) == 0
        assert no_nft == []

    run_apart(scenario())


def test_where_the_kernel_has_other_members_the_table_is_restored(root: None, no_nft: list[str]) -> None:
    async def scenario() -> None:
        table = KernelTable()
        table.install(Content(SETS, {}, FIRST))
        subprocess.run(["nft", "delete", "element", "inet", "nfq_enforcer", "v4", "{ 10.0.0.1 }"], check=True)
        assert table.change({"v4": frozenset({"192.0.2.255"})}) == 0
        assert table.faults() == []

    run_apart(scenario())


def test_a_refused_change_is_told_in_a_sentence(root: None) -> None:
    async def scenario() -> str:
        gone = MemberChange({"v4": frozenset({"10.0.0.1"})}, {})
        with pytest.raises(NfqError) as caught:
            made_members.make(Content(SETS, {}, EMPTY), gone)
        return str(caught.value)

    assert run_apart(scenario()) == "the kernel refuses other members of sets: No such file or directory"
