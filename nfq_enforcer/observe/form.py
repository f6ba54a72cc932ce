"""Form of a flow: the kinds of values that the fields of a flow in Hubble's JSON form have, as far as they are read.

Numbers may be texts of digits, as ProtoJSON has those of 64 bits. Fields that are not listed may have any value.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from ipaddress import ip_address
from typing import Any, NamedTuple

from nfq_enforcer.core.tables.flow_ends import EndCause
from nfq_enforcer.core.tables.policymap import Action, Tier
from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.observe.l7 import DNS_TYPES
from nfq_enforcer.text import shorten

_MAX_DIGITS = 20  # of an unsigned number of 64 bits
_DNS_TYPES = frozenset(DNS_TYPES.values())


class _Value(NamedTuple):
    """_Value: a value without parts."""

    allowed: str
    is_valid: Callable[[Any], bool]


class _Object(NamedTuple):
    """_Object: a JSON object."""

    fields: Mapping[str, "_Form"]
    required: tuple[str, ...] = ()


class _List(NamedTuple):
    """_List: a JSON array."""

    of: "_Form"


_Form = _Value | _Object | _List


def check(flow: Mapping[str, Any]) -> None:
    """Raise ValueError, with the place, if a flow has not the form of one."""
    _check(flow, _FLOW, "")


def _check(value: Any, form: _Form, place: str) -> None:
    if isinstance(form, _Value):
        if not form.is_valid(value):
            raise ValueError(f"{place}: {shorten(repr(value))} is not allowed; allowed: {form.allowed}")
    elif isinstance(form, _List):
        if not isinstance(value, list):
            raise ValueError(f"{place}: it is no list")
        for number, item in enumerate(value):
            _check(item, form.of, f"{place}[{number}]")
    else:
        if not isinstance(value, Mapping):
            raise ValueError(f"{place}: it is no JSON object")
        for name in form.required:
            if name not in value:
                raise ValueError(f"{_below(place, name)} is missing")
        for name in form.fields.keys() & value.keys():
            _check(value[name], form.fields[name], _below(place, name))


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _is_port(value: object) -> bool:
    return _is_number(value) and int(value) <= 0xFFFF  # type: ignore[call-overload]


def _is_time(value: object) -> bool:
    try:
        time = datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return time.tzinfo is not None and 1970 <= time.year < 9999  # neither end moves out of range in another zone


def _is_address(value: object) -> bool:
    try:
        return isinstance(value, str) and "%" not in value and bool(ip_address(value))
    except ValueError:
        return False


def _is_dns_type(value: object) -> bool:
    return isinstance(value, str) and (value in _DNS_TYPES or _is_port(value.removeprefix("TYPE")))


def _member(kind: type[Enum]) -> _Value:
    values = frozenset(str(one.value) for one in kind)
    return _Value(", ".join(str(one.value) for one in kind), lambda value: isinstance(value, str) and value in values)


_TEXT = _Value("a text", lambda value: isinstance(value, str))
_FLAG = _Value("true or false", lambda value: isinstance(value, bool))
_NUMBER = _Value("a number, 0 or more", _is_number)
_PORT = _Value("a number from 0 to 65535", _is_port)
_TIME = _Value("a time as in 2026-01-01T00:00:00.5Z (RFC 3339)", _is_time)
_ADDRESS = _Value("an IPv4 or IPv6 address", _is_address)
_DNS_TYPE = _Value("a type of DNS records, such as A or TYPE65", _is_dns_type)

_END = _Object({"identity": _NUMBER, "labels": _List(_TEXT), "namespace": _TEXT, "pod_name": _TEXT})
_PORTS = {"source_port": _PORT, "destination_port": _PORT}
_ICMP = _Object({"type": _PORT, "code": _PORT})
_COUNT = _Object({"packets": _NUMBER, "bytes": _NUMBER}, ("packets", "bytes"))
_RULE = _Object(
    {
        **dict.fromkeys(("kind", "namespace", "name", "rule", "rule_name"), _TEXT),
        **{"spec": _NUMBER, "priority": _NUMBER, "tier": _member(Tier), "action": _member(Action)},
    }
)
_L4 = _Object(
    {
        "TCP": _Object({**_PORTS, "flags": _Object({})}),
        **dict.fromkeys(("UDP", "SCTP"), _Object(_PORTS)),
        **dict.fromkeys(("ICMPv4", "ICMPv6"), _ICMP),
        "protocol": _PORT,
    }
)
_HEADER = _Object({"key": _TEXT, "value": _TEXT}, ("key",))
_HTTP = _Object(
    {**dict.fromkeys(("method", "url", "protocol"), _TEXT), "code": _NUMBER, "headers": _List(_HEADER)},
)
_DNS = _Object(
    {
        **{"query": _TEXT, "rcode": _NUMBER, "ttl": _NUMBER},
        **{"ips": _List(_ADDRESS), "cnames": _List(_TEXT), "qtypes": _List(_DNS_TYPE)},
    }
)
_L7 = _Object(
    {"type": _TEXT, "latency_ns": _NUMBER, "http": _HTTP, "dns": _DNS, "tls": _Object({"server_name": _TEXT})}
)
_FLOW_END = _Object(
    {"cause": _member(EndCause), "duration_ns": _NUMBER, "sent": _COUNT, "received": _COUNT},
    ("cause", "sent", "received"),
)
_RULES = ("egress_allowed_by", "ingress_allowed_by", "egress_denied_by", "ingress_denied_by", "enforced_by")
_FLOW = _Object(
    {
        **dict.fromkeys(("uuid", "node_name", "drop_reason_desc", "traffic_direction", "Type", "Summary"), _TEXT),
        **dict.fromkeys(("source", "destination"), _END),
        **dict.fromkeys(_RULES, _List(_RULE)),
        **{"time": _TIME, "verdict": _member(FlowVerdict), "is_reply": _FLAG},
        **{"IP": _Object({"source": _ADDRESS, "destination": _ADDRESS}), "l4": _L4, "l7": _L7, "flow_end": _FLOW_END},
    },
    ("time", "verdict"),
)
