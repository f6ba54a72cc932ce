"""Policies of the cluster: list, apply and delete; and the compiled policy of an endpoint."""

import asyncio
from ipaddress import ip_address
from typing import Any

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.cluster import node_status
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import flag, seconds, text
from nfq_enforcer.cluster.source import Applied
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.policy import listing
from nfq_enforcer.policy.loader import File
from nfq_enforcer.policy.warnings import ClusterFacts, warnings
from nfq_enforcer.text import shorten

_MAX_WAIT = 600.0  # s that a request may wait for other nodes


class PolicyHandlers:
    """Policy handlers: list policies, and write documents to the store."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read and to change."""
        self._parts = parts

    async def policies(self, _params: Params) -> list[dict[str, Any]]:
        """Return every policy and the origin of its document."""
        return [
            {
                "kind": policy.kind,
                "namespace": policy.namespace,
                "name": policy.name,
                "origin": policy.origin,
                "document": policy.data,
            }
            for policy in self._parts.reconciler.view.policies
        ]

    async def endpoint_policy(self, params: Params) -> dict[str, Any]:
        """Return an endpoint of any node and its policy maps as this node compiles them, as rows.

        The name ``host`` is the node itself.
        """
        name, names = text(params, "name"), self._parts.names
        try:
            compiled = self._parts.replica.policy_of(name)
        except KeyError:
            raise NfqError(f"no endpoint has the name '{shorten(name)}'") from None

        def listed() -> dict[str, Any]:
            maps = compiled()
            return {
                "ingress": listing.to_json(maps.ingress, names.labels),
                "egress": listing.to_json(maps.egress, names.labels),
            }

        revision = self._parts.reconciler.revision
        return {"endpoint": name, "revision": revision, **self._endpoint_facts(name), **await asyncio.to_thread(listed)}

    def _endpoint_facts(self, name: str) -> dict[str, Any]:
        record = self._parts.replica.endpoints.get(name)
        if record is None:  # the node itself
            return {"node": self._parts.settings.name}
        return {
            "node": record.node,
            "identity": record.identity,
            "labels": [str(label) for label in self._parts.names.labels(record.identity) or ()],
            "addresses": [str(ip_address(address)) for address in record.addresses],
        }

    async def documents(self, _params: Params) -> dict[str, Any]:
        """Return every document that this node enforces, with the settings that its verdicts depend on."""
        parts, view = self._parts, self._parts.reconciler.view
        return {
            "node": parts.settings.name,
            "revision": parts.reconciler.revision,
            "enforcement": parts.config.enforcement,
            "allow_localhost": parts.config.allow_localhost,
            "cluster": parts.config.cluster,
            "kube_apiserver": [str(address) for address in parts.config.kube_apiserver],
            "node_labels": {f"{label.source}:{label.key}": label.value for label in parts.replica.node_labels},
            "identity_labels": list(parts.config.identity_labels),
            "origins": [[*policy.key, policy.origin] for policy in view.policies],
            "documents": [
                *(record.document() for record in parts.replica.endpoints.values()),
                *(namespace.data for namespace in parts.replica.namespaces.values()),
                *(policy.data for policy in view.policies),
            ],
        }

    async def apply(self, params: Params) -> dict[str, Any]:
        """Apply files of documents, all or none; return once this node enforces them, with ``wait`` all live nodes."""
        try:
            files = [File(_string(name), _string(text)) for name, text in params["files"]]
        except (KeyError, TypeError, ValueError):
            raise BadInput("files must be a list of pairs: a name, and the text of the documents") from None
        wait, ignore = _wait(params), flag(params, "ignore_other_kinds")
        applied = await self._parts.store.apply(files, ignore_other_kinds=ignore)
        await self._parts.reconcile("the documents are stored")
        warned = list(warnings(applied.policies, self._facts(), self._parts.reconciler.view.policies))
        return {**_applied(applied), "warnings": warned, **await self._rollout(wait)}

    def _facts(self) -> ClusterFacts:
        settings, identities = self._parts.settings, self._parts.names.identities.values()
        sources = frozenset(label.source for labels in identities for label in labels)
        return ClusterFacts(settings.cluster, bool(settings.kube_apiserver), sources, settings.relevant)

    async def delete(self, params: Params) -> dict[str, Any]:
        """Delete an applied policy; return once this node enforces the rest, with ``wait`` all live nodes."""
        wait = _wait(params)
        namespace, name = text(params, "namespace"), text(params, "name")
        await self._parts.store.delete_policy(namespace, name, force=flag(params, "force"))
        await self._parts.reconcile("the policy is deleted")
        return await self._rollout(wait)

    async def _rollout(self, wait: float) -> dict[str, Any]:
        """Return the enforced revision: the cluster's where the nodes share one, otherwise this node's own."""
        shared = self._parts.store.revision
        rollout: dict[str, Any] = {"revision": self._parts.reconciler.revision if shared is None else shared}
        if wait and shared is not None:
            nodes = await self._parts.store.enforced_by(shared, wait)
            rollout["nodes"] = [
                {"name": node.name, **node_status(node), "enforced": (node.revision or 0) >= shared} for node in nodes
            ]
        return rollout


def _wait(params: Params) -> float:
    """Return the seconds that the client waits for other nodes."""
    return seconds(params, "wait", _MAX_WAIT) or 0.0


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _applied(applied: Applied) -> dict[str, Any]:
    return {
        "documents": list(applied.documents),
        "endpoints": [
            {
                "endpoint": started.endpoint,
                "identity": started.identity,
                "labels": [str(label) for label in started.labels],
                "new_identity": started.new,
            }
            for started in applied.endpoints
        ],
    }
