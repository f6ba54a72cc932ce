"""Puts the rules into the kernel and takes them out again, with iptables and ipset."""

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.queue import ctnetlink
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.rules import connmark, ruleset
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6, AddressFamily, Ruleset, Service
from nfq_enforcer.errors import NfqError

_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
_LOCK_SECONDS = "5"
_SETS = ("nfqe-local", "nfqe-store")
_QUEUED = re.compile(rf"^\[(\d+):\d+\] -A (?:{ruleset.QUEUE}|{ruleset.ERRORS}) .*-j NFQUEUE ", re.MULTILINE)


def families() -> tuple[AddressFamily, ...]:
    """Return the IP families that this host speaks: IPv4, and IPv6 unless it is switched off."""
    try:
        off = _IPV6_OFF.read_text().strip() == "1"
    except FileNotFoundError:
        off = True
    return (IPV4,) if off else (IPV4, IPV6)


def check() -> None:
    """Raise NfqError, with the sentence for it, where this process or host cannot have rules."""
    if os.geteuid() != 0:
        raise NfqError("this needs root: it changes iptables rules and binds a queue; run it with sudo")
    missing = [tool for tool in ("iptables", "ip6tables", "ipset") if shutil.which(tool) is None]
    if missing:
        raise NfqError(f"{' and '.join(missing)} not found in PATH: install the packages iptables and ipset")


class Rules:
    """The rules of this host, as far as they are ours."""

    def __init__(self, spoken: tuple[AddressFamily, ...], *, fail_open: bool, cluster_mtus: Mapping[str, int]) -> None:
        """Take what to render, ``fail_open`` and ``cluster_mtus`` as ``Ruleset`` has them; nothing is changed yet."""
        self._families = spoken
        self._fail_open = fail_open
        self._cluster_mtus = cluster_mtus
        self._addresses: dict[AddressFamily, frozenset[str]] = {}
        self._interfaces: frozenset[str] | None = None
        self._exempted: frozenset[Service] = frozenset()
        self.only_exempt = False  # the exemption is all that there is of ours

    def exempt(self, services: Iterable[Service]) -> None:
        """Have the host itself reach just these services of the store, whatever policy says.

        To be called before it connects to them, and so before ``install``, too; see ``ruleset.render_exemption``.
        """
        self._exempted = frozenset(services)
        for family in self._families:
            self._fill_store(family)
            if self._interfaces is None and not _hooked(_saved(family)):
                self.only_exempt = True
                _restore(family, ruleset.render_exemption(family))

    def install(self, snapshot: Snapshot, queues: Sequence[QueueNumbers]) -> None:
        """Bring everything into place, whatever was there of ours; raise NfqError if the kernel refuses.

        ``queues`` are those of each worker. Marks are in force if the snapshot has an epoch.

        What an earlier agent left stays until each table is replaced at once. Where nothing was, a failure leaves
        nothing; where something was, it leaves that, so that a host that was closed stays closed.
        """
        rules = Ruleset(queues, self._fail_open, self._cluster_mtus, snapshot.epoch)
        hooked = {family: _hooked(_saved(family)) for family in self._families}
        try:
            if snapshot.epoch is not None:
                self._retire_marks()
            for family in self._families:
                self._fill_store(family)
                self._fill(family, _addresses(snapshot, family))
                _restore(family, ruleset.render(rules, family, snapshot.homes, hooked[family]))
        except NfqError:
            if self.only_exempt or not any(hooked.values()):
                remove()
            raise
        self._interfaces, self.only_exempt = snapshot.homes, False

    def move(self, epoch: int | None) -> None:
        """Take the power from all marks that flows have, at once, and give it to those of this epoch, or to none."""
        if epoch is not None and connmark.begins_anew(epoch):
            self._retire_marks()
        self._restore_epoch(epoch)

    def _retire_marks(self) -> None:
        """Have no flow bear a mark of an epoch that is to come: those from long ago, or of an earlier agent."""
        self._restore_epoch(None)
        try:
            ctnetlink.retire_marks()
        except OSError as error:
            raise NfqError(f"the marks that flows have cannot be changed: {error.strerror}") from error

    def _restore_epoch(self, epoch: int | None) -> None:
        for family in self._families:
            _restore(family, ruleset.render_epoch(epoch))

    def release(self, snapshot: Snapshot) -> None:
        """Take out the addresses that the snapshot no longer has, before anything judges by it."""
        for family in self._families:
            before = self._addresses.get(family, frozenset())
            staying = before & _addresses(snapshot, family)
            if staying != before:
                self._fill(family, staying)

    def follow(self, snapshot: Snapshot) -> None:
        """Let the sets and the interface rules follow a change of endpoints; what stays is not touched."""
        for family in self._families:
            addresses = _addresses(snapshot, family)
            if addresses != self._addresses.get(family):
                self._fill(family, addresses)
            if snapshot.homes != self._interfaces:
                _restore(family, ruleset.render_sources(snapshot.homes))
        self._interfaces = snapshot.homes

    def queued(self) -> int:
        """Return how many packets the rules have handed to the queues since ``install``."""
        return sum(int(count) for family in self._families for count in _QUEUED.findall(_saved(family, counters=True)))

    def _fill(self, family: AddressFamily, addresses: frozenset[str]) -> None:
        _run(["ipset", "restore"], ruleset.render_set(family, sorted(addresses)))
        self._addresses[family] = addresses

    def _fill_store(self, family: AddressFamily) -> None:
        _run(["ipset", "restore"], ruleset.render_store(family, sorted(self._exempted, key=str)))


def remove() -> list[str]:
    """Take out every rule, chain and set of ours, in both families; return in words what was there."""
    removed: list[str] = []
    for family in (IPV4, IPV6) if _IPV6_OFF.exists() else (IPV4,):
        saved = _saved(family)
        hooked, chains = _hooked(saved), _chains(saved)
        if hooked or chains:
            _restore(family, ruleset.render_removal(hooked, chains))
            removed.append(f"{len(chains)} chains of {family.command}")
    for name in _run(["ipset", "list", "-n"]).split():
        if name.startswith(_SETS):
            _run(["ipset", "destroy", name])
            removed.append(f"ipset {name}")
    return removed


def _addresses(snapshot: Snapshot, family: AddressFamily) -> frozenset[str]:
    size = 4 if family is IPV4 else 16
    return frozenset(str(ipaddress.ip_address(address)) for address in snapshot.endpoints if len(address) == size)


def _saved(family: AddressFamily, *, counters: bool = False) -> str:
    """Return ``iptables-save`` of the two tables, each line after the name of its table."""
    lines: list[str] = []
    for table in ruleset.CHAINS:
        lines += _run([f"{family.command}-save", "-t", table, *(["-c"] if counters else [])]).splitlines()
    return "\n".join(lines)


def _hooked(saved: str) -> set[tuple[str, str]]:
    lines = set(saved.splitlines())
    return {
        (table, base)
        for table, hooks in ruleset.HOOKS.items()
        for base, chain in hooks.items()
        if f"-A {base} -j {chain}" in lines
    }


def _chains(saved: str) -> set[tuple[str, str]]:
    names = {line[1:].split()[0] for line in saved.splitlines() if line.startswith(":")}
    return {(table, chain) for table, chains in ruleset.CHAINS.items() for chain in chains if chain in names}


def _restore(family: AddressFamily, text: str) -> None:
    _run([f"{family.command}-restore", "--noflush", "--wait", _LOCK_SECONDS], text)


def _run(command: list[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NfqError(f"{command[0]} not found in PATH: install the packages iptables and ipset") from None
    if done.returncode != 0:
        raise NfqError(f"{' '.join(command)} failed: {_reason(done.stderr)}")
    return done.stdout


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "Try `" not in line]
    return "; ".join(lines) or "no reason given"
