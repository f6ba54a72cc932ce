"""The documents, as Kubernetes and Cilium users write them, and what may stand in each field.

A model holds what this version enforces and nothing else. What upstream has beyond that is listed as unsupported, so
that it is refused with that reason: a policy that is half understood is worse than one that is not loaded. Descriptive
metadata, as ``kubectl get -o yaml`` prints it, is accepted and has no effect.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, PlainValidator, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nfq_enforcer.core.labels import ANY_SOURCE, check_value, split_key
from nfq_enforcer.policy.validation import Items, Part

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
CILIUM_KEYS = "io.cilium.k8s."
AUDIT_ANNOTATION = "nfq-enforcer.io/audit"
MAX_PORTS = 40  # upstream's own limit of a toPorts entry

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NODE_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")
_INTERFACE = re.compile(r"(?!\.{1,2}\Z)[!-.0-~]{1,15}")  # dev_valid_name() in Linux: no slash, no space, IFNAMSIZ
_SERVICE_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[A-Za-z])[A-Za-z0-9]+(-[A-Za-z0-9]+)*")  # RFC 6335, section 5.1
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_TAKEN_SOURCES = {"reserved", "any", "cidr", "fqdn"}


def _selector_key(key: str) -> str:
    split_key(key, ANY_SOURCE)
    return key


def _own_key(key: str) -> str:
    """Refuse the labels that are not a user's to give: they say where an endpoint is and what it may claim to be."""
    source, name = split_key(key)
    if source in _TAKEN_SOURCES:
        raise ValueError(f"source '{source}' is not a user's to give; allowed: none (k8s) or a name of your own")
    if name == NAMESPACE_KEY or name.startswith(CILIUM_KEYS):
        raise ValueError(f"label '{name}' is set by the engine from the endpoint's namespace and service account")
    return key


def _one_value_each(labels: dict[str, str]) -> dict[str, str]:
    seen: dict[tuple[str, str], str] = {}
    for key in labels:
        if (first := seen.setdefault(split_key(key), key)) != key:
            raise ValueError(f"'{first}' and '{key}' are the same label; only one of them is allowed")
    return labels


def _annotation(key: str) -> str:
    if key == AUDIT_ANNOTATION:
        raise ValueError(f"{key} is not supported by this version")
    return key


def _dns_name(name: str) -> str:
    if not _DNS_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a name; allowed: 1 to 253 lower-case letters, digits, '-' and '.', "
            "each part beginning and ending with a letter or digit"
        )
    return name


def _dns_label(name: str) -> str:
    if not _DNS_LABEL.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a name; allowed: 1 to 63 lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit"
        )
    return name


def _account(name: str) -> str:
    return check_value(_dns_name(name))  # it becomes a label's value


def _node_name(name: str) -> str:
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(f"'{name}' is not a node name; allowed: 1 to 253 letters, digits, '-', '_' and '.'")
    return name


def _interface(name: str) -> str:
    if not _INTERFACE.fullmatch(name):
        raise ValueError(f"'{name}' is not an interface name; allowed: 1 to 15 characters, no slash and no space")
    return name


def _service_name(name: str) -> str:
    if not _SERVICE_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a port name; allowed: 1 to 15 letters, digits and single '-', at least one letter"
        )
    return name


def _address(written: object) -> IPv4Address | IPv6Address:
    if not isinstance(written, str):
        raise PydanticCustomError("string_type", "not a string")
    try:
        address = ip_address(written)
    except ValueError:
        raise ValueError(f"'{written}' is not an IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.scope_id):
        raise ValueError(f"'{written}' is not allowed; write an IPv4 address as such, and no interface after '%'")
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise ValueError(f"'{written}' is not allowed; an endpoint has an address of its own, not one of these groups")
    return address


def _port_number(number: int) -> int:
    if not 1 <= number <= 65535:
        raise ValueError(f"port {number} is out of range; allowed: 1 to 65535")
    return number


def _policy_port(port: str) -> str:
    if _NUMBER.fullmatch(port) and (len(port) > 5 or int(port) > 65535):
        raise ValueError(f"port {port} is out of range; allowed: \"1\" to \"65535\", or \"0\" for all ports")
    if _SERVICE_NAME.fullmatch(port):
        raise ValueError(f"named port '{port}' is not supported by this version; allowed: \"0\" to \"65535\"")
    if not _NUMBER.fullmatch(port):
        raise ValueError(f"'{port}' is not a port; allowed: \"1\" to \"65535\", or \"0\" for all ports")
    return port


SelectorKey = Annotated[str, AfterValidator(_selector_key)]
LabelKey = Annotated[str, AfterValidator(lambda key: key if split_key(key) else key)]
OwnKey = Annotated[str, AfterValidator(_own_key)]
LabelValue = Annotated[str, AfterValidator(check_value)]
OwnLabels = Annotated[dict[OwnKey, LabelValue], AfterValidator(_one_value_each)]
DnsName = Annotated[str, AfterValidator(_dns_name)]
DnsLabel = Annotated[str, AfterValidator(_dns_label)]
Address = Annotated[IPv4Address | IPv6Address, PlainValidator(_address)]
