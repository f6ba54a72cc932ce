"""Address of the store: parse the setting ``store``. Pure.

    memory:
    redis://[user[:password]@]host[:6379][/db]
    redis+sentinel://[user[:password]@]host[:26379],host,…/service[/db]

and ``rediss://`` and ``rediss+sentinel://`` for the same over TLS; user and password are those of Redis, also behind
Sentinels. An IPv6 address stands in brackets, and special characters of a URL are percent-encoded. Options follow as
``?name=value&name=value``; they are the names in ``OPTIONS``.

No error for an invalid address, and no text of a valid one, contains a password or a possible part of one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from pydantic import SecretStr

DEFAULT_PREFIX = "nfqe"
OPTIONS = (
    "prefix",  # of all keys, so that several clusters can share a server
    "password_file",
    "sentinel_user",  # for the Sentinels themselves
    "sentinel_password_file",
    "ca_file",  # trusted certificate authorities; default: those of the system
    "cert_file",  # this node's own certificate, for a server that requires one
    "key_file",  # the key of cert_file, if it is in another file
)
_SENTINEL_OPTIONS = frozenset({"sentinel_user", "sentinel_password_file"})
_TLS_OPTIONS = frozenset({"ca_file", "cert_file", "key_file"})

_FORMS = (
    "allowed: memory:, redis://[user[:password]@]host[:port][/db], "
    "redis+sentinel://[user[:password]@]host[:port],…/service[/db], and both with rediss for TLS"
)
_REDIS_PORT, _SENTINEL_PORT = 6379, 26379
_MAX_PORT, _MAX_DATABASE = 65535, 65535
_SCHEME = re.compile(r"(redis|rediss)(\+sentinel)?://(.*)", re.DOTALL)
_SERVER = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([^:]*))?")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,64}")  # the names that Sentinel allows
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # no ':', so keys of two clusters differ; no pattern
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class HostPort(NamedTuple):
    """HostPort: host and port of a server in the address; an IPv6 address is without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class StoreAddress:
    """StoreAddress: the address of a store; without servers, the node's own memory. ``str`` of it is ``redacted``."""

    servers: tuple[HostPort, ...] = ()  # with a service, the Sentinels
    service: str = ""  # the Sentinels' name of the primary and its replicas
    db: int = 0
    prefix: str = DEFAULT_PREFIX
    tls: bool = False
    user: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    sentinel_user: str | None = None
    sentinel_password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def is_memory(self) -> bool:
        """Return whether the address has no server: the host works alone."""
        return not self.servers

    @property
    def redacted(self) -> str:
        """Return the canonical address for logs and status, without passwords and files."""
        if self.is_memory:
            return "memory:"
        scheme = f"redis{'s' if self.tls else ''}{'+sentinel' if self.service else ''}"
        user = f"{quote(self.user)}@" if self.user else ""
        prefix = f"?prefix={self.prefix}" if self.prefix != DEFAULT_PREFIX else ""
        return f"{scheme}://{user}{','.join(map(str, self.servers))}{self._path}{prefix}"

    @property
    def cluster(self) -> str:
        """Return a name of the cluster, the same for every user and spelling of the address, fit for a file name."""
        if self.is_memory:
            return "memory"
        servers = ",".join(sorted(str(server).lower() for server in self.servers))
        return f"{self.prefix}-{blake2s(f'{servers}{self._path}'.encode(), digest_size=8).hexdigest()}"

    @property
    def _path(self) -> str:
        return f"/{self.service}/{self.db}" if self.service else f"/{self.db}"

    def __str__(self) -> str:
        return self.redacted


MEMORY = StoreAddress()


def parse(text: str) -> StoreAddress:
    """Return the address of a text; raise ValueError with a sentence that lists the allowed forms."""
    if text == "memory:":
        return MEMORY
    scheme = _SCHEME.fullmatch(text)
    if not scheme:
        raise ValueError(f"this is not the address of a store; {_FORMS}")
    return _parse(scheme[3], tls=scheme[1] == "rediss", sentinel=bool(scheme[2]))


def _parse(text: str, *, tls: bool, sentinel: bool) -> StoreAddress:
    before, _, query = text.partition("?")
    authority, _, path = before.partition("/")
    if "@" in path or "@" in query:  # most likely it ends a password with a '/' or '?' in it
        raise ValueError("a '/', '?' or '@' in a user, a password or an option must be written %2F, %3F or %40")
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    options = _options(query)
    _check_options(options, tls=tls, sentinel=sentinel, has_password=bool(password))
    files = {name: Path(value) for name, value in options.items() if name.endswith("_file")}
    service, db = _service_and_database(path) if sentinel else ("", _database(path))
    return StoreAddress(
        servers=_servers(hosts, sentinel=sentinel),
        service=service,
        db=db,
        prefix=options.get("prefix", DEFAULT_PREFIX),
        tls=tls,
        user=_decoded(user, "the user") or None,
        password=SecretStr(_decoded(password, "the password")) if password else None,
        password_file=files.get("password_file"),
        sentinel_user=options.get("sentinel_user") or None,
        sentinel_password_file=files.get("sentinel_password_file"),
        ca_file=files.get("ca_file"),
        cert_file=files.get("cert_file"),
        key_file=files.get("key_file"),
    )


def _servers(text: str, *, sentinel: bool) -> tuple[HostPort, ...]:
    port = _SENTINEL_PORT if sentinel else _REDIS_PORT
    servers = tuple(_server(part, port) for part in text.split(","))
    if len(servers) > 1 and not sentinel:
        raise ValueError("redis:// and rediss:// take one host; several are Sentinels: redis+sentinel://")
    if len(set(servers)) < len(servers):
        raise ValueError("a host of the store is named twice; each is allowed once")
    return servers


def _server(text: str, port: int) -> HostPort:
    """Return host and port; an error does not repeat the port, which may be a password without an '@' after it."""
    matched = _SERVER.fullmatch(text)
    bracketed, name, number = matched.groups() if matched else (None, "", None)
    host = _ipv6(bracketed) if bracketed is not None else name if _HOST.fullmatch(name) else None
    if host is None:
        raise ValueError(
            "the host of the store is missing or wrong; allowed: a name, an IPv4 address, an IPv6 address in brackets"
        )
    if number is not None and not (_NUMBER.fullmatch(number) and 1 <= int(number) <= _MAX_PORT):
        raise ValueError(f"the port of the store is wrong; allowed: 1 to {_MAX_PORT}, or none for {port}")
    return HostPort(host, int(number) if number else port)


def _ipv6(text: str) -> str | None:
    try:
        return str(IPv6Address(text))
    except AddressValueError:
        return None


def _service_and_database(path: str) -> tuple[str, int]:
    service, _, db = path.partition("/")
    if not _SERVICE.fullmatch(service):
        raise ValueError(
            "behind the Sentinels belongs the name of what they watch, as in /mymaster; "
            "allowed: 1 to 64 letters, digits, '.', '_' and '-'"
        )
    return service, _database(db)


def _database(text: str) -> int:
    if text and not (_NUMBER.fullmatch(text) and int(text) <= _MAX_DATABASE):
        raise ValueError(f"the database of the store is wrong; allowed: 0 to {_MAX_DATABASE}, as in redis://host/0")
    return int(text or 0)


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name not in OPTIONS:
            raise ValueError(f"the store has an unknown option{_quoted(name)}; allowed: {', '.join(OPTIONS)}")
        if name in options:
            raise ValueError(f"the store's option {name} is given twice; once is allowed")
        options[name] = _CHECKS.get(name, _any)(name, _decoded(value, f"the option {name}"))
    return options


def _quoted(name: str) -> str:
    return f" '{name}'" if re.fullmatch(r"[a-z_]{1,32}", name) else ""  # any other text may be a password


def _check_options(options: dict[str, str], *, tls: bool, sentinel: bool, has_password: bool) -> None:
    """Raise ValueError for an option without effect, because its user expects one."""
    names = options.keys()
    if not tls and (wrong := names & _TLS_OPTIONS):
        raise ValueError(f"the store's option {min(wrong)} is for TLS: rediss:// or rediss+sentinel://")
    if not sentinel and (wrong := names & _SENTINEL_OPTIONS):
        raise ValueError(f"the store's option {min(wrong)} is for Sentinels: redis+sentinel:// or rediss+sentinel://")
    if has_password and "password_file" in names:
        raise ValueError("the store has a password and a password_file; one of them is allowed")
    if "key_file" in names and "cert_file" not in names:
        raise ValueError("the store has a key_file and no cert_file; the certificate belongs to it")


def _prefix(name: str, value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError(
            f"the store's {name} is wrong; allowed: 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return value


def _file(name: str, value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"the store's {name} is wrong; allowed: the absolute path of a file")
    return value


def _any(name: str, value: str) -> str:
    return value


_CHECKS: dict[str, Callable[[str, str], str]] = {
    "prefix": _prefix,
    **{name: _file for name in OPTIONS if name.endswith("_file")},
}


def _decoded(text: str, subject: str) -> str:
    try:
        if not _PERCENT.search(text):
            return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise ValueError(f"{subject} of the store is not percent-encoded UTF-8; a '%' itself is written %25")
