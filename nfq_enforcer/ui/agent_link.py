"""Agent link: single calls of the agent's API, and its flows as they come, without blocking the event loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nfq_enforcer.agent import client
from nfq_enforcer.errors import NfqError

_MAX_LINE = 1 << 20  # bytes of one flow
_TURN = 100  # flows that are read before other tasks get their turn


class AgentLink:
    """Agent link: the API of one agent, by its socket."""

    def __init__(self, socket: Path) -> None:
        """Set the path of the socket; nothing is opened yet."""
        self._socket = socket

    async def call(self, method: str, **params: Any) -> Any:
        """Return the result of a method; raise NfqError."""
        return await asyncio.to_thread(client.call, self._socket, method, **params)

    async def flows(self, **params: Any) -> AsyncIterator[bytes]:
        """Yield the kept flows, then new ones as they come, each as the JSON of one flow; raise NfqError at the end.

        ``params`` are those of the method ``observe``. The first item is empty: the agent has accepted the connection.
        """
        request = json.dumps({"method": "observe", "params": {**params, "follow": True}}).encode() + b"\n"
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=_MAX_LINE)
        except OSError as error:
            raise client.refusal(self._socket, error) from None
        try:
            writer.write(request)
            yield b""
            number = 0
            while line := await reader.readline():
                yield _flow(self._socket, line)
                number += 1
                if number % _TURN == 0:  # readline returns at once while lines are buffered
                    await asyncio.sleep(0)
        except (ConnectionError, ValueError) as error:  # ValueError: a line beyond the limit
            raise NfqError(f"the stream of the agent at {self._socket} ended: {error}") from None
        finally:
            writer.close()
        raise NfqError(f"the agent at {self._socket} has ended the stream")


_BEGIN = b'{"result": '


def _flow(socket: Path, line: bytes) -> bytes:
    """Return the JSON of the flow in an answer of the API; raise NfqError for an error of the agent."""
    if line.startswith(_BEGIN) and line.endswith(b"}\n"):
        return line[len(_BEGIN) : -2]
    return json.dumps(client.read_result(socket, line, "observe")).encode()
