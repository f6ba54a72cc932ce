"""Packet comment: the decision on a captured packet, as one line of text.

It is made of the packet's flow in Hubble's field names (``observe -o json``). Names come from documents, from the store
and from packets, so characters that are not printable are escaped.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.text import printable

_PREPOSITIONS = {"source": "from", "destination": "to"}
_GENERATED = ":io."  # in labels that the program makes, for the namespace and the service account


def describe(packet: Mapping[str, Any]) -> str:
    """Return the comment of a packet of the API's stream ``capture``."""
    flow = packet["flow"]
    return printable("; ".join((_verdict(flow), _place(flow, packet), *map(_end(flow), _PREPOSITIONS), *_rules(flow))))


def _verdict(flow: Mapping[str, Any]) -> str:
    reason = str(flow.get("drop_reason_desc", ""))
    sentence = f": {DropReason[reason].description}" if reason in DropReason.__members__ else ""
    return f"{flow['verdict']} {reason}{sentence}"


def _place(flow: Mapping[str, Any], packet: Mapping[str, Any]) -> str:
    words = [flow["traffic_direction"].lower(), "on node", flow["node_name"]]
    for field, text in (("arrived_by", "arrived by"), ("leaves_by", "leaving by")):
        words += [text, packet[field]] if packet.get(field) else []
    return " ".join(words)


def _end(flow: Mapping[str, Any]) -> Any:
    def text(side: str) -> str:
        end = flow[side]
        name = [f"{end['namespace']}/{end['pod_name']}"] if "pod_name" in end else []
        labels = [label for label in end.get("labels", ()) if _GENERATED not in label]
        identity = f"identity {end['identity']}" if end["identity"] else "unknown identity"
        return " ".join([_PREPOSITIONS[side], *name, identity, *([f"({', '.join(labels)})"] if labels else [])])

    return text


def _rules(flow: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rules that forbid the packet, and those that enforce the endpoint and do not allow it."""
    for direction in ("egress", "ingress"):
        yield from _listed("denied by", flow.get(f"{direction}_denied_by", ()))
    yield from _listed("enforced by", flow.get("enforced_by", ()))


def _listed(words: str, rules: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    if texts := list(dict.fromkeys(map(_rule, rules))):
        yield f"{words} {', '.join(texts)}"


def _rule(rule: Mapping[str, Any]) -> str:
    document = f"{rule['namespace']}/{rule['name']}" if rule["namespace"] else rule["name"]
    text = f"{rule['kind']} {document} {rule['rule']}"
    if "tier" not in rule:
        return text
    title = f" '{rule['rule_name']}'" if "rule_name" in rule else ""
    return f"{text} ({rule['tier']} {rule['priority']}, {rule['action']}{title})"
