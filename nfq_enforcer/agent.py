"""The agent of a node: wires documents, compiler, worker, rules, log and API together, and keeps them in step.

At start packets are judged before the first rule hands one over, and at the end the rules go before the worker does,
so there is no moment in which everything or nothing passes.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from nfq_enforcer import __version__, api
from nfq_enforcer.config import Config
from nfq_enforcer.core import stamp
from nfq_enforcer.core.directory import Directory
from nfq_enforcer.core.enforcer import FlowEvent
from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.core.snapshot import Snapshot
from nfq_enforcer.dataplane import iptables
from nfq_enforcer.dataplane.interfaces import Address, host_addresses, mtu
from nfq_enforcer.dataplane.nfqueue import MAX_COPY, backlog
from nfq_enforcer.dataplane.pool import WorkerProcess
from nfq_enforcer.dataplane.ruleset import Ruleset
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.observe import flow as flows
from nfq_enforcer.observe import metrics
from nfq_enforcer.observe.exporter import Exporter
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.policy.documents import Document
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store import replica
from nfq_enforcer.store.memory import Applied, MemoryStore
from nfq_enforcer.store.replica import NodeSettings, View

_log = logging.getLogger(__name__)
_LEAST_IPV6_MTU = 1280  # RFC 8200 section 5
_LOOK = 0.15  # seconds between two looks at the documents


class Logged(NamedTuple):
    """An event in the log, with the names that held when it came and its time since the epoch."""

    event: FlowEvent
    directory: Directory
    wall_time: float

    def render(self, node: str) -> flows.Flow:
        """Return the event as a reader gets it."""
        return flows.render(self.event, self.directory, node, self.wall_time)


class Agent:
    """One node's agent, from ``run`` until it is told to stop."""

    def __init__(self, config: Config, *, keep_rules: bool = False) -> None:
        """Take the configuration; ``keep_rules``: at the end leave the rules, so that they go on dropping."""
        iptables.check()
        self._config = config
        self._keep_rules = keep_rules
        self._settings = node_settings(config)
        self._store = MemoryStore(map(Path, config.documents))
        self._worker = WorkerProcess(config.first_queue, config.conntrack.max, self._on_events)
        self._families = iptables.families()
        self._rules = iptables.Rules(self._ruleset(), self._families)
        self._flow_log: FlowLog[Logged] = FlowLog()
        methods: dict[str, api.Method] = {
            "status": self._status,
            "observe": self._observe,
            "endpoints": self._endpoints,
            "policies": self._policies,
            "apply": self._apply,
            "delete": self._delete,
        }
        self._server = api.Server(Path(config.api.socket), methods)
        listening = config.metrics.listening
        self._exporter = Exporter(*listening, self._metrics) if listening else None
        self._started = time.time()
        self._refused: tuple[float, str] | None = None  # documents that were not taken, since when
        self._unfinished = False  # the last change is not in force everywhere
        self._in_force = 0  # the revision that the worker and the rules follow
        self._lost = 0
        self._stop = asyncio.Event()
        self._changing = asyncio.Lock()
        self._view = self._build(1, self._store.applied, None)

    async def run(self) -> None:
        """Judge packets until SIGTERM, SIGINT or SIGHUP; raise NfqError if that cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        self._warn()
        await self._server.start()
        try:
            await self._worker.start(self._view.snapshot)
            if self._exporter:
                await self._exporter.start()
            try:
                await asyncio.to_thread(self._rules.install, self._view.snapshot)
                self._in_force = self._view.snapshot.revision
                _say_ready()
                await self._keep_in_step()
            finally:
                if self._shall_open():
                    await asyncio.to_thread(iptables.remove)
        finally:
            if self._exporter:
                await self._exporter.stop()
            await self._worker.stop()
            await self._server.stop()

    def _shall_open(self) -> bool:
        """Say whether the rules go with the agent: when told to stop, or if a failure shall leave the host open."""
        return not self._keep_rules and (self._stop.is_set() or self._config.fail == "open")

    def _ruleset(self) -> Ruleset:
        return Ruleset(
            self._config.first_queue,
            self._config.fail == "open",
            {name: mtu(name) for name in self._settings.cluster_interfaces},
        )

    def _build(self, revision: int, applied: Applied, before: View | None) -> View:
        nodes = {self._settings.name: self._settings.addresses}
        known = before.cluster if before else None
        return replica.build(self._store.load(applied), self._settings, revision, nodes, known)

    async def _keep_in_step(self) -> None:
        """Look for changed documents until told to stop."""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._stop.wait()
            if self._store.changed() or self._unfinished:
                await self._reload()

    async def _reload(self) -> None:
        """Enforce the documents as they are now; if they are not right, leave all as it is and say so."""
        try:
            await self._adopt(lambda: self._store.applied)
        except BadInput as error:
            self._refused, self._unfinished = (time.time(), str(error)), False
            _log.error("documents refused, revision %d stays in force: %s", self._in_force, error)
        except NfqError as error:
            _log.error("revision %d is not in force everywhere, trying again: %s", self._view.snapshot.revision, error)

    async def _adopt(self, change: Callable[[], Applied]) -> list[Document]:
        """Put the documents in force, with what shall be applied; return which of those are new.

        One change at a time: ``change`` says what shall be applied when nobody else is at it. Raise BadInput, and
        change nothing, if the documents are not right.
        """
        async with self._changing:
            before, applied = self._store.applied, change()
            view = await asyncio.to_thread(self._build, self._view.snapshot.revision + 1, applied, self._view)
            self._refused, self._view, self._store.applied = None, view, applied
            self._unfinished = True
            await self._put_in_force(view.snapshot)
            self._unfinished = False
            _log.info("revision %d is in force", view.snapshot.revision)
            return [one.document for key, one in applied.items() if before.get(key) is not one]

    async def _put_in_force(self, snapshot: Snapshot) -> None:
        """Take packets of endpoints that are gone off the queue, judge by the new snapshot, then queue new ones."""
        await asyncio.to_thread(self._rules.release, snapshot)
        await self._worker.enforce(snapshot)
        await asyncio.to_thread(self._rules.follow, snapshot)
        self._in_force = snapshot.revision

    def _on_events(self, events: tuple[FlowEvent, ...]) -> None:
        wall = time.time() - time.monotonic()
        for event in events:
            self._flow_log.add(Logged(event, self._view.directory, event.time + wall))

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
            if size + room > MAX_COPY:
                _log.warning(
                    "interface %s has an MTU of %d, but the queue copies %d bytes of a packet: longer ones that need a "
                    "stamp are dropped (PAYLOAD_TOO_LONG); an MTU of %d or less avoids it",
                    *(name, size, MAX_COPY, MAX_COPY - room),
                )
            if size < _LEAST_IPV6_MTU + room:
                _log.warning(
                    "interface %s has an MTU of %d: IPv6 needs %d and a stamp %d more, so full-size IPv6 packets of "
                    "endpoints cannot leave by it",
                    *(name, size, _LEAST_IPV6_MTU, room),
                )

    async def _status(self, _params: api.Params) -> dict[str, Any]:
        queued, before = await asyncio.to_thread(self._rules.queued), self._worker.counters.judged
        waiting = backlog(self._worker.queue)
        self._lost = max(self._lost, queued - before - (waiting.waiting if waiting else 0))
        documents = self._view.documents
        return {
            "version": __version__,
            "node": self._settings.name,
            "addresses": [str(address) for address in self._settings.addresses],
            "cluster_interfaces": sorted(self._settings.cluster_interfaces),
            "since": _time(self._started),
            "enforcement": self._config.enforcement,
            "audit": self._config.audit,
            "fail": self._config.fail,
            "families": [f"IPv{family.version}" for family in self._families],
            "revision": self._in_force,
            "documents": {"policies": len(documents.policies), "endpoints": len(documents.endpoints)},
            "refused": {"since": _time(self._refused[0]), "error": self._refused[1]} if self._refused else None,
            "endpoints": len({e.name for e in self._view.snapshot.endpoints.values()}),
            "identities": len(self._view.directory.identities),
            "worker": {
                "queue": self._worker.queue,
                "driver": "netfilterqueue",
                "pid": self._worker.pid,
                "restarts": self._worker.restarts,
                "failure": self._worker.failure,
                "lost": self._lost,
                **self._worker.counters.read(),
            },
            "log": {"seen": self._flow_log.seen},
        }

    async def _metrics(self) -> list[metrics.Family]:
        return metrics.families(await self._status({}))

    async def _observe(self, params: api.Params) -> AsyncIterator[flows.Flow]:
        wanted = params.get("verdict")
        if wanted is not None and wanted not in flows.VERDICTS:
            raise BadInput(f"unknown verdict '{wanted}'; allowed: {', '.join(flows.VERDICTS)}")
        with self._flow_log.follow() as follower:
            kept = [logged for logged in self._flow_log.last() if wanted in (None, logged.event.verdict)]
            for logged in kept[max(0, len(kept) - params.get("last", len(kept))) :]:
                yield logged.render(self._settings.name)
            while params.get("follow"):
                logged = await follower.next()
                if lost := follower.take_lost():
                    yield flows.render_lost(lost)
                if wanted in (None, logged.event.verdict):
                    yield logged.render(self._settings.name)

    async def _policies(self, _params: api.Params) -> list[dict[str, Any]]:
        return [
            {
                "kind": policy.kind,
                "namespace": policy.namespace,
                "name": policy.name,
                "origin": policy.origin,
                "document": policy.written,
            }
            for policy in self._view.documents.policies
        ]

    async def _apply(self, params: api.Params) -> dict[str, Any]:
        """Take files of documents, all or nothing; return when they are in force."""
        try:
            files = [File(str(name), str(text)) for name, text in params["files"]]
        except (KeyError, TypeError, ValueError):
            raise BadInput("files must be a list of pairs: a name, and the text of the documents") from None
        new = await self._adopt(lambda: self._store.with_files(files))
        return {"revision": self._in_force, "documents": ["/".join(filter(None, document.key)) for document in new]}

    async def _delete(self, params: api.Params) -> dict[str, Any]:
        """Take back an applied policy; return when it is out of force."""
        namespace, name = str(params.get("namespace", "")), str(params.get("name", ""))
        await self._adopt(lambda: self._store.without(namespace, name, self._view.documents))
        return {"revision": self._in_force}

    async def _endpoints(self, _params: api.Params) -> list[dict[str, Any]]:
        return [
            {
                "namespace": endpoint.namespace,
                "name": endpoint.name,
                "node": endpoint.node,
                "identity": endpoint.identity,
                "labels": [str(label) for label in endpoint.labels],
                "addresses": list(endpoint.addresses),
                "interface": endpoint.interface,
            }
            for endpoint in self._view.directory.endpoints
        ]


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


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
