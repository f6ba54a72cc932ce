"""Agent of a node: wires store, replica, reconciler, workers, rules, flow log, API and metrics, and runs them.

The workers start before the first rule queues a packet, and the rules are removed before the workers stop: at no moment
does every packet pass, or none.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from nfq_enforcer import __version__
from nfq_enforcer.agent import containers, flood_log, handover, node_settings, notify, processes, program_log
from nfq_enforcer.agent.address_watch import AddressWatch
from nfq_enforcer.agent.api import ApiServer
from nfq_enforcer.agent.bridge_watch import BridgeWatch
from nfq_enforcer.agent.captures import Captures
from nfq_enforcer.agent.config import Config
from nfq_enforcer.agent.handlers import Handlers
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.interface_check import InterfaceCheck
from nfq_enforcer.agent.name_learner import NameLearner
from nfq_enforcer.agent.node_labels import NodeLabels
from nfq_enforcer.agent.reconciler import Reconciler
from nfq_enforcer.agent.request_log import RequestLog
from nfq_enforcer.agent.run_server import RunServer
from nfq_enforcer.agent.slot_keeper import SlotKeeper
from nfq_enforcer.agent.source_log import SourceLog
from nfq_enforcer.agent.watch import Watch
from nfq_enforcer.agent.work_report import WorkReport
from nfq_enforcer.agent.workloads import Workloads
from nfq_enforcer.cluster.records import NodeRecord
from nfq_enforcer.cluster.replica import Replica
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.modes import FailMode
from nfq_enforcer.core.tables.snapshot import LocalEndpoint
from nfq_enforcer.dataplane.interfaces import mtu
from nfq_enforcer.dataplane.rules import iptables, packet_mark
from nfq_enforcer.dataplane.rules.redirect_rules import ProxyRules
from nfq_enforcer.dataplane.worker.reports import Events, pack, unpack
from nfq_enforcer.dataplane.worker.workers import Workers, default_number
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.exporter import Exporter
from nfq_enforcer.observe.flow import EventIds, Logged
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.observe.workload_flows import WorkloadFlows
from nfq_enforcer.proxy.access_log import LoggedHello, LoggedRequest
from nfq_enforcer.proxy.proxy import Proxy
from nfq_enforcer.store.files import FileStore
from nfq_enforcer.store.redis.connection import Connection
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.session import Session
from nfq_enforcer.store.redis.store import RedisStore
from nfq_enforcer.tasks import cancel
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.source import WorkloadSource

_log = logging.getLogger(__name__)
_THREADS_END = 20.0  # s, for changes of rules that have begun


class Agent:
    """Agent: enforces policy on one node, from ``run`` until a signal."""

    def __init__(
        self,
        config: Config,
        *,
        keep_rules: bool = False,
        predecessor: handover.Predecessor | None = None,
        check_config: Callable[[], object] = lambda: None,
    ) -> None:
        """Make the parts of the agent; with ``keep_rules`` the rules stay after its end, and drop queued packets.

        ``check_config`` raises NfqError if a successor of the agent could not read its configuration.
        """
        iptables.check()
        self._config = config
        self._keep_rules = keep_rules
        self._settings = node_settings.read(config)
        self._families = iptables.families()
        fail_open = config.fail is FailMode.OPEN
        self._rules = iptables.Rules(
            self._families,
            fail_open=fail_open,
            cluster_mtus={name: mtu(name) for name in self._settings.cluster_interfaces},
            budgets=config.openings.rates(),
            proxy=ProxyRules(config.proxy.first_port, config.proxy.user),
        )
        self._rules.set_proxied(True)
        self._log: FlowLog[Logged] = FlowLog()
        self._event_ids = EventIds()
        self._workload_flows = WorkloadFlows(config.metrics.flows) if config.metrics.flows else None
        self._predecessor = predecessor or handover.Predecessor()
        queues = None if config.queues == "auto" else config.queues
        self._workers = Workers(
            queues,
            self._predecessor.first_queue(config.first_queue, queues or default_number(config.first_queue)),
            config.conntrack.max,
            self._on_events,
            driver=config.driver,
            fail_open=fail_open,
            min_ttl=config.dns.min_ttl,
        )
        self._watch = Watch(self._worker_pids)
        self._store = self._make_store()
        self._replica = replica = Replica(self._settings)
        self._reconciler = Reconciler(
            self._store, replica, self._workers, self._rules, config.datapath, previous_epoch=self._predecessor.epoch
        )
        self._reconciler.before_change = self._log.open
        self._names = NameLearner(
            self._workers, lambda: self._reconciler.view.snapshot, Path(config.state) / "names.json", config.dns.min_ttl
        )
        self._workers.on_learned = self._names.learn
        self._slots = self._make_slots()
        self._requests = RequestLog(self._slots, self._add_events)
        self._workers.on_slot_wanted = self._slots.want
        self._reconciler.update_proxy = self._slots.update
        self._work = WorkReport([self._store.progress, self._reconciler.progress])
        self._addresses = AddressWatch(
            self._settings,
            lambda settings: node_settings.with_present_addresses(settings, config),
            self._reconciler,
            self._store,
        )
        file = Path(config.state) / "node-labels.json" if config.kubernetes.enabled else None
        self._node_labels = NodeLabels(config.node.labels, file)
        self._bridges = BridgeWatch(self._rules)
        self._interfaces = InterfaceCheck(self._local_endpoints, changing=self._changing)
        registrar = Registrar(self._settings.name, self._store, lambda: replica.hosted, self._reconciler.reconcile)
        self._processes = processes.source(config, registrar)
        self._processes.note_trees = self._reconciler.note_cgroups
        self._processes.reconcile = self._reconciler.try_reconcile
        self._processes.is_enforced = self._reconciler.enforces_process
        self._run_server = RunServer(config.run_socket, self._processes)
        self._workloads = Workloads(registrar, self._make_sources(registrar, replica))
        captures = Captures(self._workers)
        self._source_log = SourceLog(lambda: self._reconciler.view.snapshot, self._add_events, captures.add_sample)
        handlers = Handlers(
            Parts(
                config,
                self._settings,
                self._families,
                self._store,
                replica,
                self._reconciler,
                self._workers,
                self._rules,
                self._log,
                self._event_ids,
                self._interfaces,
                time.time(),
                self._watch,
                self._work,
                self._names,
                self._slots,
                self._requests,
                self._workloads,
                self._processes,
                captures,
                self._workload_flows,
            )
        )
        self._health = handlers.health
        self._peers = handlers.peers
        self._api = ApiServer(Path(config.api.socket), handlers.methods(), group=config.api.group)
        listening = config.metrics.listening
        self._exporter = Exporter(*listening, handlers.read_metrics) if listening else None
        self._stop = asyncio.Event()
        self._enforcing = False  # every packet receives a verdict
        self._handing_over = False  # to a successor, unless the agent is terminated before that
        self._terminated = False  # by a signal
        self._releasing: asyncio.Task[None] | None = None  # of the predecessor's workers
        self._check_config = check_config
        self._exempting: asyncio.Task[None] | None = None

    def _make_store(self) -> Store:
        settings, address = self._settings, self._config.store
        if address.is_memory:
            return FileStore(map(Path, self._config.documents), settings)
        listening = self._config.peers.listening
        peers = (ip_address(listening[0]), listening[1]) if listening else None
        record = NodeRecord(settings.registered_addresses, __version__, settings.datapath, peers)
        state = LastState(Path(self._config.state), address.cluster)
        session = Session(
            settings.name, record, Connection(address), state, settings.relevant, cluster=settings.cluster
        )
        session.exempt = self._exempt
        return RedisStore(session)

    def _make_sources(self, registrar: Registrar, replica: Replica) -> list[WorkloadSource]:
        """Make the sources of workloads that the configuration names."""
        sources: list[WorkloadSource] = [self._processes]
        sources += containers.watches(self._config, self._settings.name, registrar)
        if (section := self._config.kubernetes).enabled:
            from nfq_enforcer.agent import kubernetes_source  # its HTTP client takes 20 MB

            labels = self._node_labels.note
            sources.append(kubernetes_source.make(section, self._settings, self._store, replica, registrar, labels))
        return sources

    def _make_slots(self) -> SlotKeeper:
        folder, settings = Path(self._config.api.socket).with_suffix(".proxy"), self._config.proxy
        proxy = Proxy(
            *(folder, settings.first_port, settings.user, packet_mark.from_proxy),
            self._log_request,
            versions=tuple(family.version for family in self._families),
        )
        return SlotKeeper(proxy, self._workers, lambda: self._reconciler.view.snapshot, folder / "keys.json")

    def _worker_pids(self) -> set[int]:
        return {process.pid for process in self._workers.processes if process.pid is not None}

    def _local_endpoints(self) -> Iterable[LocalEndpoint]:
        return self._reconciler.view.snapshot.endpoints.values()

    def _changing(self) -> frozenset[str]:
        return self._workloads.changing()

    async def _exempt(self, addresses: Iterable[tuple[IPv4Address | IPv6Address, int]]) -> None:
        self._exempting = asyncio.create_task(asyncio.to_thread(self._rules.exempt, addresses))
        await asyncio.shield(self._exempting)  # a change of rules that has begun ends, even if its caller is cancelled

    async def run(self) -> None:
        """Enforce policy until SIGTERM, SIGINT or SIGHUP; raise NfqError if enforcement cannot begin.

        SIGUSR2 starts the agent anew without a pause: this does not return then (see ``handover``).
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(program_log.on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._terminate)
        loop.add_signal_handler(signal.SIGUSR2, self._hand_over)
        handover.receive_signals()
        _warn(node_settings.host_warnings(self._settings, self._families))
        await self._api.start()
        await self._peers.start()
        watching = asyncio.create_task(self._watch.run())
        reporting = asyncio.create_task(self._work.run())
        examining = asyncio.create_task(self._health.run())
        try:
            if self._exporter:
                await self._exporter.start()
            try:
                if await self._unless_stopped(self._store.start()):
                    await self._enforce()
            finally:
                try:
                    await self._peers.stop()
                finally:
                    await self._leave()
        finally:
            if not self._handing_over:
                notify.stopping()
            await cancel(examining)  # it reads the workers' counters, which end with them
            if self._exporter:
                await self._exporter.stop()
            await self._run_server.stop()
            await self._workloads.stop()
            await self._reconciler.stop()
            await self._names.stop()
            await self._slots.stop(leave=self._handing_over and not self._terminated)
            await self._api.stop()
            if self._handing_over:
                await self._execute_successor()
                if self._removes_rules():
                    await asyncio.to_thread(self._rules.remove)
            await self._workers.stop()
            await cancel(watching, reporting)

    async def _enforce(self) -> None:
        await self._names.start()
        await self._workloads.start()
        self._replica.use_cgroups(self._processes.trees)
        self._replica.use_labels(self._node_labels.present())
        await self._reconciler.start()
        self._names.begin()
        self._processes.begin()
        await self._listen_to_run()
        await self._slots.begin()
        _warn(node_settings.driver_warnings(self._settings, self._workers.driver))
        if self._predecessor.workers:
            self._workers.import_flows()  # those that the predecessor's workers have accepted until now
        self._releasing = asyncio.create_task(self._release_predecessor())
        self._enforcing = True
        notify.ready()
        works = (
            *(self._addresses.run(), self._bridges.run(), self._interfaces.run(), self._source_log.run()),
            *(self._workloads.run(), self._node_labels.run(self._reconciler.use_labels)),
            flood_log.run(self._workers, self._rules),
        )
        background = [asyncio.create_task(work) for work in works]
        try:
            await self._unless_stopped(self._reconciler.run())
        finally:
            await cancel(*background)

    async def _listen_to_run(self) -> None:
        """Accept ``nfq-enforcer run``; without its socket, everything else is enforced all the same."""
        try:
            await self._run_server.start()
        except NfqError as error:
            _log.error("'nfq-enforcer run' cannot be used: %s", error)

    async def _release_predecessor(self) -> None:
        """Let the predecessor's workers end; import the flows that they have accepted until then."""
        await self._predecessor.release()
        if self._predecessor.workers:
            self._workers.import_flows()

    def _terminate(self) -> None:
        self._terminated = True
        self._stop.set()

    def _hand_over(self) -> None:
        if not self._enforcing or self._stop.is_set():
            return
        try:
            self._check_config()
        except NfqError as error:
            _log.error("not started anew, because the configuration is not valid: %s", error)
            return
        _log.info("starting anew; the workers return verdicts meanwhile")
        self._handing_over = True
        self._stop.set()

    async def _execute_successor(self) -> None:
        """Execute the successor; return if a signal has terminated the agent in the meantime."""
        if self._releasing is not None:
            await self._releasing
        with suppress(TimeoutError):
            async with asyncio.timeout(_THREADS_END):
                while self._watch.threads.running:  # a change of rules ends before the successor makes its own
                    await asyncio.sleep(0.01)
        detached = await self._workers.detach()
        handover.hold_signals()
        for _ in range(3):  # the event loop needs three turns to call the handler of a signal that has come
            await asyncio.sleep(0)
        if not self._terminated:
            handover.execute(detached, self._reconciler.epoch)

    async def _leave(self) -> None:
        """Leave the store, then remove the rules, which the store's session may still have been changing."""
        try:
            await self._store.stop()
            if self._exempting is not None:
                await asyncio.wait({self._exempting})
        finally:
            if self._removes_rules():
                await asyncio.to_thread(self._rules.remove)

    def _removes_rules(self) -> bool:
        """Return whether the rules are removed at the end: after a signal, or where a failure leaves the host open."""
        if self._handing_over and not self._terminated:
            return False
        open_after = self._stop.is_set() or self._config.fail is FailMode.OPEN
        return self._rules.only_exempt or (open_after and not self._keep_rules)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run a coroutine until it ends or a signal stops the agent; return whether it ended."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return task.done()
        finally:
            await cancel(task, stopped)

    def _log_request(self, logged: LoggedRequest | LoggedHello) -> None:
        self._requests.record(logged)

    def _add_events(self, events: Sequence[FlowEvent]) -> None:
        self._on_events(Events(len(events), pack(events)))

    def _on_events(self, events: Events) -> None:
        if self._workload_flows is None:
            self._log.add_pack(events.number, partial(self._name_events, events.packed))
            return
        for logged in self._name_events(events.packed):
            self._workload_flows.add(logged.event, logged.names)
            self._log.add(logged)

    def _name_events(self, packed: bytes) -> Iterator[Logged]:
        """Yield packed events with the current names of their ends."""
        epoch = time.time() - time.monotonic()  # of the workers' clock
        names, node = self._reconciler.view.names, self._settings.name
        for event in unpack(packed):
            yield Logged(event, names.ends(event.opening), event.time + epoch, node, self._event_ids.next())


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        _log.warning("%s", sentence)
