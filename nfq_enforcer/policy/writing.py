"""Parts of CiliumNetworkPolicy documents, written for given labels, addresses and ports.

Commands that propose policy (``why``, ``policy suggest``) write them. Fields: the reference of CiliumNetworkPolicy
(cilium.io/v2), as ``policy.cilium`` reads it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nfq_enforcer.core.labels import DEFAULT_SOURCE, Label, Labels
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.core.wire.packet import ICMP
from nfq_enforcer.policy.fields import NAMESPACE_KEY
from nfq_enforcer.policy.ports import TrafficSpec

Data = dict[str, Any]

_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_QUERY = r"(\?.*)?"
_NO_NAME = re.compile(r"[^a-z0-9]+")

_DERIVED = ("io.kubernetes.", "io.cilium.")  # begin the keys of labels that no person writes


def own_labels(labels: Iterable[Label]) -> Labels:
    """Return the labels that a person has written, without those derived from namespace, account and cluster."""
    return Labels(label for label in labels if not label.key.startswith(_DERIVED))


def namespace_of(labels: Labels) -> str:
    """Return the namespace in the labels of an endpoint, empty without one."""
    found = labels.find(DEFAULT_SOURCE, NAMESPACE_KEY)
    return found[0].value if found else ""


def selector(labels: Labels, namespace: str = "") -> Data:
    """Return the selector of exactly these own labels, for a policy in ``namespace``.

    A selector of endpoints in another namespace names it; with an empty ``namespace`` (clusterwide) it always does.
    """
    match = {_key(label): label.value for label in own_labels(labels)}
    own = namespace_of(labels)
    if own and own != namespace:
        match[f"{DEFAULT_SOURCE}:{NAMESPACE_KEY}"] = own
    return {"matchLabels": match} if match else {}


def _key(label: Label) -> str:
    return label.key if label.source == DEFAULT_SOURCE else f"{label.source}:{label.key}"


def entity_of(labels: Labels) -> str | None:
    """Return the entity that reserved labels stand for, None for an endpoint and for an address outside."""
    reserved = [label.key for label in labels if label.source == "reserved"]
    return reserved[0] if reserved and "world" not in reserved else None


def peers(labels: Labels, address: Network | None, namespace: str, side: str) -> Data:
    """Return the peer fields of a rule for one end: its labels, its entity, or its address outside.

    ``side``: ``from`` of an ingress rule, ``to`` of an egress rule. Without an address, an end outside is the world.
    """
    if entity := entity_of(labels):
        return {f"{side}Entities": [entity]}
    if own_labels(label for label in labels if label.source not in {"reserved", "cidr"}) or namespace_of(labels):
        return {f"{side}Endpoints": [selector(labels, namespace)]}
    return {f"{side}CIDR": [str(address)]} if address is not None else {f"{side}Entities": ["world"]}


def ports(traffic: Iterable[TrafficSpec]) -> Data:
    """Return the port fields of a rule for TCP, UDP and SCTP ports, or for ICMP types; a rule cannot have both."""
    specs = sorted(set(traffic), key=lambda one: (one.proto, one.port))
    icmp = [{"type": one.port, "family": "IPv4" if one.proto == ICMP else "IPv6"} for one in specs if one.icmp]
    if icmp:
        return {"icmps": [{"fields": icmp}]}
    return {"toPorts": [{"ports": [port(one) for one in specs]}]} if specs else {}


def port(traffic: TrafficSpec) -> Mapping[str, str]:
    """Return a port with its protocol."""
    return {"port": str(traffic.port), "protocol": traffic.protocol}


def literal(text: str) -> str:
    """Return the regular expression (RE2) that matches a text and nothing else."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def http_rule(method: str, path: str, *, query: bool) -> Data:
    """Return the HTTP rule of one method and one path, which ``query`` lets have any query."""
    return {"method": literal(method), "path": f"{literal(path)}{_QUERY if query else ''}"}


def document_name(*words: str) -> str:
    """Return a name for a document (RFC 1123) that has the words in it."""
    return "-".join(filter(None, (_NO_NAME.sub("-", word.lower()).strip("-") for word in words)))
