"""The agent of a node: wires store, replica, workers, rules, log and API together, from start to end.

At start packets are judged before the first rule hands one over, and at the end the rules go before the workers do,
so there is no moment in which everything or nothing passes.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from nfq_enforcer import __version__
from nfq_enforcer.agent import api
from nfq_enforcer.agent.config import Config
from nfq_enforcer.agent.handlers import Handlers
from nfq_enforcer.agent.reconciler import Reconciler
from nfq_enforcer.cluster.records import NodeRecord
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.dataplane.interfaces import Address, host_addresses, mtu
from nfq_enforcer.dataplane.queue.library_queue import DRIVER, LONGEST_COPY
from nfq_enforcer.dataplane.rules import iptables
from nfq_enforcer.dataplane.worker.channel import Events, unpack
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.exporter import Exporter
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.store.files import FileStore
from nfq_enforcer.store.redis.connection import Connection
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.store.redis.session import Session
from nfq_enforcer.store.redis.store import RedisStore

_log = logging.getLogger(__name__)
_LEAST_IPV6_MTU = 1280  # RFC 8200 section 5


class Agent:
    """One node's agent, from ``run`` until it is told to stop."""

    def __init__(self, config: Config, *, keep_rules: bool = False) -> None:
        """Take the configuration; ``keep_rules``: at the end leave the rules, so that they go on dropping."""
        iptables.check()
        self._config = config
        self._keep_rules = keep_rules
        self._settings = node_settings(config)
        self._families = iptables.families()
        self._rules = iptables.Rules(
            self._families,
            fail_open=config.fail == "open",
            cluster_mtus={name: mtu(name) for name in self._settings.cluster_interfaces},
        )
        self._log: FlowLog[Logged] = FlowLog()
        self._workers = Workers(
            None if config.queues == "auto" else config.queues,
            config.first_queue,
            config.conntrack.max,
            self._on_events,
            driver=config.driver,
            fail_open=config.fail == "open",
        )
        self._store = self._make_store()
        self._replica = Replica(self._settings)
        self._reconciler = Reconciler(self._store, self._replica, self._workers, self._rules, config.datapath)
        self._reconciler.before_change = self._log.open
        answers = self._answers()
        self._server = api.ApiServer(Path(config.api.socket), answers.methods())
        listening = config.metrics.listening
        self._exporter = Exporter(*listening, answers.metrics) if listening else None
        self._stop = asyncio.Event()
        self._exempting: asyncio.Task[None] | None = None

    def _make_store(self) -> Store:
        settings, address = self._settings, self._config.store
        if address.is_memory:
            return FileStore(map(Path, self._config.documents), settings)
        record = NodeRecord(settings.addresses, __version__, settings.datapath)
        state = LastState(Path(self._config.state), address.cluster)
        member = Session(settings.name, record, Connection(address), state, settings.relevant)
        member.exempt = self._exempt
        return RedisStore(member)

    async def _exempt(self, addresses: Iterable[tuple[IPv4Address | IPv6Address, int]]) -> None:
        self._exempting = asyncio.create_task(asyncio.to_thread(self._rules.exempt, addresses))
        await asyncio.shield(self._exempting)  # what has begun to change rules goes on, whoever waits for it

    def _answers(self) -> Handlers:
        return Handlers(
            self._config,
            self._settings,
            self._families,
            self._store,
            self._replica,
            self._reconciler,
            self._workers,
            self._rules,
            self._log,
            time.time(),
        )

    async def run(self) -> None:
        """Judge packets until SIGTERM, SIGINT or SIGHUP; raise NfqError if that cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        self._warn()
        await self._server.start()
        try:
            if self._exporter:
                await self._exporter.start()
            try:
                if await self._unless_stopped(self._store.start()):
                    await self._judge()
            finally:
                await self._leave()
        finally:
            if self._exporter:
                await self._exporter.stop()
            await self._reconciler.end()
            await self._workers.stop()
            await self._server.stop()

    async def _leave(self) -> None:
        """Leave the store, which may just have asked for rules, and take the rules along if that shall be."""
        try:
            await self._store.stop()
            if self._exempting is not None:
                await asyncio.wait({self._exempting})
        finally:
            if self._shall_open():
                await asyncio.to_thread(iptables.remove)

    async def _judge(self) -> None:
        await self._reconciler.begin()
        self._warn_of_long_packets()
        _say_ready()
        await self._unless_stopped(self._reconciler.follow())

    async def _unless_stopped(self, doing: Coroutine[Any, Any, None]) -> bool:
        """Do something until it is done or this agent is told to stop; say whether it was done."""
        task, stopped = asyncio.create_task(doing), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return task.done()
        finally:
            for one in (task, stopped):
                one.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    def _shall_open(self) -> bool:
        """Say whether the rules go with the agent: when told to stop, or if a failure shall leave the host open."""
        stopped = self._stop.is_set() or self._config.fail == "open"
        return self._rules.only_exempt or (stopped and not self._keep_rules)

    def _on_events(self, events: Events) -> None:
        self._log.add_pack(events.number, partial(self._named, events.packed))

    def _named(self, packed: bytes) -> Iterator[Logged]:
        """Yield packed events, with the names that hold now."""
        wall = time.time() - time.monotonic()
        directory = self._reconciler.view.names
        for event in unpack(packed):
            yield Logged(event, directory.ends(event.opening), event.time + wall)

    def _warn(self) -> None:
        if len(self._families) == 1:
            _log.warning("IPv6 is switched off on this host: IPv6 rules are left out, only IPv4 is judged")
        if not self._settings.cluster_interfaces:
            _log.warning(
                "this host has no global address yet, so no interface where stamps are believed: endpoints of other "
                "nodes count as the world until the agent starts again; node.cluster_interfaces can name one"
            )
        room = stamp.overhead(6)
        for name in sorted(self._settings.cluster_interfaces):
            size = mtu(name)
            if size < _LEAST_IPV6_MTU + room:
                _log.warning(
                    "interface %s has an MTU of %d: IPv6 needs %d and a stamp %d more, so full-size IPv6 packets of "
                    "endpoints cannot leave by it",
                    *(name, size, _LEAST_IPV6_MTU, room),
                )

    def _warn_of_long_packets(self) -> None:
        """Say which packets the library, where it is the driver, cannot copy whole."""
        longest = LONGEST_COPY - stamp.overhead(6)
        for name in sorted(self._settings.cluster_interfaces):
            if self._workers.driver == DRIVER and (size := mtu(name)) > longest:
                _log.warning(
                    "interface %s has an MTU of %d, but the driver %s copies %d bytes of a packet: longer ones that "
                    "need a stamp are dropped (PAYLOAD_TOO_LONG); an MTU of %d or less avoids it",
                    *(name, size, DRIVER, LONGEST_COPY, longest),
                )


def node_settings(config: Config) -> NodeSettings:
    """Return the configuration of this node, with what it leaves out read off the host; raise BadInput."""
    found = host_addresses()
    addresses = config.node.ips or _first_of_each_family(found)
    interfaces = frozenset(config.node.cluster_interfaces) or _holding(found, addresses[:1])
    for name in interfaces:
        try:
            mtu(name)
        except OSError:
            names = ", ".join(sorted({interface for interface, _ in found}))
            raise BadInput(f"node.cluster_interfaces: there is no interface '{name}'; there are: {names}") from None
    return NodeSettings(
        config.node.name,
        addresses,
        frozenset(address for _, address in found),
        interfaces,
        config.node.cluster_cidrs,
        config.mode,
        audit=config.audit,
        allow_localhost=config.allow_localhost == "always",
        believe_ipcache=config.identity_source == "stamp-or-ipcache",
        relevant=LabelFilter(config.identity_labels),
        datapath=Datapath(config.datapath),
    )


def _first_of_each_family(found: list[tuple[str, Address]]) -> tuple[Address, ...]:
    first: dict[int, Address] = {}
    for _, address in found:
        first.setdefault(address.version, address)
    return tuple(first[version] for version in sorted(first))


def _holding(found: list[tuple[str, Address]], addresses: tuple[Address, ...]) -> frozenset[str]:
    return frozenset(interface for interface, address in found if address in addresses)


def _say_ready() -> None:
    """Tell the terminal, and systemd (sd_notify(3)), that every packet is being judged."""
    print("ready", flush=True)
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(f"\0{where[1:]}" if where.startswith("@") else where)
            notify.send(b"READY=1")
