"""Installation, update, check and removal of the rules in the kernel, with iptables and nft.

Other programs change the kernel's rules, too: a firewall service that restarts removes all of ours. So ``Rules`` keeps
the wanted state, ``check`` compares the kernel with it, and ``repair`` restores it
(docs/decisions/0011-rules-guard.md).
"""

import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.cluster.replica import Cgroup
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.dataplane.queue import ctnetlink
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.rules import (
    address_marks,
    address_sets,
    bridge_ports,
    comparison,
    filter_table,
    kernel_table,
    kernel_watch,
    policy_routing,
    process_rules,
    redirect_rules,
    ruleset,
    source_filter,
    translated_replies,
)
from nfq_enforcer.dataplane.rules.address_marks import Service
from nfq_enforcer.dataplane.rules.base_chain import target
from nfq_enforcer.dataplane.rules.commands import run as _run
from nfq_enforcer.dataplane.rules.comparison import ChainName, Chains, Fault, parse_chains
from nfq_enforcer.dataplane.rules.filter_table import Chain, Content, Members
from nfq_enforcer.dataplane.rules.kernel_table import KernelTable
from nfq_enforcer.dataplane.rules.offload_rules import PER_PACKET, OffloadRules, PerFlowRules, offload_rules
from nfq_enforcer.dataplane.rules.opening_rules import QUEUED, Budgets
from nfq_enforcer.dataplane.rules.packet_mark import LEGACY, NFT
from nfq_enforcer.dataplane.rules.redirect_rules import ProxyRules
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6, AddressFamily, Ruleset
from nfq_enforcer.errors import NfqError

_log = logging.getLogger(__name__)
_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
_LOCK_SECONDS = "5"
_UNSUPPORTED = "Operation not supported"  # nft, about a family that the kernel does not have
_ROUTING = "routing of IPv{}"  # place of a fault
_COUNTING = 1.0  # s, that a count waits for a change of rules
_TOOLS = {"iptables": "iptables", "ip6tables": "iptables", "nft": "nftables"}  # command: its package
# a line of ``iptables-save -c`` with its packet counter, for each rule that queues a packet, or drops it unqueued
_COUNTED = re.compile(rf"^\[(\d+):\d+\] -A (?:{'|'.join(QUEUED)}) .*-j (NFQUEUE|DROP)\b", re.MULTILINE)


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
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = sorted({_TOOLS[tool] for tool in missing})
        noun = "package" if len(packages) == 1 else "packages"
        raise NfqError(f"{' and '.join(missing)} not found in PATH: install the {noun} {' and '.join(packages)}")


class RuleCounts(NamedTuple):
    """Rule counts: packets by the rules that decide about their queue."""

    queued: int
    rate_limited: int  # dropped, because excess openings exceeded their limit


class Rules:
    """Rules: our rules of iptables and our table of nftables on this host.

    Threads may share an object. Each change of the kernel and of the wanted state is one step for ``check``, which so
    never sees a change of ours half done.
    """

    def __init__(
        self,
        families: tuple[AddressFamily, ...],
        *,
        fail_open: bool,
        cluster_mtus: Mapping[str, int],
        budgets: Budgets | None = None,
        proxy: ProxyRules | None = None,
    ) -> None:
        """Keep the parameters (see ``Ruleset``); change nothing yet.

        With ``proxy``, connections with HTTP rules are redirected, as soon as ``set_proxied`` says so.
        """
        self._families = families
        self._fail_open = fail_open
        self._cluster_mtus = cluster_mtus
        self._budgets = budgets
        self._proxy = proxy
        self._proxied = False
        self._targets: Members = redirect_rules.NO_TARGETS  # of the last snapshot
        self._bridge_ports: Members = {redirect_rules.PORTS: frozenset()}  # as last read
        self._br_netfilter = False  # it was loaded, as of the last read
        self._bridged = False  # and it has its hooks here
        self._cgroups: frozenset[Cgroup] = frozenset()  # their sockets classify packets
        self._store: Members = address_marks.store(())
        self.remote_networks: frozenset[Network] = frozenset()
        self._queues: Sequence[QueueNumbers] | None = None  # None: the rules are not installed
        self._offload: OffloadRules = PER_PACKET
        self._removed = False  # for good: a change that is still under way must not create anything again
        self._lock = threading.RLock()
        self._ipset_lock = threading.Lock()  # one update of the ipsets at a time
        self._security: set[int] = set()  # priorities of table security; empty: not known yet
        self._intact_generation: int | None = None  # of nf_tables, at which the rules were found intact
        self._forms: dict[AddressFamily, dict[str, str]] = {}  # see ``comparison.learn``
        self.only_exempt = False  # only the exemption of the store is installed
        self._ipsets: Members = {}  # the members that the ipsets have
        self._table = KernelTable()
        self._bridge = KernelTable()  # of family bridge; not installed if the kernel does not have the family
        self._coming: tuple[Snapshot, Members] | None = None  # of the last ``release_addresses``, until ``update``

    @property
    def _in_force(self) -> bool:
        """Return whether the rules are installed, and not removed yet."""
        return self._queues is not None and not self._removed

    def exempt(self, services: Iterable[Service]) -> None:
        """Exempt connections from the host itself to these services of the store, and to no others, from policy.

        Call it before the host connects to them, so also before ``install``. The table marks packets then, and no rule
        queues one. But its conntrack matches make the kernel track connections, so that one that the host opens now has
        its direction recorded when the rules follow.
        """
        with self._lock:
            self._store = address_marks.store(services)
            if self._removed:
                return
            if self._table.installed:
                self._table.change(self._store)
                return
            wanted = self._content(Snapshot(0, {}, Ipcache({})), PER_PACKET)
            # Without any jump of ours, neither an earlier ``install`` nor an earlier agent has left rules.
            self.only_exempt = not any(_hooked(_read(family)) for family in self._families)
            if self.only_exempt or not self._table.adopt(address_marks.STORE, wanted):
                self._table.install(wanted)

    def install(self, snapshot: Snapshot, queues: Sequence[QueueNumbers]) -> None:
        """Install all rules and sets in place of any of ours; raise NfqError if the kernel refuses.

        ``queues`` are those of each worker. Flows are offloaded if the snapshot has an epoch.

        Rules that an earlier agent left stay until each table is replaced at once. After a failure, a host that had no
        rules of ours has none, and a host that had some keeps them: a host that was closed stays closed.
        """
        with self._lock:
            if self._proxy is not None:
                self._read_bridges(first=True)
            offload = offload_rules(snapshot.epoch)
            rules = self._ruleset(queues, offload)
            chains = {family: _read(family) for family in self._families}
            try:
                if offload.uses_marks:
                    self._retire_marks()
                if not self._bridged:
                    kernel_table.discard_chain(redirect_rules.BRIDGED)
                wanted = self._queueing(self._content(snapshot, offload), snapshot, queues)
                self._table.install(wanted)  # first: the rules match the marks of its chains
                self._route()
                self._install_bridge(wanted.members)
                address_sets.install(wanted.members)
                self._ipsets = wanted.members
                for family in self._families:
                    _restore(family, ruleset.render(rules, family, chains[family]))
                    _remove_stale(family, chains[family])
            except NfqError:
                if self.only_exempt or not any(map(_hooked, chains.values())):
                    remove()
                raise
            self._queues, self._offload, self.only_exempt = queues, offload, False
            for family in self._families:
                self._learn_forms(family)

    def set_remote_networks(self, networks: frozenset[Network]) -> None:
        """Set the networks that have endpoints of other nodes; before ``install``, nothing changes in the kernel."""
        with self._lock:
            self.remote_networks = networks
            if self._in_force:
                self._table.change(address_marks.remote(networks))

    @property
    def cgroups(self) -> frozenset[Cgroup]:
        """Return the cgroups of process endpoints: packets are classified by their sockets."""
        return self._cgroups

    def set_cgroups(self, cgroups: frozenset[Cgroup]) -> None:
        """Set the cgroups of process endpoints; before ``install``, nothing changes in the kernel."""
        with self._lock:
            if self._in_force:
                self._table.change_sockets(process_rules.socket_rules(cgroups))
            self._cgroups = cgroups

    def set_proxied(self, proxied: bool) -> None:
        """Begin or end the redirection of new connections, when the proxy has started or is gone."""
        with self._lock:
            self._proxied = proxied
            if self._in_force:
                self._table.change(self._redirected)

    def follow_bridges(self) -> None:
        """Bring the redirection to the present ports of bridges, and to a br_netfilter that was loaded meanwhile.

        Before ``install``, and without a proxy, it does nothing. Raise NfqError if the kernel refuses.
        """
        with self._lock:
            if self._in_force and self._proxy is not None:
                bridged = self._bridged
                self._read_bridges()
                self._bridge.change(self._bridge_ports)
                if self._bridged != bridged:
                    self._table.change_base_chain(
                        redirect_rules.BRIDGED, self._bridged_chains.get(redirect_rules.BRIDGED)
                    )

    def _read_bridges(self, *, first: bool = False) -> None:
        """Read the state of bridges, and from it whether br_netfilter has its hooks here.

        On a host with a bridge it registers them an instant after its directory appears, so the second read with it
        counts. They stay as long as the module, also when the last bridge has gone.
        """
        try:
            found = bridge_ports.read()
        except OSError as error:
            raise NfqError(f"the ports of bridges cannot be read: {error.strerror}") from error
        self._bridge_ports = {redirect_rules.PORTS: found.ports}
        settled = found.loaded and (first or self._br_netfilter)
        self._bridged = settled and (self._bridged or bool(found.ports))
        self._br_netfilter = found.loaded

    @property
    def _bridged_chains(self) -> dict[str, Chain]:
        """Return the chain that must not be made before br_netfilter has its hooks."""
        return {redirect_rules.BRIDGED: redirect_rules.bridged_chain()} if self._bridged else {}

    @property
    def _redirected(self) -> Members:
        """Return the members of the sets of connections that are redirected; without a proxy no set exists."""
        if self._proxy is None:
            return {}
        return self._targets if self._proxied else redirect_rules.NO_TARGETS

    def _route(self) -> None:
        """Add the routing rules of redirected connections, or remove those of an earlier agent."""
        if self._proxy is not None:
            policy_routing.restore(self._versions)
        else:
            policy_routing.remove()

    @property
    def _versions(self) -> list[int]:
        return [family.version for family in self._families]

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
            _restore(family, ruleset.render_epoch(per_flow, family))

    def release_addresses(self, snapshot: Snapshot) -> None:
        """Remove the addresses that the snapshot no longer has from the sets, before workers use the snapshot.

        The source filter receives the snapshot's addresses, so that it checks new interfaces no later than the workers.
        """
        with self._lock:
            if self._in_force:
                self._targets = redirect_rules.targets(snapshot)
                self._coming = snapshot, _members(snapshot)
                self._change({**_transition(self._table.members, self._coming[1]), **self._redirected})

    def update(self, snapshot: Snapshot) -> None:
        """Set the members of the sets to the snapshot's endpoints."""
        with self._lock:
            if self._in_force:
                of, coming = self._coming or (None, {})
                self._coming = None
                if of is not snapshot:
                    self._targets, coming = redirect_rules.targets(snapshot), _members(snapshot)
                self._change({**coming, **self._redirected})

    def _change(self, members: Members) -> None:
        generation = kernel_watch.generation()
        transactions = self._bridge.change(_of_bridge(members)) + self._table.change(members)
        if generation is not None and generation == self._intact_generation:
            # Rules that were intact stay so with no other transaction than these. To read them takes 50 ms and more.
            expected = generation + transactions
            self._intact_generation = expected if kernel_watch.generation() == expected else None

    def update_ipsets(self) -> None:
        """Bring the ipsets for the administrator to the endpoints' addresses. No change of rules waits for them."""
        with self._ipset_lock:
            with self._lock:
                if not self._in_force:
                    return
                before, after = self._ipsets, self._table.members
                if after is before:  # each change makes new members
                    return
                self._ipsets = after
            address_sets.change(before, after)
            with self._lock:
                if self._removed:  # meanwhile
                    address_sets.remove()

    def check(self) -> list[Fault]:
        """Return the differences between the kernel and the installed rules and sets; raise NfqError if unreadable.

        They are read only if nf_tables has changed since they were intact; without announcements, the rules are read
        each time.
        """
        with self._lock:
            if not self._in_force:
                return []
            generation = kernel_watch.generation()
            changed = generation is None or generation != self._intact_generation
            faults: list[Fault] = []
            if changed or LEGACY in self._security:  # nf_tables announces no change of theirs
                for family in self._families:
                    faults += self._rule_faults(family, _read(family))
            if changed:
                faults += [*self._table.faults(), *self._bridge.faults()]
            self._intact_generation = None if faults else generation
            return [*faults, *self._routing_faults()]  # nf_tables announces no change of these

    def _routing_faults(self) -> Iterator[Fault]:
        lost = policy_routing.missing(self._versions) if self._proxy is not None else ()
        return (Fault(_ROUTING.format(version), "redirected connections are not delivered") for version in lost)

    def repair(self, faults: Iterable[Fault]) -> list[Fault]:
        """Restore the families and the table with these faults; return the remaining faults, or raise NfqError.

        Like ``install`` it replaces the content of chains and sets of ours, and moves our jumps; base chains stay, and
        with them the packets that wait in a queue.
        """
        with self._lock:
            if not self._in_force:
                return []
            places = {fault.place for fault in faults}
            for table in (self._table, self._bridge):
                if table.place in places:
                    table.repair()
            if places.intersection(map(_ROUTING.format, self._versions)):
                self._route()
            for family in self._families:
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
        return ruleset.render(self._ruleset(self._queues or (), self._offload), family, base_chains)

    def _ruleset(self, queues: Sequence[QueueNumbers], offload: OffloadRules) -> Ruleset:
        proxied = self._proxy is not None
        return Ruleset(queues, self._fail_open, self._cluster_mtus, offload, self._budgets, proxied)

    def _content(self, snapshot: Snapshot, offload: OffloadRules) -> Content:
        """Return the table for a snapshot, without rules that queue."""
        self._security = self._security or set(map(_security_priority, self._families))
        marks = address_marks.chains(self._cluster_mtus, self._security, uses_marks=offload.uses_marks)
        return Content(
            {**source_filter.SETS, **address_marks.SETS},
            {**source_filter.chains(snapshot.cluster_interfaces), **marks},
            {**_members(snapshot), **address_marks.remote(self.remote_networks), **self._store},
            socket_rules=process_rules.socket_rules(self._cgroups),
        )

    def _queueing(self, content: Content, snapshot: Snapshot, queues: Sequence[QueueNumbers]) -> Content:
        """Return the table with the rules that queue, and with the redirection to the proxy, if this host has one."""
        if translated_replies.are_late(self._security):
            content = replace(content, queue_rules=translated_replies.queue_rules(queues, bypass=self._fail_open))
        if self._proxy is None:
            return content
        self._targets = redirect_rules.targets(snapshot)
        budgets = self._budgets.times(len(queues)) if self._budgets else None
        return replace(
            content,
            sets={**content.sets, **redirect_rules.SETS},
            chains={**content.chains, **redirect_rules.chains(self._proxy, budgets), **self._bridged_chains},
            members={**content.members, **self._redirected, **redirect_rules.slots(self._proxy)},
            queue_rules=content.queue_rules + redirect_rules.queue_rules(queues, bypass=self._fail_open),
            timeouts=redirect_rules.TIMEOUTS,
        )

    def _install_bridge(self, members: Members) -> None:
        """Install the table for the ports of bridges.

        A kernel without its family leaves forged sources to the worker, and does not redirect switched frames.
        """
        wanted = Content(
            source_filter.BRIDGE_SETS, source_filter.bridge_chains(), _of_bridge(members), filter_table.BRIDGE
        )
        if self._proxy is not None:
            wanted = replace(
                wanted,
                sets={**wanted.sets, **redirect_rules.BRIDGE_SETS},
                chains={**wanted.chains, **redirect_rules.bridge_chains()},
                members={**wanted.members, **self._bridge_ports},
            )
        try:
            self._bridge.install(wanted)
        except NfqError as error:
            if _UNSUPPORTED not in str(error):
                raise
            _log.warning("forged sources from ports of bridges are not dropped in the kernel: %s", error)

    @property
    def _forged(self) -> dict[str, int]:
        return _sum(self._table.counted, self._bridge.counted)

    def _rule_faults(self, family: AddressFamily, saved: Chains) -> Iterator[Fault]:
        wanted = parse_chains(self._render(family, {}))
        return comparison.rule_faults(family.label, saved, wanted, self._forms.get(family, {}))

    def _learn_forms(self, family: AddressFamily) -> None:
        """Learn the forms in which this version of iptables-save writes the rules that were just restored."""
        self._forms[family] = comparison.learn(_read(family), parse_chains(self._render(family, {})))

    def _refresh_forms(self) -> None:
        for family in self._families:
            if self._forms.get(family):
                self._learn_forms(family)

    def counts(self) -> RuleCounts:
        """Return how many packets the rules have sent to the queues, and dropped unqueued, since ``install``."""
        counts = {"NFQUEUE": 0, "DROP": 0}
        for family in self._families:
            for count, decision in _COUNTED.findall(_saved(family, counters=True)):
                counts[decision] += int(count)
        return RuleCounts(counts["NFQUEUE"], counts["DROP"])

    def forged(self) -> dict[str, int]:
        """Return the number of packets that the source filter has dropped, by interface.

        While a change of rules is under way, it is that of the last count.
        """
        if not self._lock.acquire(timeout=_COUNTING):
            return self._forged
        try:
            return self._forged if self._removed else _sum(self._table.drops(), self._bridge.drops())
        finally:
            self._lock.release()


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}


def _of_bridge(members: Members) -> Members:
    """Return the members of the sets that the table of family ``bridge`` has, too."""
    return {name: members[name] for name in source_filter.BRIDGE_MEMBERS}


def remove() -> list[str]:
    """Remove every rule, chain and set of ours, in both families; return descriptions of the removed objects."""
    removed: list[str] = []
    for family in (IPV4, IPV6) if _IPV6_OFF.exists() else (IPV4,):
        chains = _read(family)
        ours = {name for name in chains if name[1].startswith(ruleset.PREFIX)}
        if ours:
            _restore(family, ruleset.render_removal(_jumps(chains, ours), ours))
            removed.append(f"{len(ours)} chains of {family.command}")
    removed += policy_routing.remove()
    removed += (f"ipset {name}" for name in address_sets.remove())
    removed += (f"table {table}" for table in kernel_table.remove())
    return removed


def _remove_stale(family: AddressFamily, chains: Chains) -> None:
    """Remove those of these chains that only an earlier version of this program has had."""
    stale = {
        (table, chain)
        for table, chain in chains
        if chain.startswith(ruleset.PREFIX) and chain not in ruleset.CHAINS[table]
    }
    if stale:
        _restore(family, ruleset.render_removal(_jumps(chains, stale), stale))


def _members(snapshot: Snapshot) -> Members:
    """Return the members of the sets that follow a snapshot."""
    permitted = source_filter.sources(snapshot)
    return {**permitted, **address_marks.ends(permitted, snapshot.endpoint_interfaces)}


def _transition(old: Members, new: Members) -> Members:
    """Return the members between two snapshots: sources of both, addresses that both have, the old interfaces."""
    return {
        **{name: old[name] | new[name] for name in source_filter.MEMBERS},
        **{name: old[name] & new[name] for name in address_marks.ENDS},
    }


def _security_priority(family: AddressFamily) -> int:
    return NFT if "nf_tables" in _run([family.command, "--version"]) else LEGACY


def _saved(family: AddressFamily, *, counters: bool = False) -> str:
    """Return the output of ``iptables-save`` for our tables."""
    lines: list[str] = []
    for table in ruleset.CHAINS:
        lines += _run([f"{family.command}-save", "-t", table, *(["-c"] if counters else [])]).splitlines()
    return "\n".join(lines)


def _read(family: AddressFamily) -> dict[ChainName, list[str]]:
    return parse_chains(_saved(family))


def _hooked(chains: Chains) -> bool:
    """Return whether a base chain has a jump of ours."""
    hooks = {(table, chain) for table, hooks in ruleset.HOOKS.items() for chain in hooks.values()}
    return bool(_jumps(chains, hooks))


def _jumps(chains: Chains, to: Set[ChainName]) -> list[tuple[str, str, str]]:
    """Return table, chain and text of each rule of others that jumps to one of these chains."""
    return [
        (table, chain, rule)
        for (table, chain), rules in chains.items()
        if not chain.startswith(ruleset.PREFIX)
        for rule in rules
        if (table, target(rule)) in to
    ]


def _restore(family: AddressFamily, text: str) -> None:
    """Apply the text: iptables-restore replaces the chains that a table of it declares in one step, at COMMIT.

    ``--noflush`` leaves all other chains as they are; ``--wait`` waits for the xtables lock of another iptables.
    """
    _run([f"{family.command}-restore", "--noflush", "--wait", _LOCK_SECONDS], text)
