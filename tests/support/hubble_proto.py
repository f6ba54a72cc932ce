"""Messages of Hubble's API as far as ``observe -o jsonpb`` writes them, for protobuf's own reader of its JSON form.

Field names, numbers and types are those of cilium/cilium, api/v1/flow/flow.proto and api/v1/observer/observer.proto, of
which all fields of ``Flow`` and ``GetFlowsResponse`` are here, other messages as far as they are used. A field is
NUMBER NAME TYPE, with an asterisk after the type of a list.
"""

from functools import cache
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

MESSAGES = {
    "GetFlowsResponse": """
        1 flow Flow, 2 node_status NodeStatusEvent, 3 lost_events LostEvent, 1000 node_name string, 1001 time Timestamp
    """,
    "NodeStatusEvent": "1 state_change NodeState, 2 node_names string*, 3 message string",
    "LostEvent": "1 source LostEventSource, 2 num_events_lost uint64",
    "Flow": """
        1 time Timestamp, 34 uuid string, 2 verdict Verdict, 3 drop_reason uint32, 35 auth_type uint32, 5 IP IP,
        6 l4 Layer4, 8 source Endpoint, 9 destination Endpoint, 10 Type FlowType, 11 node_name string,
        37 node_labels string*, 13 source_names string*, 14 destination_names string*, 15 l7 Layer7, 16 reply bool,
        19 event_type CiliumEventType, 20 source_service Service, 21 destination_service Service,
        22 traffic_direction TrafficDirection, 23 policy_match_type uint32, 25 drop_reason_desc DropReason,
        26 is_reply BoolValue, 29 proxy_port uint32, 32 socket_cookie uint64, 33 cgroup_id uint64,
        100000 Summary string, 150000 extensions Any, 21001 egress_allowed_by Policy*,
        21002 ingress_allowed_by Policy*, 21004 egress_denied_by Policy*, 21005 ingress_denied_by Policy*,
        21006 policy_log string*
    """,
    "Policy": "1 name string, 2 namespace string, 3 labels string*, 4 revision uint64, 5 kind string",
    "Layer4": "1 TCP TCP, 2 UDP UDP, 3 ICMPv4 ICMPv4, 4 ICMPv6 ICMPv6, 5 SCTP SCTP",
    "Layer7": "1 type L7FlowType, 2 latency_ns uint64, 100 dns DNS, 101 http HTTP",
    "Endpoint": """
        1 ID uint32, 2 identity uint32, 7 cluster_name string, 3 namespace string, 4 labels string*, 5 pod_name string
    """,
    "IP": "1 source string, 2 destination string, 3 ipVersion IPVersion, 4 encrypted bool",
    "TCP": "1 source_port uint32, 2 destination_port uint32, 3 flags TCPFlags",
    "TCPFlags": """
        1 FIN bool, 2 SYN bool, 3 RST bool, 4 PSH bool, 5 ACK bool, 6 URG bool, 7 ECE bool, 8 CWR bool, 9 NS bool
    """,
    "UDP": "1 source_port uint32, 2 destination_port uint32",
    "SCTP": "1 source_port uint32, 2 destination_port uint32",
    "ICMPv4": "1 type uint32, 2 code uint32",
    "ICMPv6": "1 type uint32, 2 code uint32",
    "CiliumEventType": "1 type int32, 2 sub_type int32",
    "Service": "1 name string, 2 namespace string",
    "DNS": """
        1 query string, 2 ips string*, 3 ttl uint32, 4 cnames string*, 5 observation_source string, 6 rcode uint32,
        7 qtypes string*, 8 rrtypes string*
    """,
    "HTTP": "1 code uint32, 2 method string, 3 url string, 4 protocol string, 5 headers HTTPHeader*",
    "HTTPHeader": "1 key string, 2 value string",
}
ENUMS = {
    "Verdict": {
        **{"VERDICT_UNKNOWN": 0, "FORWARDED": 1, "DROPPED": 2, "ERROR": 3, "AUDIT": 4, "REDIRECTED": 5, "TRACED": 6},
        **{"TRANSLATED": 7},
    },
    "DropReason": {
        **{"DROP_REASON_UNKNOWN": 0, "INVALID_SOURCE_IP": 132, "POLICY_DENIED": 133, "INVALID_PACKET_DROPPED": 134},
        **{"NO_MATCHING_LOCAL_CONTAINER_FOUND": 152, "IP_FRAGMENTATION_NOT_SUPPORTED": 157},
        **{"UNKNOWN_CONNECTION_TRACKING_STATE": 163, "INVALID_IDENTITY": 171, "POLICY_DENY": 181},
    },
    "FlowType": {"UNKNOWN_TYPE": 0, "L3_L4": 1, "L7": 2, "SOCK": 3},
    "L7FlowType": {"UNKNOWN_L7_TYPE": 0, "REQUEST": 1, "RESPONSE": 2, "SAMPLE": 3},
    "TrafficDirection": {"TRAFFIC_DIRECTION_UNKNOWN": 0, "INGRESS": 1, "EGRESS": 2},
    "IPVersion": {"IP_NOT_USED": 0, "IPv4": 1, "IPv6": 2},
    "LostEventSource": {
        **{"UNKNOWN_LOST_EVENT_SOURCE": 0, "PERF_EVENT_RING_BUFFER": 1, "OBSERVER_EVENTS_QUEUE": 2},
        **{"HUBBLE_RING_BUFFER": 3},
    },
    "NodeState": {
        "UNKNOWN_NODE_STATE": 0,
        **{"NODE_CONNECTED": 1, "NODE_UNAVAILABLE": 2, "NODE_GONE": 3, "NODE_ERROR": 4},
    },
}
_KNOWN = {"Timestamp": timestamp_pb2, "BoolValue": wrappers_pb2, "Any": any_pb2}
_FIELD = descriptor_pb2.FieldDescriptorProto


@cache
def response_class() -> Any:
    """Return the class of ``GetFlowsResponse`` messages."""
    pool = descriptor_pool.DescriptorPool()
    for module in (*_KNOWN.values(), struct_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="hubble.proto", package="hubble", syntax="proto3")
    file.dependency.extend(module.DESCRIPTOR.name for module in _KNOWN.values())
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.replace("\n", " ").split(","):
            _add(message, *field.split())
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("hubble.GetFlowsResponse")), pool


def _add(message: Any, number: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number), json_name=name)
    field.label = _FIELD.LABEL_REPEATED if kind.endswith("*") else _FIELD.LABEL_OPTIONAL
    kind = kind.removesuffix("*")
    if kind in _KNOWN:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".google.protobuf.{kind}"
    elif kind in MESSAGES:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".hubble.{kind}"
    elif kind in ENUMS:
        field.type, field.type_name = _FIELD.TYPE_ENUM, f".hubble.{kind}"
    else:
        field.type = getattr(_FIELD, f"TYPE_{kind.upper()}")
