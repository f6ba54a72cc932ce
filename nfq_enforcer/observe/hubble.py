"""Strict JSON form of Hubble's ``GetFlowsResponse``, the form ``jsonpb`` of ``observe``, in both directions.

``hubble observe --input-file`` reads it without a complaint: every field is one of upstream's ``flow.proto``. All that
upstream has no field for is in ``extensions``, as a ``google.protobuf.Struct``, so that nothing is lost. Format:
cilium/cilium, api/v1/observer/observer.proto, in the JSON mapping of protobuf (protobuf.dev, ProtoJSON) with its
original field names.
"""

from collections.abc import Mapping
from typing import Any

from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.observe.flow import DROP_NUMBERS, HubbleFlow

_STRUCT = "type.googleapis.com/google.protobuf.Struct"
_UPSTREAM_NAMES = {
    134: "INVALID_PACKET_DROPPED",
    152: "NO_MATCHING_LOCAL_CONTAINER_FOUND",
    157: "IP_FRAGMENTATION_NOT_SUPPORTED",
    163: "UNKNOWN_CONNECTION_TRACKING_STATE",
}
_OWN_REASONS = {name: reason for reason, number in DROP_NUMBERS.items() if (name := _UPSTREAM_NAMES.get(number))}
_UNKNOWN_REASON = "DROP_REASON_UNKNOWN"
_POLICIES = ("egress_allowed_by", "ingress_allowed_by", "egress_denied_by", "ingress_denied_by")
_POLICY_FIELDS = ("name", "namespace", "kind")
_ADDITIONS = ("enforced_by", "flow_end")


def to_response(item: Mapping[str, Any]) -> HubbleFlow:
    """Return a flow, or a note beside the flows, as a ``GetFlowsResponse``."""
    if "verdict" not in item:
        return dict(item)
    flow, extra = dict(item), {name: item[name] for name in _ADDITIONS if name in item}
    for name in extra:
        del flow[name]
    _split_reason(flow, extra)
    _split_l4_and_l7(flow, extra)
    for name in _POLICIES:
        if name in flow:
            extra[name] = flow[name]
            flow[name] = [{field: rule[field] for field in _POLICY_FIELDS if rule.get(field)} for rule in flow[name]]
    if extra:
        flow["extensions"] = {"@type": _STRUCT, "value": extra}
    return {"flow": flow, "node_name": flow.get("node_name", ""), "time": flow["time"]}


def _split_reason(flow: HubbleFlow, extra: HubbleFlow) -> None:
    reason = str(flow.get("drop_reason_desc"))
    if reason not in DropReason.__members__:  # none, or one of Hubble's that this program does not have
        return
    number = DROP_NUMBERS.get(DropReason[reason], 0)
    flow["drop_reason"] = number
    flow["drop_reason_desc"] = _UPSTREAM_NAMES.get(number, reason if number else _UNKNOWN_REASON)
    if flow["drop_reason_desc"] != reason:
        extra["drop_reason_desc"] = reason


def _split_l4_and_l7(flow: HubbleFlow, extra: HubbleFlow) -> None:
    if "protocol" in flow.get("l4", ()):  # one without ports or types
        extra["l4"] = flow.pop("l4")
    if "tls" in flow.get("l7", ()):
        extra["l7"] = flow["l7"]
        flow["l7"] = {name: value for name, value in flow["l7"].items() if name != "tls"}


def from_response(item: Mapping[str, Any]) -> HubbleFlow:
    """Return a flow, or a note beside the flows, of an item of a stream in one of both JSON forms."""
    if not isinstance(item.get("flow"), Mapping):
        return dict(item)
    flow = {"node_name": item.get("node_name", ""), "verdict": "VERDICT_UNKNOWN", **item["flow"]}
    extensions, reason = flow.pop("extensions", {}), str(flow.get("drop_reason_desc"))
    if isinstance(extensions, Mapping) and extensions.get("@type") == _STRUCT:
        value = extensions.get("value")
        flow |= value if isinstance(value, Mapping) else {}
    elif reason in _OWN_REASONS:
        flow["drop_reason_desc"] = str(_OWN_REASONS[reason])
    if str(flow.get("drop_reason_desc")) in DropReason.__members__:
        flow.pop("drop_reason", None)
    return flow
