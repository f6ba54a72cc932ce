"""Connections to a Redis or Valkey deployment: TLS, users, Sentinels, and error sentences for its failures.

A client is one connection and ends with it: facts read at its start (the server's run, its role as the primary) need
not hold for the next connection. A caller that connects again calls ``locate`` and makes a new client.

One server holds a whole cluster, because the changes are one ordered stream and a step changes several keys at once.
The shards of a Redis Cluster can guarantee neither, so a server in cluster mode is refused.

A dedicated user needs ``PERMISSIONS`` and the keys below the address's ``prefix``, here ``nfqe``:
``ACL SETUSER nfq-enforcer on >PASSWORD ~nfqe:* &nfqe:* PERMISSIONS``. Without the channels ``&nfqe:*`` all but
``observe --all-nodes`` works. Behind Sentinels the ``sentinel_user`` needs ``SENTINEL_PERMISSIONS``.
"""

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nfq_enforcer import input_file
from nfq_enforcer.cluster.records import Address
from nfq_enforcer.errors import DocumentError, NfqError, OutcomeUnknown
from nfq_enforcer.input_file import SETTINGS_SIZE
from nfq_enforcer.store.address import HostPort, StoreAddress
from nfq_enforcer.store.redis.timings import DEFAULT_TIMINGS, SessionTimings

# With the commands inside scripts: Redis checks those against the user that runs the script.
PERMISSIONS = (
    "+ping +info +select +client|setname +evalsha +script|load +time +exists "
    "+xread +xrange +xlen +xinfo|stream +xadd +xsetid "
    "+hget +hgetall +hmget +hscan +hexists +hset +hincrby +hdel "
    "+sadd +srem +scard +srandmember +zadd +zrem +zrange +zrangebyscore "
    "+rpush +lrange +lindex +lset +ltrim "
    "+publish +subscribe"
)
SENTINEL_PERMISSIONS = "+client|setname +sentinel|get-master-addr-by-name"

CLIENT_NAME = "nfq-enforcer"
MIN_VERSION = (6, 2)
_RESP = 2  # supported by every server and proxy; RESP3 adds nothing to the answers used here
_SERVER_TEXT = 200  # characters of a server's error text that a sentence repeats

FAILURES = (RedisError, OSError, ValueError)  # of a command; ValueError for bytes of another protocol
_LOST = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)
_ANSWERS = (redis_errors.BusyLoadingError, redis_errors.AuthenticationError)  # subclasses of ConnectionError


class StoreError(NfqError):
    """The store cannot be reached, or its deployment cannot be used."""


class Unanswered(StoreError, OutcomeUnknown):
    """The connection failed before the answer to a write: the store may have executed it, or may still do so."""


class HandshakeError(redis_errors.ConnectionError):
    """The server was reached and the handshake failed; the text is a sentence without the password that was sent."""


class ServerInfo(NamedTuple):
    """ServerInfo: product, version and run of a server, from its answer to INFO."""

    product: str  # Redis or Valkey
    version: str
    run_id: str  # new with each start of the server


class Connection:
    """Connection: locates the servers of one deployment and makes clients of them."""

    def __init__(self, address: StoreAddress, timings: SessionTimings = DEFAULT_TIMINGS) -> None:
        """Take the deployment's address; nothing is connected yet."""
        self.address = address
        self._sentinel_timeout = timings.sentinel_timeout

    async def locate(self) -> HostPort:
        """Return host and port of the current primary; raise StoreError if no Sentinel names one."""
        if not self.address.service:
            return self.address.servers[0]
        failures: list[str] = []
        for sentinel in self.address.servers:
            try:
                return await self._query(sentinel)
            except StoreError as error:
                failures.append(f"{sentinel}: {error}")
            except FAILURES as error:
                failures.append(f"{sentinel}: {sentence(error)}")
        raise StoreError(f"no Sentinel names a primary of '{self.address.service}': {'; '.join(failures)}")

    async def resolve(self) -> frozenset[tuple[Address, int]]:
        """Return all addresses and ports that this node may connect to: the primary's and the Sentinels'.

        A name that does not resolve, or a primary that no Sentinel names, is left out: it cannot be reached either.
        """
        servers = set(self.address.servers)
        with suppress(StoreError):
            servers.add(await self.locate())
        resolved = await asyncio.gather(*map(_resolved, servers))
        return frozenset().union(*resolved)

    def client(self, host: str, port: int, *, timeout: float) -> Redis:
        """Return a client that connects with its first command; raise StoreError for a file that cannot be read."""
        address = self.address
        password = _read_password("password_file", address.password_file)
        if password is None and address.password:
            password = address.password.get_secret_value()
        return self._client(HostPort(host, port), address.user, password, db=address.db, timeout=timeout)

    async def _query(self, sentinel: HostPort) -> HostPort:
        """Return the primary that a Sentinel names; raise StoreError or one of FAILURES."""
        address = self.address
        password = _read_password("sentinel_password_file", address.sentinel_password_file)
        client: Any = self._client(sentinel, address.sentinel_user, password, db=0, timeout=self._sentinel_timeout)
        async with aclosing(client):
            answer = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        if not answer:
            raise StoreError(f"it watches nothing called '{address.service}'")
        host, port = answer
        return HostPort(host.decode(), int(port))

    def _client(self, server: HostPort, user: str | None, password: str | None, *, db: int, timeout: float) -> Redis:
        return Redis(
            host=server.host,
            port=server.port,
            db=db,
            username=user,
            password=password,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            protocol=_RESP,
            client_name=CLIENT_NAME,
            single_connection_client=True,
            driver_info=None,  # CLIENT SETINFO is unknown before Redis 7.2
            redis_connect_func=_once(lacks_certificate=self.address.tls and not self.address.cert_file),
            **self._tls(),
        )

    def _tls(self) -> dict[str, Any]:
        address = self.address
        files = {"ca_file": address.ca_file, "cert_file": address.cert_file, "key_file": address.key_file}
        for name, file in files.items():
            if file:
                _read(name, file)  # an error here names the file; an error of TLS does not
        return {
            "ssl": address.tls,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": address.ca_file and str(address.ca_file),
            "ssl_certfile": address.cert_file and str(address.cert_file),
            "ssl_keyfile": address.key_file and str(address.key_file),
        }


async def check(client: Redis) -> ServerInfo:
    """Return the server's product, version and run; raise StoreError if it does not answer or cannot be used."""
    try:
        info: Any = await client.info()
    except FAILURES as error:
        raise StoreError(sentence(error)) from error
    except (AttributeError, TypeError):  # redis-py does not check the shape of an answer
        raise StoreError(_STRANGER) from None
    return read_info(info)


def read_info(info: Mapping[str, Any]) -> ServerInfo:
    """Return product, version and run in an answer to INFO; raise StoreError if the server cannot hold a cluster."""
    if "redis_version" not in info:
        raise StoreError(_STRANGER)
    if info.get("redis_mode") == "sentinel":
        raise StoreError("it is a Sentinel; as one it is named redis+sentinel://host/service")
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled"):
        raise StoreError(_CLUSTER_MODE)
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info["redis_version"])  # for a Valkey: the version of Redis that it is compatible with
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MIN_VERSION:
        raise StoreError(f"it is {product} {version}; needed is {'.'.join(map(str, MIN_VERSION))} or newer")
    if info.get("loading"):
        raise StoreError(_LOADING)
    if info.get("role") != "master":
        primary = HostPort(str(info.get("master_host")), int(info.get("master_port", 0)))
        raise StoreError(f"{_REPLICA}; its primary is {primary}")
    return ServerInfo(product, str(info.get("valkey_version", version)), str(info["run_id"]))


def may_be_executed(error: BaseException | None) -> bool:
    """Return whether a command that failed with this error may have reached the server, which has not answered it."""
    return isinstance(error, _LOST) and not isinstance(error, (HandshakeError, *_ANSWERS))


def sentence(error: BaseException) -> str:
    """Return an error as one sentence with the server as subject ("it …"), without any text sent to the server."""
    if isinstance(error, HandshakeError):
        return str(error)
    while type(error) is redis_errors.ConnectionError and (inner := error.__cause__ or error.__context__):
        error = inner  # redis-py's own text has host and port twice
    if isinstance(error, NfqError):
        return str(error)
    return next((render(error) for kind, render in _SENTENCES if isinstance(error, kind)), _STRANGER)


_STRANGER = "it does not answer as a Redis server does"
_CLOSED = "it closed the connection"
_REPLICA = "it is a replica, which takes no writes"
_LOADING = "it is still loading its data"
_CLUSTER_MODE = (
    "it runs in cluster mode, which is not supported: one ordered stream and steps that change several keys at once "
    "need all keys on one server"
)


def _tls_sentence(error: BaseException) -> str:
    reason = str(getattr(error, "reason", None) or "unknown reason").replace("_", " ").lower()
    if "wrong version number" in reason:
        return "it does not speak TLS on this port"
    if "certificate required" in reason:
        return "it asks for a certificate of this node, and none is given: see cert_file"
    return f"TLS with it failed: {reason}"


def _os_sentence(error: BaseException) -> str:
    """Return the sentence for an error of the system; one of several addresses has the numbers in its text only."""
    assert isinstance(error, OSError)
    number = error.errno or next(map(int, re.findall(r"\[Errno (\d+)\]", str(error))), 0)
    return f"it cannot be reached: {os.strerror(number) if number else error}"


def _login_sentence(error: BaseException) -> str:
    text = str(error).lower()
    if "required" in text:
        return "it asks for a password, and none is given"
    if "without any password" in text:
        return "it has no password for the default user, but one is given"
    return "the user or the password is wrong, or the user is disabled"


def _connection_sentence(error: BaseException) -> str:
    text = str(error)
    if "max number of clients" in text:
        return "it has as many clients as it takes (maxclients)"
    return _STRANGER if "client name" in text or "Invalid" in text else _CLOSED


def _words(error: BaseException) -> str:
    """Return the first sentence of the server's error text, without arguments, which may contain a password."""
    text = " ".join(str(error).split()).partition(", with args")[0].partition(". ")[0]
    return text[:_SERVER_TEXT]


_SENTENCES: tuple[tuple[type[BaseException], Callable[[BaseException], str]], ...] = (
    (socket.gaierror, lambda error: f"its name is not known: {getattr(error, 'strerror', None) or error}"),
    (ssl.SSLCertVerificationError, lambda error: f"its certificate is refused: {getattr(error, 'verify_message', '')}"),
    (ssl.SSLError, _tls_sentence),
    (TimeoutError, lambda _: "it did not answer in time"),
    (redis_errors.TimeoutError, lambda _: "it did not answer in time"),
    (ConnectionResetError, lambda _: _CLOSED),
    (BrokenPipeError, lambda _: _CLOSED),
    (OSError, _os_sentence),
    (redis_errors.AuthenticationError, _login_sentence),
    (redis_errors.NoPermissionError, lambda error: f"the user may not do all that is needed: {_words(error)}"),
    (redis_errors.ReadOnlyError, lambda _: _REPLICA),
    (redis_errors.MasterDownError, lambda _: _REPLICA),
    (redis_errors.BusyLoadingError, lambda _: _LOADING),
    (redis_errors.OutOfMemoryError, lambda _: "its memory is full (maxmemory)"),
    (redis_errors.ClusterError, lambda _: _CLUSTER_MODE),
    (redis_errors.AskError, lambda _: _CLUSTER_MODE),
    (redis_errors.ClusterCrossSlotError, lambda _: _CLUSTER_MODE),
    (redis_errors.ResponseError, lambda error: f"it refused a command: {_words(error)}"),
    (redis_errors.ConnectionError, _connection_sentence),
)


def _once(*, lacks_certificate: bool) -> Callable[[redis_connection.Connection], Awaitable[None]]:
    """Return a connect callback that completes a client's first connection and refuses any further one."""
    used = False

    async def connect(connection: redis_connection.Connection) -> None:
        nonlocal used
        if used:
            raise HandshakeError(_CLOSED)
        used = True
        try:
            await connection.on_connect()
        except FAILURES as error:
            reason = sentence(error)
            hint = "; it may ask for a certificate of this node: see cert_file" if lacks_certificate else ""
            raise HandshakeError(reason + hint if reason == _CLOSED else reason) from None

    return connect


def _read_password(name: str, file: Path | None) -> str | None:
    return _read(name, file).rstrip("\r\n") if file else None


def _read(name: str, file: Path) -> str:
    try:
        return input_file.read(file, SETTINGS_SIZE).decode()
    except DocumentError as error:
        raise StoreError(f"the store's {name} {file} {error.message}") from None
    except UnicodeDecodeError:
        raise StoreError(f"the store's {name} {file} is not UTF-8 text") from None


async def _resolved(server: HostPort) -> frozenset[tuple[Address, int]]:
    loop = asyncio.get_running_loop()
    try:
        resolved = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: the name cannot be encoded for a resolver
        return frozenset()
    return frozenset((ip_address(address[0]), server.port) for *_, address in resolved)
