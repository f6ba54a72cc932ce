"""Why: the explanation of one flow, by the command ``nfq-enforcer why``, in a process of its own.

The command compiles the documents of the agent and tries changes of them: seconds of work in a large cluster, which the
server must not wait for. It reads the flow on its standard input, because the agent's log may not have it any more.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

from nfq_enforcer.errors import NfqError

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AT_A_TIME = 2
_PATIENCE = 30.0  # s
_MAX_LINES = 400
_KNOWN = {0, 1}  # exit statuses of an explanation: it passes, it is refused


class Why:
    """Why: explains flows by the documents of one agent, a few at a time."""

    def __init__(self, socket: Path) -> None:
        """Set the agent's socket."""
        self._socket = socket
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def explain(self, uuid: str, flow: bytes) -> list[str]:
        """Return the lines of the explanation of a flow, given as JSON; raise NfqError with the command's sentence."""
        async with self._places:
            command = ("-m", "nfq_enforcer.cli", "why", uuid, "--input-file", "-", "--socket", str(self._socket))
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "NO_COLOR": "1"},
            )
            try:
                async with asyncio.timeout(_PATIENCE):
                    shown, error = await process.communicate(flow + b"\n")
            except TimeoutError:
                raise NfqError(f"the explanation takes more than {_PATIENCE:.0f} s; ask 'nfq-enforcer why'") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode not in _KNOWN or not shown:
            raise NfqError(error.decode(errors="replace").strip().removeprefix("nfq-enforcer: "))
        return shown.decode(errors="replace").splitlines()[:_MAX_LINES]
