"""What the agent answers on its API: the methods behind ``nfq-enforcer``'s commands, each a dict or list for JSON."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from nfq_enforcer import __version__
from nfq_enforcer.agent import api
from nfq_enforcer.agent.config import Config
from nfq_enforcer.agent.reconciler import Reconciler
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.cluster.source import Applied, NodeStatus, Store
from nfq_enforcer.core.identity import RESERVED
from nfq_enforcer.dataplane.queue.protocol import backlog
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.rules.ruleset import AddressFamily
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe import flow as flows
from nfq_enforcer.observe import metrics
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.redis.store import RedisStore
from nfq_enforcer.text import utc_time

_MOST_PATIENCE = 600.0  # seconds that a load may wait for other nodes


@dataclass
class Handlers:
    """The agent's parts, as far as answers come from them."""

    config: Config
    settings: NodeSettings
    families: tuple[AddressFamily, ...]
    store: Store
    replica: Replica
    reconciler: Reconciler
    workers: Workers
    rules: Rules
    log: FlowLog[Logged]
    started: float
    lost: int = 0  # packets that the kernel handed over and nobody judged

    def methods(self) -> Mapping[str, api.Method]:
        """Return the methods by the names that the command line has for them."""
        return {
            "status": self.status,
            "observe": self.observe,
            "endpoints": self.endpoints,
            "identities": self.identities,
            "nodes": self.nodes,
            "ipcache": self.ipcache,
            "policies": self.policies,
            "apply": self.apply,
            "delete": self.delete,
            "delete_endpoints": self.delete_endpoints,
            "store_status": self.store_status,
            "store_export": self.store_export,
            "store_import": self.store_import,
            "store_gc": self.store_gc,
        }

    async def status(self, _params: api.Params) -> dict[str, Any]:
        """Return what the agent enforces and how it fares."""
        view, directory = self.reconciler.view, self.reconciler.view.names
        return {
            "version": __version__,
            "node": self.settings.name,
            "addresses": [str(address) for address in self.settings.addresses],
            "cluster_interfaces": sorted(self.settings.cluster_interfaces),
            "since": utc_time(self.started),
            "enforcement": self.config.enforcement,
            "audit": self.config.audit,
            "fail": self.config.fail,
            "datapath": self.config.datapath,
            "families": [f"IPv{family.version}" for family in self.families],
            "revision": self.reconciler.revision,
            "compilations": view.compilations,
            "documents": {"policies": len(view.policies), "endpoints": len(directory)},
            "refused": self._refused(),
            "endpoints": len({endpoint.name for endpoint in view.snapshot.endpoints.values()}),
            "identities": len(directory.identities) + len(directory.cidrs),
            "store": await self.store.status(),
            "worker": await self._all_workers(),
            "workers": self._each_worker(),
            "log": {"seen": self.log.seen},
        }

    def _refused(self) -> dict[str, str] | None:
        refused = self.store.refused
        return {"since": utc_time(refused[0]), "error": refused[1]} if refused else None

    async def _all_workers(self) -> dict[str, Any]:
        """Return what there is to say of the workers as one; its process is the first's."""
        workers = self.workers
        numbers = sorted(number for queues in workers.queues for number in queues.all)
        queued, judged = await asyncio.to_thread(self.rules.queued), workers.judged
        waiting = backlog(*numbers)
        self.lost = max(self.lost, queued - judged - (waiting.waiting if waiting else 0))
        return {
            "queue": workers.first_queue,
            "queues": numbers,
            "driver": workers.driver,
            "pid": workers.each[0].pid,
            "restarts": workers.restarts,
            "failure": workers.failure,
            "lost": self.lost,
            **workers.read(),
        }

    def _each_worker(self) -> list[dict[str, Any]]:
        return [
            {
                "queues": sorted(worker.queues.all),
                "pid": worker.pid,
                "restarts": worker.restarts,
                "failure": worker.failure,
                **worker.counters.read(),
            }
            for worker in self.workers.each
        ]

    async def metrics(self) -> list[metrics.MetricFamily]:
        """Return the figures for Prometheus."""
        return metrics.families(await self.status({}), await self.nodes({}))

    async def observe(self, params: api.Params) -> AsyncIterator[flows.Flow]:
        """Yield the flows that are kept, and with ``follow`` those that come; ``verdict`` and ``last`` choose."""
        wanted = params.get("verdict")
        if wanted is not None and wanted not in flows.VERDICTS:
            raise BadInput(f"unknown verdict '{wanted}'; allowed: {', '.join(flows.VERDICTS)}")
        with self.log.follow() as follower:
            kept = [logged for logged in self.log.last() if wanted in (None, logged.event.verdict)]
            for logged in kept[max(0, len(kept) - params.get("last", len(kept))) :]:
                yield logged.render(self.settings.name)
            while params.get("follow"):
                logged = await follower.next()
                if lost := follower.take_lost():
                    yield flows.render_lost(lost)
                if wanted in (None, logged.event.verdict):
                    yield logged.render(self.settings.name)

    async def endpoints(self, _params: api.Params) -> list[dict[str, Any]]:
        """Return every endpoint of the cluster, as this node knows it."""
        return [
            {
                "namespace": endpoint.namespace,
                "name": endpoint.name,
                "node": endpoint.node,
                "identity": endpoint.identity,
                "labels": [str(label) for label in endpoint.labels],
                "addresses": list(endpoint.addresses),
                "interface": endpoint.interface,
                "document": self.replica.endpoints[f"{endpoint.namespace}/{endpoint.name}"].document(),
            }
            for endpoint in self.reconciler.view.names
        ]

    async def identities(self, _params: api.Params) -> list[dict[str, Any]]:
        """Return every identity: the reserved, the cluster's and those of this node's prefixes."""
        directory = self.reconciler.view.names
        having = Counter(endpoint.identity for endpoint in self.replica.endpoints.values())
        known = {**RESERVED, **directory.identities, **directory.cidrs}
        return [
            {
                "identity": number,
                "labels": [str(label) for label in labels],
                "endpoints": having[number],
                "reserved": number in RESERVED,
            }
            for number, labels in sorted(known.items())
        ]

    async def nodes(self, _params: api.Params) -> list[dict[str, Any]]:
        """Return every node, and whether it has been heard of lately."""
        directory = self.reconciler.view.names
        hosted = Counter(endpoint.node for endpoint in self.replica.endpoints.values())
        heard = {one.name: one for one in await self.store.enforced_by(0, 0)}
        return [
            {
                "name": name,
                "addresses": [str(address) for address in node.addresses],
                **_life(heard.get(name) or NodeStatus(name, live=None)),
                "version": node.version,
                "datapath": node.datapath,
                "endpoints": hosted[name],
            }
            for name, node in sorted(directory.nodes.items())
        ]

    async def ipcache(self, _params: api.Params) -> list[dict[str, Any]]:
        """Return who has which address."""
        directory = self.reconciler.view.names
        return [
            {
                "address": known.address,
                "identity": known.identity,
                "node": known.node,
                "endpoint": known.endpoint,
                "labels": [str(label) for label in directory.labels(known.identity) or ()],
            }
            for known in directory.addresses()
        ]

    async def policies(self, _params: api.Params) -> list[dict[str, Any]]:
        """Return every policy, and where it comes from."""
        return [
            {
                "kind": policy.kind,
                "namespace": policy.namespace,
                "name": policy.name,
                "origin": policy.origin,
                "document": policy.written,
            }
            for policy in self.reconciler.view.policies
        ]

    async def apply(self, params: api.Params) -> dict[str, Any]:
        """Take files of documents, all or nothing; return when they are in force, with ``wait`` on all live nodes."""
        try:
            files = [File(str(name), str(text)) for name, text in params["files"]]
        except (KeyError, TypeError, ValueError):
            raise BadInput("files must be a list of pairs: a name, and the text of the documents") from None
        patience = _patience(params)
        applied = await self.store.apply(files)
        await self.reconciler.step()
        return {**_applied(applied), **await self._reached(patience)}

    async def delete(self, params: api.Params) -> dict[str, Any]:
        """Take back an applied policy; return when it is out of force."""
        patience = _patience(params)
        await self.store.delete_policy(str(params.get("namespace", "")), str(params.get("name", "")))
        await self.reconciler.step()
        return await self._reached(patience)

    async def delete_endpoints(self, params: api.Params) -> dict[str, Any]:
        """Take endpoints out; return which there were when they are out of force."""
        names = [str(name) for name in params.get("names", ())]
        deleted = await self.store.delete_endpoints(names)
        await self.reconciler.step()
        return {"deleted": deleted, "missing": [name for name in names if name not in deleted]}

    async def _reached(self, patience: float) -> dict[str, Any]:
        """Return the revision in force: the one that the nodes agree on, where there is one."""
        agreed = self.store.revision
        reached: dict[str, Any] = {"revision": self.reconciler.revision if agreed is None else agreed}
        if patience and agreed is not None:
            nodes = await self.store.enforced_by(agreed, patience)
            reached["nodes"] = [
                {"name": one.name, **_life(one), "enforced": (one.revision or 0) >= agreed} for one in nodes
            ]
        return reached

    async def store_status(self, _params: api.Params) -> dict[str, Any]:
        """Return what there is to say of the store."""
        status = await self._shared().status()
        return {**status, "changes_kept": await self._shared().changes_kept()}

    async def store_export(self, _params: api.Params) -> AsyncIterator[dict[str, Any]]:
        """Yield a header, then everything that the cluster has agreed on."""
        for one in self._shared().export():
            yield one

    async def store_import(self, params: api.Params) -> dict[str, Any]:
        """Give what was exported to the store."""
        imported = await self._shared().import_entries(params.get("entries", ()))
        await self.reconciler.step()
        return imported

    async def store_gc(self, params: api.Params) -> dict[str, Any]:
        """Collect garbage now; ``grace``: of what has not been used for so many seconds."""
        grace = params.get("grace")
        if grace is not None and (not isinstance(grace, int | float) or grace < 0):
            raise BadInput("grace must be a number of seconds, 0 or more")
        collected = await self._shared().collect(grace)
        return {**collected._asdict(), "nodes": list(collected.nodes)}

    def _shared(self) -> RedisStore:
        if not isinstance(self.store, RedisStore):
            raise BadInput("this agent has no store but its own memory (store: memory:)")
        return self.store


def _patience(params: api.Params) -> float:
    """Return how many seconds a client waits for other nodes."""
    wait = params.get("wait") or 0
    if not isinstance(wait, int | float) or wait < 0:
        raise BadInput("wait must be a number of seconds, 0 or more, or null")
    return min(wait, _MOST_PATIENCE)


def _life(one: NodeStatus) -> dict[str, Any]:
    return {
        "live": one.live,
        "last_seen": utc_time(one.seen) if one.seen is not None else None,
        "revision": one.revision,
    }


def _applied(applied: Applied) -> dict[str, Any]:
    return {
        "documents": list(applied.documents),
        "endpoints": [
            {
                "endpoint": one.endpoint,
                "identity": one.identity,
                "labels": [str(label) for label in one.labels],
                "new_identity": one.new,
            }
            for one in applied.endpoints
        ],
    }
