"""Configuration of the agent: one YAML file, each key also an environment variable, with all defaults.

The variable ``NFQ_ENFORCER_NODE__NAME`` sets ``node.name``; its value is read as YAML and overrides the file. A key
that does not exist is refused, and so is a value for a feature that is not built yet.
"""

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from nfq_enforcer import input_file
from nfq_enforcer.agent import defaults
from nfq_enforcer.agent.config_fields import absolute_file, host_and_port, listening_address
from nfq_enforcer.agent.defaults import CONFIG_VARIABLE, DEFAULT_SOCKET, ENVIRONMENT
from nfq_enforcer.agent.peers.section import PeersSection
from nfq_enforcer.core.modes import Datapath, Driver, FailMode, IdentitySource
from nfq_enforcer.core.tables.slots import MAX_SLOTS
from nfq_enforcer.dataplane.queue.protocol import QUEUE_COUNT, QUEUES_OF_WORKER, max_workers
from nfq_enforcer.dataplane.rules.opening_rules import MAX_RATE, Budgets
from nfq_enforcer.errors import BadInput, DocumentError
from nfq_enforcer.input_file import SETTINGS_SIZE
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.fields import (
    DEFAULT_CLUSTER,
    MAX_PORT,
    AddressField,
    CgroupPath,
    ClusterName,
    DnsLabel,
    DnsName,
    InterfaceName,
    NodeName,
    UserLabels,
)
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.validation import Items, Part, validate
from nfq_enforcer.policy.yaml_source import Place, Position, YamlDocument
from nfq_enforcer.store import address
from nfq_enforcer.store.address import MEMORY, StoreAddress

_AS_STRING = PlainSerializer(str)
_MAX_WORKERS = 256
_UNIT = re.compile(r"[A-Za-z0-9_.:\\-]{1,200}(?:@[A-Za-z0-9_.:\\-]{0,40})?\.service")
_UNIX = "unix://"


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


def _daemon_socket(address: str) -> str:
    if not address.startswith(f"{_UNIX}/"):
        raise ValueError(f"'{address}' is not allowed; allowed: a socket of the daemon, as in unix:///run/docker.sock")
    return address


def _sign(mode: str) -> str:
    if mode in ("prefer", "required"):
        raise ValueError("signed stamps are not supported by this version; allowed: 'off'")
    if mode != "off":
        raise ValueError(f"'{mode}' is not allowed; allowed: 'off'")
    return mode


Mode = TypeVar("Mode", bound=StrEnum)


def _word(enumeration: type[Mode]) -> Callable[[object], Mode]:
    """Return a parser of the enumeration's words, which refuses any other value like a Literal."""

    def parse(value: object) -> Mode:
        if isinstance(value, str) and value in frozenset(enumeration):
            return enumeration(value)
        raise PydanticKnownError("literal_error", {"expected": _alternatives(enumeration)})

    return parse


def _string(enumeration: type[Mode]) -> Callable[[object], Mode]:
    """Return a parser of the enumeration's words, which names the type of a value that is not a string."""

    def parse(value: object) -> Mode:
        if not isinstance(value, str):
            raise PydanticKnownError("string_type")
        if value not in frozenset(enumeration):
            raise ValueError(f"'{value}' is not allowed; allowed: {_alternatives(enumeration)}")
        return enumeration(value)

    return parse


def _alternatives(enumeration: type[StrEnum]) -> str:
    *others, last = (f"'{word}'" for word in enumeration)
    return f"{', '.join(others)} or {last}"


def _queues(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_WORKERS:
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: 'auto', or 1 to {_MAX_WORKERS}")


def _queue_number(number: int) -> int:
    last = QUEUE_COUNT - QUEUES_OF_WORKER
    if not 0 <= number <= last:
        raise ValueError(f"{number} is out of range; allowed: 0 to {last}")
    return number


def _series(number: int) -> int:
    if not 0 <= number <= _MAX_SERIES:
        raise ValueError(f"{number} is out of range; allowed: 0 to {_MAX_SERIES}")
    return number


def _flows(number: int) -> int:
    if not 1 <= number <= 100_000_000:
        raise ValueError(f"{number} is out of range; allowed: 1 to 100000000")
    return number


def _rate(number: int) -> int:
    if not 1 <= number <= MAX_RATE:
        raise ValueError(f"{number} is out of range; allowed: 1 to {MAX_RATE}")
    return number


def _seconds(number: int) -> int:
    if not 0 <= number <= _MAX_TTL:
        raise ValueError(f"{number} is out of range; allowed: 0 to {_MAX_TTL}")
    return number


def _user_number(number: int) -> int:
    if not 1 <= number < 1 << 31:
        raise ValueError(f"{number} is out of range; allowed: 1 to {(1 << 31) - 1}")
    return number


def _first_port(number: int) -> int:
    last = MAX_PORT - MAX_SLOTS
    if not 1 <= number <= last:
        raise ValueError(f"{number} is out of range; allowed: 1 to {last}, for {MAX_SLOTS} ports from there on")
    return number


Rate = Annotated[int, AfterValidator(_rate)]


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    LabelFilter(patterns)
    return patterns


_MAX_SERIES = 10_000  # pairs of workloads in the metrics of one node
_MAX_TTL = 604_800  # s, a week (RFC 2181 section 8 allows more, and RFC 8767 advises to cap it there)


class _Section(Part):
    # pydantic's own messages would repeat the input, which may hold a password
    model_config = ConfigDict(alias_generator=str, validate_default=True, hide_input_in_errors=True)


class NodeSection(_Section):
    """Section node: this node, as the other nodes identify it; missing values are read from the host."""

    # the host name is not validated: a host name that is not valid in a document must not stop the program
    name: NodeName = Field(default_factory=socket.gethostname, validate_default=False)
    ips: Items[AddressField] = ()
    cluster_interfaces: Items[InterfaceName] = ()
    cluster_cidrs: Items[Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]] = ()
    labels: UserLabels = Field(default_factory=dict)  # by which rules with nodeSelector select it


class StampSection(_Section):
    """Section stamp: the form of stamps."""

    sign: Annotated[str, AfterValidator(_sign)] = "off"


class ConntrackSection(_Section):
    """Section conntrack: the flow tables of the workers, which share ``max`` evenly."""

    max: Annotated[int, AfterValidator(_flows)] = 262_144


class OpeningsSection(_Section):
    """Section openings: budgets of packets that may open a flow, in packets per second, against floods.

    A packet beyond a budget is not refused: it has the smallest share of a busy worker. The kernel drops packets that
    exceed ``excess`` as well.
    """

    budgets: bool = True  # false: no budgets, and openings of all sources share one queue
    per_endpoint: Rate = 1000  # of each address of an endpoint of this node
    per_source: Rate = 1000  # of each remote source: an IPv4 address, an IPv6 /64
    per_prefix: Rate = 2000  # of remote sources in an IPv4 /24, an IPv6 /48
    guaranteed: Rate = 5000  # for each worker: all within these budgets, of endpoints, and again of remote sources
    excess: Rate = 20_000  # for each worker: all others

    def rates(self) -> Budgets | None:
        """Return the budgets, None if they are switched off."""
        rates = self.per_endpoint, self.per_source, self.per_prefix, self.guaranteed, self.excess
        return Budgets(*rates) if self.budgets else None


class DnsSection(_Section):
    """Section dns: the addresses that answers give to names in policies (``toFQDNs``)."""

    min_ttl: Annotated[int, AfterValidator(_seconds)] = 0  # s for which an address counts at least


class ProxySection(_Section):
    """Section proxy: the proxy (Envoy) that checks the requests of connections with HTTP rules."""

    user: Annotated[int, AfterValidator(_user_number)] = 64_931  # user ID of its process, which nothing else may use
    first_port: Annotated[int, AfterValidator(_first_port)] = 20_000  # of the loopback addresses; it needs MAX_SLOTS


def _unit(name: str) -> str:
    if not _UNIT.fullmatch(name):
        allowed = "allowed: a service, as in nginx.service, or give the path of another cgroup as 'cgroup'"
        raise ValueError(f"'{name}' is not a unit; {allowed}")
    return name


class UnitSection(_Section):
    """Section of one entry of processes.units: a systemd service, or another cgroup, as an endpoint."""

    unit: Annotated[str, AfterValidator(_unit)] | None = None  # a service of the system
    cgroup: CgroupPath | None = None  # in place of unit: the path below the root of cgroup2
    name: DnsName | None = None  # of the endpoint; by default that of the unit
    namespace: DnsLabel = "default"
    labels: UserLabels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.unit is None) is (self.cgroup is None):
            raise ValueError("one of 'unit' and 'cgroup' is needed; allowed: either")
        if self.unit is None and self.name is None:
            raise ValueError("a cgroup needs a 'name' for its endpoint")
        return self

    @property
    def path(self) -> str:
        """Return the path of the cgroup: of a service, as systemd.unit(5) and systemd.slice(5) say."""
        if self.cgroup is not None:
            return self.cgroup
        assert self.unit is not None  # see ``_one_of_two``
        template, _, instance = self.unit.partition("@")
        return f"/system.slice/{f'system-{_escaped(template)}.slice/' if instance else ''}{self.unit}"

    @property
    def endpoint(self) -> str:
        """Return the name of the endpoint."""
        found = self.name or re.sub(r"[^a-z0-9.-]+", "-", (self.unit or "").removesuffix(".service").lower())
        return found.strip(".-")


def _escaped(name: str) -> str:
    """Return a part of the name of a slice: a dash would separate two slices."""
    return name.replace("-", r"\x2d")


class PermissionSection(_Section):
    """Section of one entry of processes.allow: these labels, exactly, for the processes of a user or a group."""

    user: str | int | None = None
    group: str | int | None = None
    namespace: DnsLabel = "default"
    labels: UserLabels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.user is None) is (self.group is None):
            raise ValueError("one of 'user' and 'group' is needed; allowed: either")
        return self


class ProcessesSection(_Section):
    """Section processes: processes of this host with an identity of their own (docs: processes.md)."""

    cgroup: CgroupPath = "/nfqe"  # path below the root of cgroup2: above the cgroups of ``nfq-enforcer run``
    socket: str | None = None  # of ``nfq-enforcer run``; None: NAME-run.sock beside api.socket NAME.sock
    allow: Items[PermissionSection] = ()  # besides root
    units: Items[UnitSection] = ()


class KubernetesSection(_Section):
    """Section kubernetes: the API server that has the pods of this node and the policies of the cluster."""

    enabled: bool = False
    kubeconfig: Annotated[str, AfterValidator(absolute_file)] | None = (
        None  # None: the service account of the agent's pod
    )
    context: str | None = None  # of the kubeconfig; None: its current one
    node: NodeName | None = None  # name of this node for Kubernetes; None: node.name


class ContainersSection(_Section):
    """Section containers: daemons that run endpoints of this node; none by default."""

    docker: Annotated[str, AfterValidator(_daemon_socket)] | None = None  # as in unix:///run/docker.sock
    podman: Annotated[str, AfterValidator(_daemon_socket)] | None = None  # as in unix:///run/podman/podman.sock

    @property
    def sockets(self) -> dict[str, str]:
        """Return the path of the socket of each daemon."""
        named = {"docker": self.docker, "podman": self.podman}
        return {name: address.removeprefix(_UNIX) for name, address in named.items() if address is not None}


class ApiSection(_Section):
    """Section api: the socket on which the command line reaches the agent."""

    socket: str = DEFAULT_SOCKET
    group: str | None = None  # may open the socket besides root; None: nfq-enforcer, if the host has it; "": no group


_MetricsAddress = Annotated[str, AfterValidator(listening_address("127.0.0.1:9962 or [::1]:9962", "no metrics"))]


class MetricsSection(_Section):
    """Section metrics: the address that Prometheus scrapes; an empty one, or null, switches metrics off."""

    address: _MetricsAddress = "127.0.0.1:9962"
    flows: Annotated[int, AfterValidator(_series)] = 0  # pairs of workloads with flow metrics at most; 0: none

    @property
    def listening(self) -> tuple[str, int] | None:
        """Return address and port; None while metrics are switched off."""
        return host_and_port(self.address)

    @model_validator(mode="before")
    @classmethod
    def _null_is_none(cls, data: object) -> object:
        """Read null as an empty address; in every other place null leaves the key at its default."""
        if isinstance(data, dict) and "address" in data and data["address"] is None:
            return {**data, "address": ""}
        return data


class LogSection(_Section):
    """Section log: messages on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    """Configuration: all keys, with their defaults."""

    node: NodeSection = Field(default_factory=NodeSection)
    cluster: ClusterName = DEFAULT_CLUSTER  # label io.cilium.k8s.policy.cluster of every endpoint: one on all nodes
    kube_apiserver: Items[AddressField] = ()  # addresses that are the entity kube-apiserver
    # the default is not validated again; a dump is without the password
    store: Annotated[StoreAddress, PlainValidator(_store), PlainSerializer(str)] = Field(MEMORY, validate_default=False)
    state: Annotated[str, AfterValidator(_folder)] = (
        "/var/lib/nfq-enforcer"  # folder of the last known state of the store
    )
    documents: Items[str] = ()  # files and folders, watched; only with the store memory:
    # with kubernetes.enabled, the default is per-endpoint
    enforcement: Literal["auto", "per-endpoint", "always", "never"] = "auto"
    audit: bool = False
    allow_localhost: Literal["always", "policy"] = "always"
    identity_source: Annotated[IdentitySource, PlainValidator(_word(IdentitySource)), _AS_STRING] = IdentitySource.STAMP
    identity_labels: Annotated[Items[str], AfterValidator(_patterns)] = ()
    stamp: StampSection = StampSection()
    fail: Annotated[FailMode, PlainValidator(_word(FailMode)), _AS_STRING] = FailMode.CLOSED
    datapath: Annotated[Datapath, PlainValidator(_string(Datapath)), _AS_STRING] = Datapath.PER_PACKET
    driver: Annotated[Driver, PlainValidator(_string(Driver)), _AS_STRING] = Driver.AUTO
    # number of workers: each has five queues, from first_queue on (driver netfilterqueue: one worker)
    queues: Annotated[int | Literal["auto"], PlainValidator(_queues)] = "auto"
    first_queue: Annotated[int, AfterValidator(_queue_number)] = 100
    conntrack: ConntrackSection = ConntrackSection()
    openings: OpeningsSection = OpeningsSection()
    dns: DnsSection = DnsSection()
    proxy: ProxySection = ProxySection()
    kubernetes: KubernetesSection = KubernetesSection()
    containers: ContainersSection = ContainersSection()
    api: ApiSection = ApiSection()
    peers: PeersSection = PeersSection()
    metrics: MetricsSection = MetricsSection()
    processes: ProcessesSection = ProcessesSection()
    log: LogSection = LogSection()

    @model_validator(mode="before")
    @classmethod
    def _enforce_as_kubernetes(cls, data: object) -> object:
        """Make per-endpoint the default of ``enforcement`` with Kubernetes: that is the meaning of its policies."""
        section = data.get("kubernetes") if isinstance(data, dict) else None
        if isinstance(data, dict) and isinstance(section, dict) and section.get("enabled") is True:
            return {**data, "enforcement": data.get("enforcement") or "per-endpoint"}
        return data

    @property
    def run_socket(self) -> Path:
        """Return the path of the socket of ``nfq-enforcer run``."""
        api = Path(self.api.socket)
        return Path(self.processes.socket or api.with_name(f"{api.stem}{defaults.RUN_SOCKET}"))

    @property
    def mode(self) -> Enforcement:
        """Return the enforcement mode in the compiler's type."""
        return Enforcement(self.enforcement)


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Return the configuration of a file (the default one may be missing) and the environment; raise BadInput."""
    written = _read(path)
    if written:
        validate(
            Config, written.data, written
        )  # reports the file's errors with their places, before those of the environment
    data: Any = written.data if written else {}
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT) and name != CONFIG_VARIABLE:
            data = _with(data, *_setting(name, value))
    config = Config.model_validate(data)
    for key, message in _contradictions(config):
        raise _contradiction(key, message, written, environment)
    return config


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each contradiction between keys: the key that has to change, and the sentence."""
    if config.documents and not config.store.is_memory:
        yield (
            "documents",
            "documents are watched with the store 'memory:' only; allowed: none, "
            "and to load them into the store once with 'nfq-enforcer policy load'",
        )
    if not config.peers.is_whole:
        yield "peers", "'listen', 'ca_file', 'cert_file' and 'key_file' go together; allowed: all or none"
    queues = 1 if config.queues == "auto" else config.queues
    if queues > 1 and config.driver is Driver.NETFILTERQUEUE:
        yield "queues", f"{queues} is not supported by the driver 'netfilterqueue'; allowed: 'auto' or 1"
    room = max_workers(config.first_queue)
    if queues > room:
        yield (
            "queues",
            f"{queues} workers need {QUEUES_OF_WORKER * queues} queues, and from first_queue {config.first_queue} on "
            f"there are numbers for no more than {room} workers; allowed: 'auto', or 1 to {room}",
        )


def _contradiction(key: str, message: str, written: YamlDocument | None, environment: Mapping[str, str]) -> BadInput:
    variable = f"{ENVIRONMENT}{key.upper()}"
    if written is None or variable in environment:
        written = YamlDocument(f"environment variable {variable}", "", {(): _NOWHERE})
    return written.error((key,), message, at_key=True)


def _read(path: Path | None) -> YamlDocument | None:
    file = path or defaults.DEFAULT_PATH
    try:
        raw = input_file.read(file, SETTINGS_SIZE)
    except DocumentError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if path is None:
            return None
        raise BadInput(f"{file}: no such file; name a configuration with --config") from None
    return _single(yaml_source.decode(raw, str(file)), str(file))


def _setting(variable: str, text: str) -> tuple[tuple[str, ...], object]:
    """Return the path of the key that a variable sets, and its value; raise BadInput if either is wrong."""
    source = f"environment variable {variable}"
    path = tuple(variable.removeprefix(ENVIRONMENT).lower().split("__"))
    written = _single(text, source) or YamlDocument(source, "", {})
    whole = _with({}, path, written.data)
    places = {(*path, *inner): _NOWHERE._replace(text=place.text) for inner, place in written.places.items()}
    validate(Config, whole, YamlDocument(source, whole, {(): _NOWHERE, **places}))
    return path, written.data


def _single(text: str, source: str) -> YamlDocument | None:
    documents = yaml_source.parse(text, source)
    if len(documents) > 1:
        raise documents[1].error((), "a second YAML document; a configuration is one")
    return documents[0] if documents else None


def _with(data: Mapping[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Return a copy of the data with this value at the path."""
    key, inner = path[0], path[1:]
    return {**data, key: _with(data.get(key) or {}, inner, value) if inner else value}


_NOWHERE = Place(Position(0, 0), Position(0, 0))  # a variable has neither line nor column
