"""The tables of nftables in the kernel: applied, checked and removed with nft, small changes by netlink."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from nfq_enforcer.dataplane.rules import filter_table, kernel_watch, made_members, made_rules
from nfq_enforcer.dataplane.rules.commands import run
from nfq_enforcer.dataplane.rules.comparison import Fault
from nfq_enforcer.dataplane.rules.filter_table import (
    BRIDGE,
    FAMILY,
    NAME,
    Chain,
    Content,
    Members,
    SocketRule,
    read_counters,
)
from nfq_enforcer.dataplane.rules.source_filter import DROPS
from nfq_enforcer.errors import NfqError

_NOT_FOUND = "No such file or directory"


class KernelTable:
    """Kernel table: one of our tables of nftables on this host. Its owner serializes the calls."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._wanted: Content | None = None  # None: not installed
        self._faulty: list[str] | None = None  # sets with other members, in a table without other faults
        self._intact: dict[str, bytes | None] = {}  # set: digest of its members, which were found intact
        self._counted: dict[str, int] = {}  # by interface: the kernel's count, as last read
        # by interface, to add to it: the count of a table that was replaced, less the count before ``install``
        self._drops: dict[str, int] = {}

    @property
    def installed(self) -> bool:
        """Return whether this object has created or taken over the table."""
        return self._wanted is not None

    @property
    def place(self) -> str | None:
        """Return the place of faults in the table; None before install."""
        return self._wanted.place if self._wanted is not None else None

    @property
    def members(self) -> Members:
        """Return the wanted members of each set; empty before install."""
        return self._wanted.members if self._wanted is not None else {}

    def install(self, wanted: Content) -> None:
        """Create the table, or give that of an earlier agent this content; raise NfqError if the kernel refuses."""
        self._restore(wanted)
        self._wanted = wanted
        self.drops()
        self._drops, self._counted = {name: -count for name, count in self._counted.items()}, self._counted

    def adopt(self, names: tuple[str, ...], wanted: Content) -> bool:
        """Replace the members of these sets in the table of an earlier agent; return False without such a table."""
        try:
            run(["nft", "-f", "-"], filter_table.render_members(wanted, names))
        except NfqError:  # no table, or that of a version without these sets
            return False
        return True

    def change(self, members: Members) -> int:
        """Change the members; replace the table if the kernel has others than expected. Does nothing before install.

        Return the number of transactions by which the members were changed: 0 if the table was replaced.
        """
        if self._wanted is None:
            return 0
        wanted = self._wanted.changed(members)
        change, self._wanted = filter_table.member_change(self._wanted, wanted), wanted
        if not change:
            return 0
        try:
            if made_members.can_make(wanted, change):
                made_members.make(wanted, change)
            else:
                run(["nft", "-f", "-"], filter_table.render_change(wanted, change))
        except NfqError:
            self._restore(wanted)
            return 0
        return 1

    def change_base_chain(self, name: str, chain: Chain | None) -> None:
        """Add a base chain, before all others of its priority, or remove it (None). Does nothing before install."""
        if self._wanted is None:
            return
        others = {other: each for other, each in self._wanted.chains.items() if other != name}
        self._wanted = replace(self._wanted, chains={**others, name: chain} if chain is not None else others)
        try:
            run(["nft", "-f", "-"], filter_table.render_base_chain(self._wanted, name))
        except NfqError:
            self._restore(self._wanted)

    def change_sockets(self, rules: Mapping[str, tuple[SocketRule, ...]]) -> None:
        """Change the rules of cgroups; raise NfqError if the kernel refuses. Does nothing before install."""
        if self._wanted is None or rules == self._wanted.socket_rules:
            return
        before, self._wanted = self._wanted, replace(self._wanted, socket_rules=rules)
        try:
            made_rules.replace(rules)
        except NfqError:
            try:
                self._restore(self._wanted)
            except NfqError:  # a kernel without the expression
                self._wanted = before
                self._restore(before)
                raise

    def faults(self) -> list[Fault]:
        """Return the differences between the kernel's table and the wanted one; raise NfqError if unreadable.

        A set is listed only if its members have changed since they were intact.
        """
        if self._wanted is None:
            return []
        if faults := _structure_faults(self._wanted):
            self._faulty = None
            return faults
        self._faulty = []
        for name, members in self._wanted.members.items():
            digest = kernel_watch.set_digest(self._wanted.family, NAME, name)
            if digest is None or digest != self._intact.get(name):
                kind = filter_table.kind(self._wanted.sets[name])
                fault = filter_table.member_fault(
                    name, _list_set(self._wanted.family, name, kind), members, self._wanted.place
                )
                self._intact[name] = None if fault else digest
                if fault:
                    self._faulty.append(name)
                    faults.append(fault)
        return faults

    def repair(self) -> None:
        """Restore the parts of the table with the last faults; raise NfqError if the kernel refuses."""
        if self._wanted is None:
            return
        if self._faulty is None:
            self.drops()
            self._restore(self._wanted)
        else:
            run(["nft", "-f", "-"], filter_table.render_members(self._wanted, self._faulty))

    def _restore(self, wanted: Content) -> None:
        try:
            run(["nft", "-f", "-"], filter_table.render_structure(wanted))
            made_rules.replace(wanted.made_rules)
            restored = not _structure_faults(wanted)
        except NfqError:  # a set or chain of another kind
            restored = False
        if not restored:
            run(["nft", "-f", "-"], filter_table.render_replacement(wanted))
            made_rules.replace(wanted.made_rules)
        run(["nft", "-f", "-"], filter_table.render_members(wanted, wanted.members))

    def drops(self) -> dict[str, int]:
        """Return the number of packets with a forged source dropped from each interface since ``install``."""
        if self._wanted is not None and (listed := _list_set(self._wanted.family, DROPS)) is not None:
            counted = read_counters(listed)
            if any(counted.get(name, 0) < count for name, count in self._counted.items()):
                self._drops = self.counted  # the table is another one
            self._counted = counted
        return self.counted

    @property
    def counted(self) -> dict[str, int]:
        """Return the number of packets dropped from each interface, as of the last count."""
        names = sorted({*self._drops, *self._counted})
        return {name: self._drops.get(name, 0) + self._counted.get(name, 0) for name in names}


def discard_chain(name: str) -> None:
    """Delete a base chain that an earlier agent may have left: for it ``install`` would replace the whole table."""
    with suppress(NfqError):
        run(["nft", "delete", "chain", FAMILY, NAME, name])


def remove() -> list[str]:
    """Remove the tables; return family and name of those that this host had."""
    listed = run(["nft", "list", "tables"]).splitlines() if shutil.which("nft") is not None else []
    found = [f"{family} {NAME}" for family in (FAMILY, BRIDGE) if f"table {family} {NAME}" in listed]
    for table in found:
        run(["nft", "delete", "table", *table.split()])
    return found


def _structure_faults(wanted: Content) -> list[Fault]:
    # With -t, nft reads no members only if it lists all tables of the family.
    return list(filter_table.structure_faults(run(["nft", "-n", "-y", "-t", "list", "ruleset", wanted.family]), wanted))


def _list_set(family: str, name: str, kind: str = "set") -> str | None:
    """Return a set or map as ``nft -j list`` writes it, None if it does not exist."""
    try:
        return run(["nft", "-j", "list", kind, family, NAME, name])
    except NfqError as error:
        if _NOT_FOUND in str(error):
            return None
        raise
