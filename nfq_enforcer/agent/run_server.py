"""Server of ``nfq-enforcer run``: a socket of its own, which every user of this host can open.

It has one method, and the kernel names the caller (SO_PEERCRED), so a caller cannot claim to be another one. The
permissions are in the configuration (``processes.allow``).
"""

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nfq_enforcer.agent import params
from nfq_enforcer.agent.api import ApiServer, Requests, parse
from nfq_enforcer.agent.params import Params
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.web.server import Connection, Limits
from nfq_enforcer.workloads.processes import Caller, Processes

_LIMITS = Limits(request=1 << 16, time=30.0, request_time=2.0, clients=32)
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77  # asm-generic/socket.h; the latter since Linux 6.5
_GROUP_BYTES = 1024  # the longest answer that Python takes


class RunServer(ApiServer):
    """Run server: makes the process at the other end of a connection an endpoint."""

    def __init__(self, path: Path, processes: Processes) -> None:
        """Set the path of the socket."""
        super().__init__(path, {}, _LIMITS, group="", mode=0o666, requests=_RunRequests(processes))


class _RunRequests(Requests):
    """_RunRequests: answers requests with regard to the process at the other end."""

    def __init__(self, processes: Processes) -> None:
        super().__init__({}, _LIMITS)
        self._processes = processes

    def _call(self, line: bytes, connection: Connection) -> Any:
        name, given = parse(line)
        if name != "run":
            raise BadInput("unknown method; allowed: run")
        return self._run(given, connection)

    async def _run(self, given: Params, connection: Connection) -> dict[str, Any]:
        peer: socket.socket = connection.peer
        caller = _caller(peer)
        with _Alive(peer) as alive:
            labels = given.get("labels")
            if not isinstance(labels, Mapping) or not all(isinstance(one, str) for one in (*labels, *labels.values())):
                raise BadInput("labels must be a mapping of strings")
            namespace, name = params.text(given, "namespace", "default"), params.text(given, "name")
            alive()
            cgroup = await self._processes.start(caller, namespace, name, dict(labels))
            alive()
        return {"endpoint": f"{namespace}/{name}", "cgroup": cgroup}


def _caller(peer: socket.socket) -> Caller:
    """Return the process that has connected, with all its groups; raise NfqError if the kernel does not name it."""
    pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if pid <= 0:
        raise NfqError("the calling process is in another PID namespace, so it cannot be an endpoint of this host")
    groups = b""
    with suppress(OSError):  # more groups than that
        groups = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_BYTES)
    return Caller(pid, uid, frozenset((gid, *struct.unpack(f"{len(groups) // 4}I", groups))))


class _Alive:
    """Check that the caller still exists: its number may belong to another process after its end."""

    def __init__(self, peer: socket.socket) -> None:
        self._descriptor = -1
        with suppress(OSError):  # before Linux 6.5
            self._descriptor = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)

    def __enter__(self) -> "_Alive":
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def __call__(self) -> None:
        """Raise NfqError if the caller has ended."""
        if self._descriptor < 0:
            return
        lines = Path(f"/proc/self/fdinfo/{self._descriptor}").read_text().splitlines()
        if any(line.split() == ["Pid:", "-1"] for line in lines):
            raise NfqError("the calling process has ended")
