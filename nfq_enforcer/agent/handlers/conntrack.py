"""Conntrack: the flows of all workers."""

import struct
from ipaddress import ip_address
from typing import Any

from nfq_enforcer.agent.api import Params
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.params import text
from nfq_enforcer.cluster.records import EndpointRecord
from nfq_enforcer.core.tables.conntrack import FlowState, Offload
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP, read_key
from nfq_enforcer.dataplane.worker import flow_list
from nfq_enforcer.dataplane.worker.flow_list import FlowRow
from nfq_enforcer.errors import BadInput, NfqError, OutcomeUnknown
from nfq_enforcer.text import shorten

_PROTOCOLS = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP", ICMP: "ICMPv4", ICMPV6: "ICMPv6"}


class ConntrackHandlers:
    """Conntrack handlers: list and flush the flows of the workers."""

    def __init__(self, parts: Parts) -> None:
        """Set the parts to read and to change."""
        self._parts = parts

    async def list_flows(self, params: Params) -> dict[str, Any]:
        """Return flows; ``from`` and ``to`` are an address, or NAMESPACE/NAME of an endpoint.

        ``total`` counts the flows of all workers. A worker searches a limited number of them: ``searched``.
        """
        answers = await self._parts.workers.list_flows(self._addresses(params, "from"), self._addresses(params, "to"))
        flows: list[dict[str, Any]] = []
        processes = self._process(params, "from"), self._process(params, "to")
        total = searched = 0
        for worker, found in zip(self._parts.workers.processes, answers, strict=True):
            if found is None:
                raise NfqError(f"the worker of queue {worker.queues.headers} does not answer")
            total += found.total
            searched += min(found.total, flow_list.SEARCHED)
            try:
                flows += [
                    self._flow(row, worker.queues.headers)
                    for row in flow_list.unpack(found.packed)
                    if processes[0] in {None, row.source} and processes[1] in {None, row.destination}
                ]
            except (ValueError, struct.error):
                raise NfqError(f"the worker of queue {worker.queues.headers} gave an invalid answer") from None
        return {"flows": flows, "total": total, "searched": searched}

    async def flush(self, _params: Params) -> dict[str, Any]:
        """Forget all flows; return their number."""
        total = sum(worker.state.counters["flows"] for worker in self._parts.workers.processes)
        try:
            await self._parts.reconciler.flush_flows()
        except NfqError as error:
            raise OutcomeUnknown(f"not every worker has confirmed that it forgets its flows: {error}") from None
        return {"flushed": total}

    def _addresses(self, params: Params, name: str) -> frozenset[bytes] | None:
        written = text(params, name)
        if not written:
            return None
        record = self._endpoint(written)
        if record is not None:
            return frozenset(record.addresses) if record.cgroup is None else None
        try:
            return frozenset((ip_address(written).packed,))
        except ValueError:
            raise BadInput(
                f"{name}: '{shorten(written)}' is neither an endpoint of the cluster nor an address"
            ) from None

    def _endpoint(self, written: str) -> EndpointRecord | None:
        return self._parts.replica.endpoints.get(written if "/" in written else f"default/{written}")

    def _process(self, params: Params, name: str) -> int | None:
        """Return the identity of a process endpoint, which shares its address; None for any other end."""
        record = self._endpoint(text(params, name))
        return record.identity if record is not None and record.cgroup is not None else None

    def _flow(self, row: FlowRow, queue: int) -> dict[str, Any]:
        src, dst, proto, sport, dport, *_ = read_key(row.key)
        return {
            "protocol": _PROTOCOLS.get(proto, str(proto)),
            "source": self._end(src, row.source, sport),
            "destination": self._end(dst, row.destination, dport),
            "state": FlowState(row.state).name,
            "offload": Offload(row.offload).name,
            "revision": row.revision if row.revision >= 0 else None,
            "expires_in": row.expires_in,
            "queue": queue,
        }

    def _end(self, packed: bytes, identity: int, port: int) -> dict[str, Any]:
        address = str(ip_address(packed))
        return {"address": address, "port": port or None, "identity": identity or None}
