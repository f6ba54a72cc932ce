"""Installation, update, check and removal of the rules in the kernel, with iptables and ipset.

Other programs change the kernel's rules, too: a firewall service that restarts removes all of ours. So ``Rules`` keeps
the wanted state, ``check`` compares the kernel with it, and ``repair`` restores it
(docs/decisions/0011-rules-guard.md).
"""

import ipaddress
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.queue import ctnetlink
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.rules import comparison, kernel_watch, ruleset
from nfq_enforcer.dataplane.rules.comparison import ChainName, Chains, Fault, parse_chains
from nfq_enforcer.dataplane.rules.offload_rules import PER_PACKET, OffloadRules, PerFlowRules, offload_rules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6, AddressFamily, Ruleset, Service
from nfq_enforcer.errors import NfqError

_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
_LOCK_SECONDS = "5"
_TIMEOUT = 60.0  # s; of one command
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
    """Rules: our iptables rules and ipsets on this host.

    Threads may share an object. Each change of the kernel and of the wanted state is one step for ``check``, which so
    never sees a change of ours half done.
    """

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
        self._queues: Sequence[QueueNumbers] | None = None  # None: the rules are not installed
        self._offload: OffloadRules = PER_PACKET
        self._removed = False  # for good: a change that is still under way must not create anything again
        self._lock = threading.RLock()
        self._announced = False  # nf_tables announces changes of the rules: both iptables commands use it
        self._intact_generation: int | None = None  # of nf_tables, at which the rules were found intact
        self._intact_sets: dict[str, bytes | None] = {}  # set: digest of its content, which was found intact
        self._forms: dict[AddressFamily, dict[str, str]] = {}  # see ``comparison.learn``
        self.only_exempt = False  # only the exemption of the store is installed

    def exempt(self, services: Iterable[Service]) -> None:
        """Exempt connections from the host itself to these services of the store, and to no others, from policy.

        Call it before the host connects to them, so also before ``install``; see ``ruleset.render_exemption``.
        """
        with self._lock:
            self._exempt_services = frozenset(services)
            for family in self._families:
                self._replace_store_set(family)
                # Without any jump of ours, neither an earlier ``install`` nor an earlier agent has left rules.
                if self._queues is None and not _hooked(_read(family)):
                    self.only_exempt = True
                    _restore(family, ruleset.render_exemption(family))

    def install(self, snapshot: Snapshot, queues: Sequence[QueueNumbers]) -> None:
        """Install all rules and sets in place of any of ours; raise NfqError if the kernel refuses.

        ``queues`` are those of each worker. Flows are offloaded if the snapshot has an epoch.

        Rules that an earlier agent left stay until each table is replaced at once. After a failure, a host that had no
        rules of ours has none, and a host that had some keeps them: a host that was closed stays closed.
        """
        with self._lock:
            offload = offload_rules(snapshot.epoch)
            rules = Ruleset(queues, self._fail_open, self._cluster_mtus, offload)
            chains = {family: _read(family) for family in self._families}
            try:
                # The sets come first, because the rules refer to them.
                if offload.uses_marks:
                    self._retire_marks()
                for family in self._families:
                    self._replace_store_set(family)
                    self._replace_local_set(family, _addresses(snapshot, family))
                    _restore(family, ruleset.render(rules, family, snapshot.endpoint_interfaces, chains[family]))
            except NfqError:
                if self.only_exempt or not any(map(_hooked, chains.values())):
                    remove()
                raise
            self._queues, self._offload = queues, offload
            self._interfaces, self.only_exempt = snapshot.endpoint_interfaces, False
            self._announced = all("nf_tables" in _run([family.command, "--version"]) for family in self._families)
            for family in self._families:
                self._learn_forms(family)

    def set_epoch(self, epoch: int | None) -> None:
        """Put an epoch in force: at once, only connmarks of this epoch offload flows; with None no connmark does."""
        with self._lock:
            if self._removed:
                return
            self._offload = per_flow = PerFlowRules(epoch)
            if per_flow.reuses_marks:
                self._retire_marks()
            self._restore_epoch(per_flow)
            self._refresh_forms()

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
        with self._lock:
            for family in () if self._removed else self._families:
                current = self._addresses.get(family, frozenset())
                remaining = current & _addresses(snapshot, family)
                if remaining != current:
                    self._replace_local_set(family, remaining)

    def update(self, snapshot: Snapshot) -> None:
        """Update the sets and the interface rules to the snapshot's endpoints; leave unchanged ones untouched."""
        with self._lock:
            if self._removed:
                return
            for family in self._families:
                addresses = _addresses(snapshot, family)
                if addresses != self._addresses.get(family):
                    self._replace_local_set(family, addresses)
                if snapshot.endpoint_interfaces != self._interfaces:
                    _restore(family, ruleset.render_sources(snapshot.endpoint_interfaces))
            self._interfaces = snapshot.endpoint_interfaces
            self._refresh_forms()

    def check(self) -> list[Fault]:
        """Return the differences between the kernel and the installed rules and sets; raise NfqError if unreadable.

        Rules are read only if nf_tables has changed since they were intact, and a set only if its content has.
        """
        with self._lock:
            if self._queues is None or self._removed:
                return []
            generation = kernel_watch.generation() if self._announced else None
            faults: list[Fault] = []
            if generation is None or generation != self._intact_generation:
                for family in self._families:
                    faults += self._rule_faults(family, _read(family))
                self._intact_generation = None if faults else generation
            for family in self._families:
                faults += self._set_faults(family)
            return faults

    def repair(self, faults: Iterable[Fault]) -> list[Fault]:
        """Restore the families and sets with these faults; return the remaining faults, or raise NfqError.

        Like ``install`` it replaces chains of ours and the content of sets, and moves our jumps; base chains stay, and
        with them the packets that wait in a queue.
        """
        with self._lock:
            if self._queues is None or self._removed:
                return []
            places = {fault.place for fault in faults}
            for family in self._families:
                if f"set {family.store}" in places:
                    self._replace_store_set(family)
                if f"set {family.ipset}" in places:
                    self._replace_local_set(family, self._addresses[family])
                if any(place.startswith(f"{family.label} ") for place in places):
                    _restore(family, self._render(family, _read(family)))
                    self._learn_forms(family)
            return self.check()

    def remove(self) -> None:
        """Remove everything of ours, for good: later changes by this object have no effect."""
        with self._lock:
            self._removed = True
            remove()

    def _render(self, family: AddressFamily, base_chains: Mapping[ChainName, Sequence[str]]) -> str:
        rules = Ruleset(self._queues or (), self._fail_open, self._cluster_mtus, self._offload)
        return ruleset.render(rules, family, self._interfaces or (), base_chains)

    def _rule_faults(self, family: AddressFamily, saved: Chains) -> Iterator[Fault]:
        wanted = parse_chains(self._render(family, {}))
        return comparison.rule_faults(family.label, saved, wanted, self._forms.get(family, {}))

    def _set_faults(self, family: AddressFamily) -> Iterator[Fault]:
        store = ruleset.store_members(family, self._exempt_services)
        for name, kind, members in (
            (family.ipset, ruleset.LOCAL_TYPE, self._addresses[family]),
            (family.store, ruleset.STORE_TYPE, store),
        ):
            digest = kernel_watch.set_digest(name)
            if digest is not None and digest == self._intact_sets.get(name):
                continue
            fault = comparison.set_fault(name, kind, _saved_set(name), members)
            self._intact_sets[name] = None if fault else digest
            if fault:
                yield fault

    def _learn_forms(self, family: AddressFamily) -> None:
        """Learn the forms in which this version of iptables-save writes the rules that were just restored."""
        self._forms[family] = comparison.learn(_read(family), parse_chains(self._render(family, {})))

    def _refresh_forms(self) -> None:
        for family in self._families:
            if self._forms.get(family):
                self._learn_forms(family)

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
        hooked, chains = _hooked(parse_chains(saved)), _chains(saved)
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


def _read(family: AddressFamily) -> dict[ChainName, list[str]]:
    return parse_chains(_saved(family))


def _saved_set(name: str) -> str | None:
    """Return the output of ``ipset save`` for a set, None if no set has the name."""
    try:
        return _run(["ipset", "save", name])
    except NfqError:
        return None


def _hooked(chains: Chains) -> list[ChainName]:
    """Return the table and base chain of each jump of ours."""
    return [
        (table, base)
        for table, hooks in ruleset.HOOKS.items()
        for base, chain in hooks.items()
        for rule in chains.get((table, base), ())
        if rule == f"-j {chain}"
    ]


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
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        raise NfqError(f"{command[0]} not found in PATH: install the packages iptables and ipset") from None
    except subprocess.TimeoutExpired:
        raise NfqError(f"{' '.join(command)} did not end within {_TIMEOUT:.0f} seconds") from None
    if done.returncode != 0:
        raise NfqError(f"{' '.join(command)} failed: {_reason(done.stderr)}")
    return done.stdout


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "Try `" not in line]
    return "; ".join(lines) or "no reason given"
