"""The way to a Redis server (or a Valkey) as it is deployed: TLS, users, Sentinels; and what is wrong where it fails.

A client is one connection and lives as long as that: what it was told at its start (which server this is, whether it
is the primary) would not hold for the next one. Who wants to be connected again asks ``locate`` and makes a new client.

One server holds all of a cluster, because its changes are one ordered stream and a step changes several keys at once;
the shards of a Redis Cluster could promise neither, so it is refused.

A user of its own needs what ``PERMISSIONS`` has and the keys below the address's ``prefix``, here ``nfqe``:
``ACL SETUSER nfq-enforcer on >PASSWORD ~nfqe:* PERMISSIONS``. Behind Sentinels the ``sentinel_user`` needs
``SENTINEL_PERMISSIONS``.
"""

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.address import HostPort, StoreAddress

Address = IPv4Address | IPv6Address

# What scripts call counts, too: Redis checks it against the user who runs them.
PERMISSIONS = (
    "+ping +info +select +client|setname +evalsha +script|load +time +exists "
    "+xread +xrange +xlen +xinfo|stream +xadd +xsetid "
    "+hget +hgetall +hmget +hscan +hexists +hset +hincrby +hdel "
    "+sadd +srem +scard +srandmember +zadd +zrem +zrange +zrangebyscore "
    "+rpush +lrange +lindex +lset +ltrim"
)
SENTINEL_PERMISSIONS = "+client|setname +sentinel|get-master-addr-by-name"

CLIENT_NAME = "nfq-enforcer"
MIN_VERSION = (6, 2)
_RESP = 2  # every server and proxy speaks it, and no command of ours answers more in RESP3
_SENTINEL_TIMEOUT = 2.0  # seconds that one Sentinel gets before the next is asked
_SERVER_TEXT = 200  # characters of what a server says that are repeated

FAILURES = (RedisError, OSError, ValueError)  # what talking to a server can raise; a stranger's bytes the last


class StoreError(NfqError):
    """The store cannot be reached or used as it is deployed."""


class HandshakeError(redis_errors.ConnectionError):
    """The server was reached, but not as it wants it; the text is a sentence, without the password that was sent."""


class ServerInfo(NamedTuple):
    """What a server says of itself."""

    product: str  # Redis or Valkey
    version: str
    run_id: str  # another one after each start


class Connection:
    """One Redis deployment, by its address."""

    def __init__(self, address: StoreAddress) -> None:
        self.address = address

    async def locate(self) -> HostPort:
        """Return where the primary is now; raise StoreError if no Sentinel knows."""
        if not self.address.service:
            return self.address.servers[0]
        said: list[str] = []
        for sentinel in self.address.servers:
            try:
                return await self._ask(sentinel)
            except StoreError as error:
                said.append(f"{sentinel}: {error}")
            except FAILURES as error:
                said.append(f"{sentinel}: {sentence(error)}")
        raise StoreError(f"no Sentinel names a primary of '{self.address.service}': {'; '.join(said)}")

    async def resolve(self) -> frozenset[tuple[Address, int]]:
        """Return every address that this node may have to reach: the primary's and the Sentinels'.

        What cannot be found out now is left out: without names or Sentinels there is nothing to be reached either.
        """
        servers = set(self.address.servers)
        with suppress(StoreError):
            servers.add(await self.locate())
        found = await asyncio.gather(*map(_resolved, servers))
        return frozenset().union(*found)

    def client(self, host: str, port: int, *, timeout: float) -> Redis:
        """Return a client of one connection, made with its first command; raise StoreError for a file it needs."""
        one = self.address
        password = _read_password("password_file", one.password_file)
        if password is None and one.password:
            password = one.password.get_secret_value()
        return self._client(HostPort(host, port), one.user, password, db=one.db, timeout=timeout)

    async def _ask(self, sentinel: HostPort) -> HostPort:
        one = self.address
        password = _read_password("sentinel_password_file", one.sentinel_password_file)
        client: Any = self._client(sentinel, one.sentinel_user, password, db=0, timeout=_SENTINEL_TIMEOUT)
        async with aclosing(client):
            answer = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", one.service)
        if not answer:
            raise StoreError(f"it watches nothing called '{one.service}'")
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
            driver_info=None,  # of no use to anyone, and not known before Redis 7.2
            redis_connect_func=_once(lacks_certificate=self.address.tls and not self.address.cert_file),
            **self._tls(),
        )

    def _tls(self) -> dict[str, Any]:
        one = self.address
        files = {"ca_file": one.ca_file, "cert_file": one.cert_file, "key_file": one.key_file}
        for name, file in files.items():
            if file:
                _read(name, file)  # here, where its name is known; TLS only says that some file is wrong
        return {
            "ssl": one.tls,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": one.ca_file and str(one.ca_file),
            "ssl_certfile": one.cert_file and str(one.cert_file),
            "ssl_keyfile": one.key_file and str(one.key_file),
        }


async def check(client: Redis) -> ServerInfo:
    """Return what the server is; raise StoreError if it does not answer, or is none that can hold a cluster."""
    try:
        info: Any = await client.info()
    except FAILURES as error:
        raise StoreError(sentence(error)) from error
    except (AttributeError, TypeError):  # redis-py does not doubt the shape of an answer
        raise StoreError(_STRANGER) from None
    return read_info(info)


def read_info(info: Mapping[str, Any]) -> ServerInfo:
    """Return what the answer to INFO says; raise StoreError if it says that the server can hold no cluster."""
    if "redis_version" not in info:
        raise StoreError(_STRANGER)
    if info.get("redis_mode") == "sentinel":
        raise StoreError("it is a Sentinel; as one it is named redis+sentinel://host/service")
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled"):
        raise StoreError(_CLUSTER_MODE)
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info["redis_version"])  # of Valkey: that of the Redis it is compatible with
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MIN_VERSION:
        raise StoreError(f"it is {product} {version}; needed is {'.'.join(map(str, MIN_VERSION))} or newer")
    if info.get("loading"):
        raise StoreError(_LOADING)
    if info.get("role") != "master":
        primary = HostPort(str(info.get("master_host")), int(info.get("master_port", 0)))
        raise StoreError(f"{_REPLICA}; its primary is {primary}")
    return ServerInfo(product, str(info.get("valkey_version", version)), str(info["run_id"]))


def sentence(error: BaseException) -> str:
    """Return what is wrong in one sentence about the server ("it …"), without what was sent to it."""
    if isinstance(error, HandshakeError):
        return str(error)
    while type(error) is redis_errors.ConnectionError and (inner := error.__cause__ or error.__context__):
        error = inner  # redis-py's own text has the place twice
    if isinstance(error, NfqError):
        return str(error)
    return next((told(error) for kind, told in _SENTENCES if isinstance(error, kind)), _STRANGER)


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
    """Tell an error of the system; one that sums up those of several addresses has their numbers in its text only."""
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
    """Return the first sentence of what the server said, without arguments, among which a password may be."""
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
    """Return what completes a connection, and refuses to do so for another one of the same client."""
    used = False

    async def connect(connection: redis_connection.Connection) -> None:
        nonlocal used
        if used:
            raise HandshakeError(_CLOSED)
        used = True
        try:
            await connection.on_connect()
        except FAILURES as error:
            told = sentence(error)
            hint = "; it may ask for a certificate of this node: see cert_file" if lacks_certificate else ""
            raise HandshakeError(told + hint if told == _CLOSED else told) from None

    return connect


def _read_password(name: str, file: Path | None) -> str | None:
    return _read(name, file).rstrip("\r\n") if file else None


def _read(name: str, file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise StoreError(f"the store's {name} {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StoreError(f"the store's {name} {file} is not UTF-8 text") from None


async def _resolved(server: HostPort) -> frozenset[tuple[Address, int]]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the latter: a name that no resolver takes
        return frozenset()
    return frozenset((ip_address(place[0]), server.port) for *_, place in found)
