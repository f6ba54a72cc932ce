"""Field types with their syntax: names, labels, addresses and ports; an error message states the allowed values."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, PlainValidator
from pydantic_core import PydanticCustomError

from nfq_enforcer.core.labels import ANY_SOURCE, NAME_SYNTAX, check_value, is_key, split_key

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
Address = IPv4Address | IPv6Address

DEFAULT_CLUSTER = "default"
AUDIT_ANNOTATION = "nfq-enforcer.io/audit"

MAX_PORT = 65535

_ENGINE_KEYS = "io.cilium.k8s."
_RESERVED_SOURCES = {"reserved", "any", "cidr", "fqdn"}

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_CLUSTER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")  # as upstream
_NODE_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")
_CGROUP = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.:@\\-]{1,255}){1,32}")
_INTERFACE = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}"
)  # at most IFNAMSIZ - 1 bytes, and only characters that iptables reads as part of a name
_SERVICE_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[A-Za-z])[A-Za-z0-9]+(-[A-Za-z0-9]+)*")  # RFC 6335, section 5.1
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, section 2.5.5.2
_NO_HOSTS = {bytes(4), bytes(16), bytes(15) + b"\x01", b"\xff\xff\xff\xff"}


def _matching(pattern: re.Pattern[str], noun: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"'{text}' is not {noun}; allowed: {allowed}")
        return text

    return AfterValidator(check)


def _label_key(key: str) -> str:
    split_key(key)
    return key


def _selector_key(key: str) -> str:
    split_key(key, ANY_SOURCE)
    return key


def _user_label_key(key: str) -> str:
    """Refuse label keys reserved for the engine: with them an endpoint could claim another namespace or identity."""
    source, name = split_key(key)
    if source in _RESERVED_SOURCES:
        raise ValueError(f"label source '{source}' is taken; allowed: k8s, which is the default, or one of your own")
    if name == NAMESPACE_KEY or name.startswith(_ENGINE_KEYS):
        raise ValueError(f"label '{name}' is taken; it is made from cluster, namespace and service account")
    return key


def _unique_labels(labels: dict[str, str]) -> dict[str, str]:
    first: dict[tuple[str, str], str] = {}
    for key in labels:
        other = first.setdefault(split_key(key), key)
        if other != key:
            raise ValueError(f"'{other}' and '{key}' are the same label; one of them is allowed")
    return labels


def _annotation(key: str) -> str:
    if key == AUDIT_ANNOTATION:
        raise ValueError(f"{key} is not supported by this version")
    return key


def cluster_name(name: str) -> str:
    """Return a cluster's name unchanged; raise ValueError with the allowed names."""
    if not _CLUSTER_NAME.fullmatch(name):
        allowed = "1 to 32 lower-case letters, digits and '-', beginning and ending with a letter or digit"
        raise ValueError(f"'{name}' is not a cluster's name; allowed: {allowed}")
    return name


def address(value: object) -> Address:
    """Return the address of an endpoint or server; raise ValueError with the allowed ones."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not a string")
    try:
        parsed = ip_address(value)
    except ValueError:
        raise ValueError(f"'{value}' is not an address; allowed: IPv4 or IPv6, without a prefix length") from None
    if isinstance(parsed, IPv6Address) and (parsed.ipv4_mapped or parsed.scope_id):
        raise ValueError(f"'{value}' is not allowed; write an IPv4 address as such, and no interface behind '%'")
    if not is_unicast(parsed.packed):
        raise ValueError(f"'{value}' is not allowed; a multicast, loopback or unspecified address is no endpoint's")
    return parsed


def is_unicast(packed: bytes) -> bool:
    """Return whether an address can be the address of one host on a network."""
    if len(packed) == 4:
        return not (packed[0] == 127 or 224 <= packed[0] < 240 or packed in _NO_HOSTS)
    return packed[0] != 0xFF and not packed.startswith(_MAPPED) and packed not in _NO_HOSTS


def _port(number: int) -> int:
    if not 1 <= number <= MAX_PORT:
        raise ValueError(f"port {number} is out of range; allowed: 1 to {MAX_PORT}")
    return number


def _policy_port(port: str) -> str:
    allowed = 'allowed: "1" to "65535", "0" for all ports, or the name of a port'
    if _SERVICE_NAME.fullmatch(port):
        return port.lower()
    if not _NUMBER.fullmatch(port):
        raise ValueError(f"'{port}' is not a port; {allowed}")
    if len(port) > len("65535") or int(port) > MAX_PORT:
        raise ValueError(f"port {port} is out of range; {allowed}")
    return port


def _kubernetes_port(port: object) -> int | str:
    allowed = "allowed: 1 to 65535, or the name of a port in lower case"
    if isinstance(port, bool) or not isinstance(port, int | str):
        raise ValueError(f"a port must be a number or a name; {allowed}")
    if isinstance(port, int):
        return _port(port)
    if not _SERVICE_NAME.fullmatch(port) or port != port.lower():
        hint = "; write it without quotes" if _NUMBER.fullmatch(port) else ""
        raise ValueError(f"'{port}' is not the name of a port{hint}; {allowed}")
    return port


def is_port_name(port: str) -> bool:
    """Return whether a validated port is a name."""
    return _NUMBER.fullmatch(port) is None


def _end_port(number: int) -> int:
    if not 0 <= number <= MAX_PORT:
        raise ValueError(f"port {number} is out of range; allowed: 1 to {MAX_PORT}")
    return number


def _prefix(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, str) and "/" not in value:
        raise ValueError(f"'{value}' is not a CIDR; allowed: an IPv4 or IPv6 prefix, as in 10.0.0.0/8")
    return _cidr(value)


def _cidr(value: object) -> IPv4Network | IPv6Network:
    """Parse a prefix or an address; host bits after the prefix are ignored, as upstream."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not a string")
    _, slash, length = value.partition("/")
    try:
        if slash and not _NUMBER.fullmatch(length):  # a netmask, for example
            raise ValueError
        network = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"'{value}' is not a CIDR; allowed: an IPv4 or IPv6 prefix, as in 10.0.0.0/8") from None
    if isinstance(network, IPv6Network) and (network.network_address.ipv4_mapped or "%" in value):
        raise ValueError(f"'{value}' is not allowed; write IPv4 addresses as such, and no interface behind '%'")
    return network


def _kubernetes_key(key: str) -> str:
    if ":" in key:
        raise ValueError(f"'{key}' is not a label key; selectors of Kubernetes have no label sources: [prefix/]name")
    if not is_key(key):
        raise ValueError(f"'{key}' is not a label key: a key is [prefix/]name; {NAME_SYNTAX}")
    return key


def is_dns_label(text: str) -> bool:
    """Return whether a text is the name of a namespace."""
    return _DNS_LABEL.fullmatch(text) is not None


def is_dns_name(text: str) -> bool:
    """Return whether a text is the name of an endpoint, a policy or a service account."""
    return _DNS_NAME.fullmatch(text) is not None


def is_node_name(text: str) -> bool:
    """Return whether a text is the name of a node."""
    return _NODE_NAME.fullmatch(text) is not None


def is_interface_name(text: str) -> bool:
    """Return whether a text is the name of an interface."""
    return _INTERFACE.fullmatch(text) is not None


def is_cgroup_path(text: str) -> bool:
    """Return whether a text is the path of a cgroup."""
    return _CGROUP.fullmatch(text) is not None


def is_service_name(text: str) -> bool:
    """Return whether a text is the name of a port."""
    return _SERVICE_NAME.fullmatch(text) is not None


def check_user_label_key(key: str) -> None:
    """Raise ValueError for a label key that an endpoint's document may not have."""
    _user_label_key(key)


DnsName = Annotated[
    str,
    _matching(
        _DNS_NAME,
        "a name",
        "1 to 253 lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit",
    ),
]
DnsLabel = Annotated[
    str,
    _matching(
        _DNS_LABEL,
        "a name",
        "1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
    ),
]
NodeName = Annotated[
    str, _matching(_NODE_NAME, "a node's name", "1 to 253 letters, digits, '-', '_' and '.', a letter or digit first")
]
ClusterName = Annotated[str, AfterValidator(cluster_name)]
InterfaceName = Annotated[
    str,
    _matching(
        _INTERFACE,
        "an interface's name",
        "1 to 15 letters, digits, '_', '.', '@' and '-', a letter, digit or '_' first",
    ),
]
CgroupPath = Annotated[
    str,
    _matching(
        _CGROUP,
        "the path of a cgroup",
        "absolute below the root of cgroup2, as in /system.slice/nginx.service, of 1 to 32 names without '..'",
    ),
]
PortName = Annotated[
    str, _matching(_SERVICE_NAME, "a port's name", "1 to 15 letters, digits and single '-', with at least one letter")
]
Annotation = Annotated[str, AfterValidator(_annotation)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
SelectorKey = Annotated[str, AfterValidator(_selector_key)]
LabelValue = Annotated[str, AfterValidator(check_value)]
AccountName = Annotated[DnsName, AfterValidator(check_value)]  # it becomes the value of a label
UserLabels = Annotated[
    dict[Annotated[str, AfterValidator(_user_label_key)], LabelValue],
    AfterValidator(_unique_labels),
]
AddressField = Annotated[IPv4Address | IPv6Address, PlainValidator(address)]
PortField = Annotated[int, AfterValidator(_port)]
PolicyPort = Annotated[str, AfterValidator(_policy_port)]
KubernetesPort = Annotated[int | str, PlainValidator(_kubernetes_port)]
KubernetesKey = Annotated[str, AfterValidator(_kubernetes_key)]
EndPort = Annotated[int, AfterValidator(_end_port)]
Cidr = Annotated[IPv4Network | IPv6Network, PlainValidator(_cidr)]
Prefix = Annotated[IPv4Network | IPv6Network, PlainValidator(_prefix)]
