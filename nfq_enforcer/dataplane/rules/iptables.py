"""Installation, update and removal of the rules in the kernel, with iptables and ipset."""

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
from nfq_enforcer.dataplane.rules import ruleset
from nfq_enforcer.dataplane.rules.offload_rules import PerFlowRules, offload_rules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6, AddressFamily, Ruleset, Service
from nfq_enforcer.errors import NfqError

_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
_LOCK_SECONDS = "5"
_SETS = ("nfqe-local", "nfqe-store")
# a line of ``iptables-save -c`` with its packet counter, for each rule with the target NFQUEUE
_QUEUED = re.compile(rf"^\[(\d+):\d+\] -A (?:{ruleset.QUEUE}|{ruleset.ERRORS}) .*-j NFQUEUE ", re.MULTILINE)


def families() -> tuple[AddressFamily, ...]:
    """Return the IP families of this host: IPv4, and IPv6 unless it is disabled."""
    try:
        off = _IPV6_OFF.read_text().strip() == "1"
    except FileNotFoundError:
        off = True
    return (IPV4,) if off else (IPV4, IPV6)


def check() -> None:
    """Raise NfqError with the reason if this process or host cannot install rules."""
    if os.geteuid() != 0:
        raise NfqError("this needs root: it changes iptables rules and binds a queue; run it with sudo")
    missing = [tool for tool in ("iptables", "ip6tables", "ipset") if shutil.which(tool) is None]
    if missing:
        raise NfqError(f"{' and '.join(missing)} not found in PATH: install the packages iptables and ipset")


class Rules:
    """Rules: our iptables rules and ipsets on this host."""

    def __init__(
        self, families: tuple[AddressFamily, ...], *, fail_open: bool, cluster_mtus: Mapping[str, int]
    ) -> None:
        """Keep the parameters (see ``Ruleset`` for ``fail_open`` and ``cluster_mtus``); change nothing yet."""
        self._families = families
        self._fail_open = fail_open
        self._cluster_mtus = cluster_mtus
        self._addresses: dict[AddressFamily, frozenset[str]] = {}
        self._interfaces: frozenset[str] | None = None
        self._exempt_services: frozenset[Service] = frozenset()
        self.only_exempt = False  # only the exemption of the store is installed

    def exempt(self, services: Iterable[Service]) -> None:
        """Exempt connections from the host itself to these services of the store, and to no others, from policy.

        Call it before the host connects to them, so also before ``install``; see ``ruleset.render_exemption``.
        """
        self._exempt_services = frozenset(services)
        for family in self._families:
            self._replace_store_set(family)
            # Without any jump of ours, neither an earlier ``install`` nor an earlier agent has left rules.
            if self._interfaces is None and not _hooked(_saved(family)):
                self.only_exempt = True
                _restore(family, ruleset.render_exemption(family))

    def install(self, snapshot: Snapshot, queues: Sequence[QueueNumbers]) -> None:
        """Install all rules and sets in place of any of ours; raise NfqError if the kernel refuses.

        ``queues`` are those of each worker. Flows are offloaded if the snapshot has an epoch.

        Rules that an earlier agent left stay until each table is replaced at once. After a failure, a host that had no
        rules of ours has none, and a host that had some keeps them: a host that was closed stays closed.
        """
        rules = Ruleset(queues, self._fail_open, self._cluster_mtus, offload_rules(snapshot.epoch))
        hooked = {family: _hooked(_saved(family)) for family in self._families}
        try:
            # The sets come first, because the rules refer to them.
            if rules.offload.uses_marks:
                self._retire_marks()
            for family in self._families:
                self._replace_store_set(family)
                self._replace_local_set(family, _addresses(snapshot, family))
                _restore(family, ruleset.render(rules, family, snapshot.endpoint_interfaces, hooked[family]))
        except NfqError:
            if self.only_exempt or not any(hooked.values()):
                remove()
            raise
        self._interfaces, self.only_exempt = snapshot.endpoint_interfaces, False

    def set_epoch(self, epoch: int | None) -> None:
        """Put an epoch in force: at once, only connmarks of this epoch offload flows; with None no connmark does."""
        per_flow = PerFlowRules(epoch)
        if per_flow.reuses_marks:
            self._retire_marks()
        self._restore_epoch(per_flow)

    def _retire_marks(self) -> None:
        """Retire all connmarks, so that none from long ago or of an earlier agent equals that of a coming epoch."""
        self._restore_epoch(PerFlowRules(None))
        try:
            ctnetlink.retire_marks()
        except OSError as error:
            raise NfqError(f"the connmarks of flows cannot be changed: {error.strerror}") from error

    def _restore_epoch(self, per_flow: PerFlowRules) -> None:
        for family in self._families:
            _restore(family, ruleset.render_epoch(per_flow))

    def release_addresses(self, snapshot: Snapshot) -> None:
        """Remove the addresses that the snapshot no longer has from the sets, before workers use the snapshot."""
        for family in self._families:
            current = self._addresses.get(family, frozenset())
            remaining = current & _addresses(snapshot, family)
            if remaining != current:
                self._replace_local_set(family, remaining)

    def update(self, snapshot: Snapshot) -> None:
        """Update the sets and the interface rules to the snapshot's endpoints; leave unchanged ones untouched."""
        for family in self._families:
            addresses = _addresses(snapshot, family)
            if addresses != self._addresses.get(family):
                self._replace_local_set(family, addresses)
            if snapshot.endpoint_interfaces != self._interfaces:
                _restore(family, ruleset.render_sources(snapshot.endpoint_interfaces))
        self._interfaces = snapshot.endpoint_interfaces

    def queued(self) -> int:
        """Return how many packets the rules have sent to the queues since ``install``."""
        return sum(int(count) for family in self._families for count in _QUEUED.findall(_saved(family, counters=True)))

    def _replace_local_set(self, family: AddressFamily, addresses: frozenset[str]) -> None:
        _run(["ipset", "restore"], ruleset.render_set(family, sorted(addresses)))
        self._addresses[family] = addresses

    def _replace_store_set(self, family: AddressFamily) -> None:
        _run(["ipset", "restore"], ruleset.render_store(family, sorted(self._exempt_services, key=str)))


def remove() -> list[str]:
    """Remove every rule, chain and set of ours, in both families; return descriptions of the removed objects."""
    removed: list[str] = []
    for family in (IPV4, IPV6) if _IPV6_OFF.exists() else (IPV4,):
        saved = _saved(family)
        hooked, chains = _hooked(saved), _chains(saved)
        if hooked or chains:
            # Jumps first, then the rules of all chains, then the chains: a chain with a reference cannot be deleted.
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
    """Return the output of ``iptables-save`` for our two tables."""
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
    """Apply the text: iptables-restore replaces the chains that a table of it declares in one step, at COMMIT.

    ``--noflush`` leaves all other chains as they are; ``--wait`` waits for the xtables lock of another iptables.
    """
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
