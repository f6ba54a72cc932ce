"""The agent's configuration: one YAML file, each key also an environment variable, every default written here.

``NFQ_ENFORCER_NODE__NAME`` stands for ``node.name``; its value is read as YAML, and it wins over the file. A key that
does not exist is refused, and so is one whose part is not built yet.
"""

import socket
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, PlainValidator

from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import located
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.fields import Address, InterfaceName, NodeName
from nfq_enforcer.policy.located import Located, Place, Position
from nfq_enforcer.policy.validation import Items, Part, unknown, validate

DEFAULT_PATH = Path("/etc/nfq-enforcer/agent.yaml")
DEFAULT_SOCKET = "/run/nfq-enforcer/agent.sock"
ENVIRONMENT = "NFQ_ENFORCER_"
NOT_SETTINGS = frozenset({f"{ENVIRONMENT}CONFIG"})


def _network(written: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(written))
    except ValueError as error:
        raise ValueError(f"{error}; allowed: a network as in 10.0.0.0/8 or fd00::/8") from None


def _store(url: str) -> str:
    if url != "memory:":
        raise ValueError(f"store '{url}' is not supported by this version; allowed: 'memory:'")
    return url


def _sign(mode: str) -> str:
    if mode in ("prefer", "required"):
        raise ValueError("signed stamps are not supported by this version; allowed: 'off'")
    if mode != "off":
        raise ValueError(f"'{mode}' is not allowed; allowed: 'off'")
    return mode


def _datapath(mode: str) -> str:
    if mode == "per-flow":
        raise ValueError("datapath 'per-flow' is not supported by this version; allowed: 'per-packet'")
    if mode != "per-packet":
        raise ValueError(f"'{mode}' is not allowed; allowed: 'per-packet'")
    return mode


def _driver(name: str) -> str:
    if name == "netlink":
        raise ValueError("driver 'netlink' is not supported by this version; allowed: 'auto' or 'netfilterqueue'")
    if name not in ("auto", "netfilterqueue"):
        raise ValueError(f"'{name}' is not allowed; allowed: 'auto' or 'netfilterqueue'")
    return name


def _queues(given: object) -> int:
    if given == "auto" or (given == 1 and not isinstance(given, bool)):
        return 1
    raise ValueError(f"{given!r} is not supported by this version; allowed: 'auto' or 1")


def _queue_number(number: int) -> int:
    if not 0 <= number <= 65535:
        raise ValueError(f"{number} is out of range; allowed: 0 to 65535")
    return number


def _flows(number: int) -> int:
    if not 1 <= number <= 100_000_000:
        raise ValueError(f"{number} is out of range; allowed: 1 to 100000000")
    return number


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    LabelFilter(patterns)
    return patterns


class _Section(Part):
    model_config = ConfigDict(alias_generator=str, validate_default=True)


class Node(_Section):
    """This node, as the others know it; what is not given is read off the host."""

    name: NodeName = socket.gethostname()
    ips: Items[Address] = ()
    cluster_interfaces: Items[InterfaceName] = ()
    cluster_cidrs: Items[Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]] = ()


class Stamping(_Section):
    """How packets bear their identity."""

    sign: Annotated[str, AfterValidator(_sign)] = "off"


class Flows(_Section):
    """The table of flows."""

    max: Annotated[int, AfterValidator(_flows)] = 262_144


class Api(_Section):
    """Where the command line finds the agent."""

    socket: str = DEFAULT_SOCKET


class Logging(_Section):
    """What the agent says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    """The whole configuration, with its defaults."""

    unsupported: ClassVar[frozenset[str]] = frozenset({"metrics"})

    node: Node = Node()
    store: Annotated[str, AfterValidator(_store)] = "memory:"
    documents: Items[str] = ()
    enforcement: Literal["auto", "per-endpoint", "always", "never"] = "auto"
    audit: bool = False
    allow_localhost: Literal["always", "policy"] = "always"
    identity_source: Literal["stamp", "stamp-or-ipcache"] = "stamp"
    identity_labels: Annotated[Items[str], AfterValidator(_patterns)] = ()
    stamp: Stamping = Stamping()
    fail: Literal["closed", "open"] = "closed"
    datapath: Annotated[str, AfterValidator(_datapath)] = "per-packet"
    driver: Annotated[str, AfterValidator(_driver)] = "auto"
    queues: Annotated[int, PlainValidator(_queues)] = 1
    first_queue: Annotated[int, AfterValidator(_queue_number)] = 100
    conntrack: Flows = Flows()
    api: Api = Api()
    log: Logging = Logging()

    @property
    def mode(self) -> Enforcement:
        """Return the enforcement mode as the compiler takes it."""
        return Enforcement(self.enforcement)


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Return the configuration of a file (the default one may be missing) and the environment; raise BadInput."""
    written = _read(path)
    data = written.data if written else {}
    if not isinstance(data, dict):
        raise BadInput(f"{path}: the configuration must be a mapping of keys; see the README for them")
    if written:
        validate(Config, data, written)  # the file's own mistakes first, at their places
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT) and name not in NOT_SETTINGS:
            _check_variable(name, value)
            data = _merged(data, _path(name), located.parse(value, name))
    return Config.model_validate(data)


def _read(path: Path | None) -> Located | None:
    file = path or DEFAULT_PATH
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        if path is None:
            return None
        raise BadInput(f"{file}: no such file; name a configuration with --config") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    documents = located.parse(located.decode(raw, str(file)), str(file))
    if len(documents) > 1:
        raise BadInput(f"{file}: holds {len(documents)} YAML documents; a configuration is one")
    return documents[0] if documents else None


def _path(variable: str) -> list[str]:
    return variable.removeprefix(ENVIRONMENT).lower().split("__")


def _check_variable(name: str, value: str) -> None:
    parts: list[str] = _path(name)
    section: Any = Config
    for part in parts:
        fields = section.fields() if isinstance(section, type) and issubclass(section, Part) else {}
        if part not in fields:
            known = [f"{ENVIRONMENT}{key.upper()}" for key in Config.fields()]
            raise BadInput(f"environment: {unknown(name, known, 'variable')}")
        section = fields[part]
    parsed = located.parse(value, name)
    whole = _merged({}, parts, parsed)
    validate(Config, whole, Located(f"environment variable {name}", whole, {(): _NOWHERE}))


def _merged(data: Mapping[str, Any], path: list[str], parsed: list[Located]) -> dict[str, Any]:
    first, *rest = path
    value = parsed[0].data if parsed else ""
    return {**data, first: _merged(data.get(first) or {}, rest, parsed) if rest else value}


_NOWHERE = Place(Position(0, 0), Position(0, 0))
