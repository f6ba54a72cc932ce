"""The agent's configuration: one YAML file, each key also an environment variable, every default written here.

``NFQ_ENFORCER_NODE__NAME`` stands for ``node.name``; its value is read as YAML, and it wins over the file. A key that
does not exist is refused, and so is one whose part is not built yet.
"""

import re
import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import located
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.fields import MAX_PORT, Address, InterfaceName, NodeName
from nfq_enforcer.policy.located import Located, Place, Position
from nfq_enforcer.policy.validation import Items, Part, validate
from nfq_enforcer.store import address
from nfq_enforcer.store.address import MEMORY, StoreAddress

DEFAULT_PATH = Path("/etc/nfq-enforcer/agent.yaml")
DEFAULT_SOCKET = "/run/nfq-enforcer/agent.sock"
ENVIRONMENT = "NFQ_ENFORCER_"
NOT_SETTINGS = frozenset({f"{ENVIRONMENT}CONFIG"})

_MOST_WORKERS = 256
_LAST_QUEUE = 65535
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^]]+)\]|(?P<v4>[^]:[]+)):(?P<port>[0-9]{1,5})")


def _network(written: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(written))
    except ValueError:
        raise ValueError(f"'{written}' is not a network; allowed: as in 10.0.0.0/8 or fd00::/8") from None


def _store(written: object) -> StoreAddress:
    if not isinstance(written, str):
        raise PydanticCustomError("string_type", "not a string")
    return address.parse(written)


def _folder(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"'{path}' is not allowed; allowed: the absolute path of a folder")
    return path


def _sign(mode: str) -> str:
    if mode in ("prefer", "required"):
        raise ValueError("signed stamps are not supported by this version; allowed: 'off'")
    if mode != "off":
        raise ValueError(f"'{mode}' is not allowed; allowed: 'off'")
    return mode


def _datapath(mode: str) -> str:
    if mode not in ("per-packet", "per-flow"):
        raise ValueError(f"'{mode}' is not allowed; allowed: 'per-packet' or 'per-flow'")
    return mode


def _driver(name: str) -> str:
    if name not in ("auto", "netlink", "netfilterqueue"):
        raise ValueError(f"'{name}' is not allowed; allowed: 'auto', 'netlink' or 'netfilterqueue'")
    return name


def _queues(given: object) -> int | Literal["auto"]:
    if given == "auto":
        return "auto"
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= _MOST_WORKERS:
        return given
    raise ValueError(f"{given!r} is not allowed; allowed: 'auto', or 1 to {_MOST_WORKERS}")


def _queue_number(number: int) -> int:
    if not 0 <= number <= _LAST_QUEUE - 2:  # it is the first of three
        raise ValueError(f"{number} is out of range; allowed: 0 to 65533")
    return number


def _flows(number: int) -> int:
    if not 1 <= number <= 100_000_000:
        raise ValueError(f"{number} is out of range; allowed: 1 to 100000000")
    return number


def _host_and_port(written: str) -> tuple[str, int] | None:
    found = _HOST_AND_PORT.fullmatch(written)
    if found is None or not 1 <= int(found["port"]) <= MAX_PORT:
        return None
    try:
        return str(IPv6Address(found["v6"]) if found["v6"] else IPv4Address(found["v4"])), int(found["port"])
    except ValueError:
        return None


def _listening(written: str) -> str:
    if written and _host_and_port(written) is None:
        allowed = 'allowed: as in 127.0.0.1:9962 or [::1]:9962, or "" for no metrics'
        raise ValueError(f"'{written}' is not an address with a port; {allowed}")
    return written


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    LabelFilter(patterns)
    return patterns


class _Section(Part):
    # what is wrong is told by sentences of ours; pydantic's own would repeat the input, a password among it
    model_config = ConfigDict(alias_generator=str, validate_default=True, hide_input_in_errors=True)


class Node(_Section):
    """This node, as the others know it; what is not given is read off the host."""

    # the host's own word for itself is taken as it is: a name that no document can bear must not stop the program
    name: NodeName = Field(default_factory=socket.gethostname, validate_default=False)
    ips: Items[Address] = ()
    cluster_interfaces: Items[InterfaceName] = ()
    cluster_cidrs: Items[Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]] = ()


class Stamping(_Section):
    """How packets bear their identity."""

    sign: Annotated[str, AfterValidator(_sign)] = "off"


class Flows(_Section):
    """The tables of flows, which each worker has of its own: they share ``max`` evenly."""

    max: Annotated[int, AfterValidator(_flows)] = 262_144


class Api(_Section):
    """Where the command line finds the agent."""

    socket: str = DEFAULT_SOCKET


class Metrics(_Section):
    """Where Prometheus finds the agent's figures; an empty address, or null, is for none."""

    address: Annotated[str, AfterValidator(_listening)] = "127.0.0.1:9962"

    @property
    def listening(self) -> tuple[str, int] | None:
        """Return the address and the port; None for no metrics."""
        return _host_and_port(self.address)

    @model_validator(mode="before")
    @classmethod
    def _null_is_none(cls, data: object) -> object:
        """Take null for "none" here: elsewhere it leaves a key at its default."""
        if isinstance(data, dict) and "address" in data and data["address"] is None:
            return {**data, "address": ""}
        return data


class Logging(_Section):
    """What the agent says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    """The whole configuration, with its defaults."""

    node: Node = Field(default_factory=Node)
    # a default is not validated again, and what is dumped is without the password
    store: Annotated[StoreAddress, PlainValidator(_store), PlainSerializer(str)] = Field(MEMORY, validate_default=False)
    state: Annotated[str, AfterValidator(_folder)] = "/var/lib/nfq-enforcer"  # where the last known state is kept
    documents: Items[str] = ()  # watched; with the store memory: only
    enforcement: Literal["auto", "per-endpoint", "always", "never"] = "auto"
    audit: bool = False
    allow_localhost: Literal["always", "policy"] = "always"
    identity_source: Literal["stamp", "stamp-or-ipcache"] = "stamp"
    identity_labels: Annotated[Items[str], AfterValidator(_patterns)] = ()
    stamp: Stamping = Stamping()
    fail: Literal["closed", "open"] = "closed"
    datapath: Annotated[str, AfterValidator(_datapath)] = "per-packet"
    driver: Annotated[str, AfterValidator(_driver)] = "auto"
    # how many workers: each has three queues in the rows that begin at first_queue (driver netfilterqueue: one has one)
    queues: Annotated[int | Literal["auto"], PlainValidator(_queues)] = "auto"
    first_queue: Annotated[int, AfterValidator(_queue_number)] = 100
    conntrack: Flows = Flows()
    api: Api = Api()
    metrics: Metrics = Metrics()
    log: Logging = Logging()

    @property
    def mode(self) -> Enforcement:
        """Return the enforcement mode as the compiler takes it."""
        return Enforcement(self.enforcement)


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Return the configuration of a file (the default one may be missing) and the environment; raise BadInput."""
    written = _read(path)
    if written:
        validate(Config, written.data, written)  # the file's own mistakes first, at their places
    data: Any = written.data if written else {}
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT) and name not in NOT_SETTINGS:
            data = _put(data, *_setting(name, value))
    config = Config.model_validate(data)
    for key, message in _contradictions(config):
        raise _contradiction(key, message, written, environment)
    return config


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Return what does not go together: the key that has to change, and the sentence."""
    if config.documents and not config.store.is_memory:
        yield (
            "documents",
            "documents are watched with the store 'memory:' only; allowed: none, "
            "and to load them into the store once with 'nfq-enforcer policy load'",
        )
    queues = 1 if config.queues == "auto" else config.queues
    if queues > 1 and config.driver == "netfilterqueue":
        yield "queues", f"{queues} is not supported by the driver 'netfilterqueue'; allowed: 'auto' or 1"
    room = (_LAST_QUEUE + 1 - config.first_queue) // 3
    if queues > room:
        yield (
            "queues",
            f"{queues} workers need {3 * queues} queues, and from first_queue {config.first_queue} on "
            f"there are numbers for no more than {room} workers; allowed: 'auto', or 1 to {room}",
        )


def _contradiction(key: str, message: str, written: Located | None, environment: Mapping[str, str]) -> BadInput:
    variable = f"{ENVIRONMENT}{key.upper()}"
    if written is None or variable in environment:
        written = Located(f"environment variable {variable}", "", {(): _NOWHERE})
    return written.error((key,), message, at_key=True)


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
    return _single(located.decode(raw, str(file)), str(file))


def _setting(variable: str, text: str) -> tuple[tuple[str, ...], object]:
    """Return the path of the key that a variable stands for, and its value; raise BadInput if either is wrong."""
    source = f"environment variable {variable}"
    path = tuple(variable.removeprefix(ENVIRONMENT).lower().split("__"))
    written = _single(text, source) or Located(source, "", {})
    whole = _put({}, path, written.data)
    places = {(*path, *inner): _NOWHERE._replace(written=place.written) for inner, place in written.places.items()}
    validate(Config, whole, Located(source, whole, {(): _NOWHERE, **places}))
    return path, written.data


def _single(text: str, source: str) -> Located | None:
    documents = located.parse(text, source)
    if len(documents) > 1:
        raise documents[1].error((), "a second YAML document; a configuration is one")
    return documents[0] if documents else None


def _put(data: Mapping[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Return the data with this value at the path, and all else as it was."""
    key, inner = path[0], path[1:]
    return {**data, key: _put(data.get(key) or {}, inner, value) if inner else value}


_NOWHERE = Place(Position(0, 0), Position(0, 0))  # a variable has no lines
