"""Server of this node's flows for other agents: the API's lines over mutual TLS, with the one method ``observe``.

The handshake is part of a connection's time and count (``web.server``), so that clients without a certificate are
limited as all others.
"""

import json
import logging
from collections.abc import Callable, Collection

from nfq_enforcer.agent.api import Requests, error_line
from nfq_enforcer.agent.peers import certificates
from nfq_enforcer.agent.peers.protocol import Serve
from nfq_enforcer.agent.peers.section import PeersSection
from nfq_enforcer.errors import NfqError
from nfq_enforcer.web.server import Connection, Limits, StreamServer

_log = logging.getLogger(__name__)

_LIMITS = Limits(request=1 << 20, send_time=60.0)
_HANDSHAKE = 5.0  # s


class PeerServer:
    """PeerServer: answers agents whose certificate names a node of the cluster."""

    def __init__(self, section: PeersSection, serve: Serve, nodes: Callable[[], Collection[str]]) -> None:
        """Take the settings, the function that yields this node's flows, and the names of the cluster's nodes."""
        self._section = section
        self._nodes = nodes
        self._requests = Requests({"observe": serve}, _LIMITS)
        self._server = StreamServer(self._handle, error_line, _LIMITS, "a request of another node")

    async def start(self) -> None:
        """Listen; raise NfqError if a file cannot be used, or the address cannot be bound."""
        listening = self._section.listening
        assert listening is not None
        self._context = certificates.server_context(self._section)
        try:
            await self._server.listen_tcp(*listening)
        except OSError as error:
            raise NfqError(f"cannot listen on peers.listen {self._section.listen}: {error.strerror}") from None

    async def stop(self) -> None:
        """Disconnect every client."""
        await self._server.stop()

    async def _handle(self, connection: Connection) -> None:
        address = connection.writer.get_extra_info("peername")[0]
        try:
            # without a pause before this, or the stream reader would get the first bytes of the handshake
            await connection.writer.start_tls(self._context, ssl_handshake_timeout=_HANDSHAKE)
        except OSError as error:
            _log.warning("a connection from %s was refused: %s", address, certificates.sentence(error))
            raise ConnectionAbortedError from None
        names = certificates.names(connection.writer.get_extra_info("peercert"))
        if not names & frozenset(self._nodes()):
            shown = json.dumps(sorted(names))[:200]
            _log.warning("a connection from %s was refused: its certificate is for %s, no node", address, shown)
            await connection.send(error_line(NfqError(f"the certificate is for {shown}, which is no node here")))
            return
        await self._requests.handle(connection)
