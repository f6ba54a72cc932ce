"""Flows of other nodes over mutual TLS: one connection for each request, to the address in the node's record."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from nfq_enforcer.agent.params import Params
from nfq_enforcer.agent.peers import certificates
from nfq_enforcer.agent.peers.protocol import FIRST, SILENCE, NodeRefused
from nfq_enforcer.agent.peers.section import PeersSection
from nfq_enforcer.cluster.names import NodeView
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.status import NodeReport
from nfq_enforcer.text import read_json, shorten

_CONNECT = 3.0  # s
_LINE = 4 << 20  # bytes of one batch
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class PeerConnections:
    """PeerConnections: asks other nodes' agents, and believes those whose certificate names their node."""

    notice = None

    def __init__(self, section: PeersSection, records: Callable[[], Mapping[str, NodeView]]) -> None:
        """Take the settings, and the function that returns the records of the cluster's nodes."""
        self._section = section
        self._records = records

    async def ask(self, node: NodeReport, params: Params) -> AsyncGenerator[Any, None]:
        """Yield the batches of a node; raise NfqError with the reason if it cannot be asked, or stops answering."""
        record = self._records().get(node.name)
        if record is None or record.peers is None:
            version = record.version if record is not None else "unknown"
            raise NfqError(f"it accepts no connections of agents: its configuration (version {version}) has no peers")
        async with self._connected(node.name, record) as (reader, writer):
            request = {"method": "observe", "params": dict(params)}
            writer.write(json.dumps(request).encode() + b"\n")
            batch = await _next(reader, FIRST)
            if batch is None:
                raise NfqError("its agent has hung up: its log says whether it refuses the certificate of this node")
            while batch is not None:
                yield batch
                batch = await _next(reader, SILENCE)

    @asynccontextmanager
    async def _connected(self, name: str, record: NodeView) -> AsyncIterator[Streams]:
        reader, writer = await self._connect(record)
        try:
            names = certificates.names(writer.get_extra_info("peercert"))
            if name not in names:
                raise NfqError(f"its certificate is for {json.dumps(sorted(names))[:200]}, not for this node")
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _connect(self, record: NodeView) -> Streams:
        """Connect to the address at which a node listens, or to the first of its own that answers."""
        assert record.peers is not None
        address, port = record.peers
        context = certificates.client_context(self._section)
        reason = "it has no address"
        for host in map(str, record.addresses if address.is_unspecified else (address,)):
            try:
                async with asyncio.timeout(_CONNECT):
                    return await asyncio.open_connection(host, port, ssl=context, limit=_LINE, server_hostname="")
            except TimeoutError:
                reason = f"{host} port {port} does not answer"
            except OSError as error:
                reason = f"connecting to {host} port {port} failed: {certificates.sentence(error)}"
        raise NfqError(reason)


async def _next(reader: asyncio.StreamReader, patience: float) -> Any:
    """Return the next batch, None at the end of the answer; raise NfqError for an error, or after the patience."""
    try:
        async with asyncio.timeout(patience):
            line = await reader.readline()
        message = read_json(line) if line else {"result": None}
    except TimeoutError:
        raise NfqError(f"its agent has not answered for {patience:.0f} seconds") from None
    except OSError as error:  # also the refusal of this node's certificate, which TLS 1.3 sends after the handshake
        raise NfqError(f"the connection to its agent has ended: {certificates.sentence(error)}") from None
    except ValueError:  # of ``readline`` for a line beyond the limit, too
        raise NfqError("its agent does not answer as an agent does") from None
    match message:
        case {"result": batch}:
            return batch
        case {"error": reason}:
            raise NodeRefused(shorten(str(reason), 300))
    raise NfqError("its agent does not answer as an agent does")
