"""Schema version 1 of a cluster in Redis. Pure: it encodes and decodes, and opens no connection.

Every key begins with the cluster's prefix and a colon (``nfqe:`` by default), so that clusters can share a server.

| key | type | holds |
|---|---|---|
| meta | hash | schema (this version), run (the run id, from INFO, of the server that a node has joined last), serial (of the last change), revision (of the policy), collected (time of the last garbage collection, ms) |
| nodes, documents, identities, endpoints | hash | name → entry; ``records.Kind`` has the form of the names |
| numbers | hash | canonical labels → number of their identity |
| ipcache | hash | address → endpoint with it |
| references:NUMBER | set | the endpoints with this identity; each lives as long as its node's lease |
| hosted:NODE | set | the endpoints of this node |
| seen | sorted set | node → time of its last heartbeat, ms |
| enforced | hash | node → revision of the policy that it enforces |
| unused | sorted set | number without an endpoint → time since which, ms |
| retired, retired-at | hash, sorted set | collected number → its former labels, and the time, ms; other labels do not get the number during the retirement |
| forks | list | ``run@marker survived``: the points at which the server came back as another run; see ``history`` |
| changes | stream | every change: ``changes`` [[kind, name, value or null, id if restored]], ``serial``, ``revision``; or ``fork`` |

An entry is ``ID VALUE``: the id of the stream entry with the change, and a JSON object with ``"v": 1``. Changes that
are written together are one stream entry. Only the scripts in ``lua/`` write, and each of them is atomic.
"""  # noqa: E501

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from sys import intern
from typing import Any, NamedTuple

from pydantic import ValidationError

from nfq_enforcer.cluster.records import EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.core.identity import Identity, travels
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.registry import KINDS
from nfq_enforcer.policy.rules import PROTOCOL_NUMBERS, NamedPort, PortSet

VERSION = 1
Key = tuple[Kind, str]

_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_NUMBER = re.compile(r"[1-9][0-9]{0,7}")  # a single spelling, so that no identity has two names
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # a surrogate; without its other half it cannot be encoded
_SHOWN = 100  # characters of a wrong text that an error repeats


def _no_number(name: str) -> None:
    raise ValueError(name)


_JSON = json.JSONDecoder(parse_constant=_no_number)  # one decoder for a hundred thousand values

HASHES = {
    Kind.NODE: "nodes",
    Kind.DOCUMENT: "documents",
    Kind.IDENTITY: "identities",
    Kind.ENDPOINT: "endpoints",
}


class SchemaError(Exception):
    """A value cannot be decoded by this version; ``str`` is the reason."""


class StoreEntry(NamedTuple):
    """StoreEntry: a value, and the id of the change that wrote it as one number, greater for later changes."""

    id: int
    value: bytes


def read_id(text: str) -> int:
    """Return an id of the stream, ``MS-SEQ``, as one number; raise SchemaError for another text."""
    if not _ID.fullmatch(text):
        raise SchemaError(f"{text[:_SHOWN]!r} is not an id of a change")
    ms, seq = text.split("-")
    return int(ms) << 32 | int(seq)


def write_id(number: int) -> str:
    """Return the id in the stream's form, ``MS-SEQ``."""
    return f"{number >> 32}-{number & 0xFFFFFFFF}"


def read_entry(data: bytes) -> StoreEntry:
    """Return the entry in a field of a hash; raise SchemaError if its id is not one."""
    head, _, value = data.partition(b" ")
    return StoreEntry(read_id(head.decode("ascii", "replace")), value)


def read_json(data: bytes) -> Any:
    """Return the value of a JSON text; raise SchemaError for invalid JSON, or for text that cannot be encoded again."""
    try:
        read = _JSON.decode(data.decode())
        if _HALF.search(data):
            json.dumps(read, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise SchemaError("it is not JSON") from None
    return read


def is_namespace(key: Key) -> bool:
    """Return whether an entry is a Namespace document."""
    return key[0] is Kind.DOCUMENT and key[1].startswith("Namespace/")


def encode_node(record: NodeRecord) -> str:
    """Return the value of a node."""
    addresses, version, datapath = record
    return _encode({"addresses": list(map(str, addresses)), "version": version, "datapath": datapath})


def encode_identity(labels: Labels) -> str:
    """Return the value of an identity."""
    return _encode({"labels": str(labels)})


def encode_document(document: PolicyDocument | Namespace) -> str:
    """Return the value of a document, with the file and place of its origin."""
    return _encode({"origin": document.origin, "document": document.data})


def encode_endpoint(record: EndpointRecord) -> str:
    """Return the value of an endpoint, byte for byte as ``lua/write.lua`` makes it."""
    return f'{{"v":1,"identity":{record.identity},"document":{endpoint_document(record)}}}'


def endpoint_document(record: EndpointRecord) -> str:
    """Return the document within an endpoint's value."""
    return _dump(record.document())


def decode(kind: Kind, name: str, value: bytes) -> Record:
    """Return the record of a value; raise SchemaError for a value that this version cannot decode."""
    data = read_json(value)
    if not isinstance(data, dict) or "v" not in data:
        raise SchemaError("it is not an object with a version, so nothing of ours")
    if data["v"] != VERSION:
        raise SchemaError(f"it is of version {data['v']!r}; this program understands {VERSION}")
    try:
        return _DECODERS[kind](name, data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SchemaError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise SchemaError(f"it is not a value of kind {kind}: {reason}") from None


def _encode(data: Mapping[str, Any]) -> str:
    return _dump({"v": VERSION, **data})


def _dump(data: object) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, default=str)


def _node(_name: str, data: Mapping[str, Any]) -> NodeRecord:
    addresses = tuple(map(ip_address, _strings(data["addresses"])))
    return NodeRecord(addresses, _string(data["version"]), _datapath(_string(data.get("datapath", "per-packet"))))


def _datapath(word: str) -> Datapath | str:
    """Return the datapath of a node; the word of a newer version's datapath stays a string."""
    try:
        return Datapath(word)
    except ValueError:
        return word


def _document(name: str, data: Mapping[str, Any]) -> PolicyDocument | Namespace:
    written = data["document"]
    kind = KINDS.get(_string(written["kind"]))
    if kind is None or kind[0] != written["apiVersion"]:
        raise ValueError(f"unknown kind {written['kind']} of {written.get('apiVersion')}")
    document = kind[1].model_validate(written)
    if not isinstance(document, PolicyDocument | Namespace) or "/".join(document.key) != name:
        raise ValueError("it is not the document that its name says")
    document.set_source(_string(data["origin"]), written)
    return document


def _identity(name: str, data: Mapping[str, Any]) -> Labels:
    if not _NUMBER.fullmatch(name) or not travels(int(name)):
        raise ValueError(f"{name[:_SHOWN]} is not the number of a cluster identity")
    return labels_of(_string(data["labels"]))


def _endpoint(name: str, data: Mapping[str, Any]) -> EndpointRecord:
    """Decode the fields of a record, a hundred thousand times in seconds; the writer has validated the document."""
    metadata, spec = data["document"]["metadata"], data["document"]["spec"]
    record = EndpointRecord(
        intern(_string(metadata["namespace"])),
        _string(metadata["name"]),
        intern(_string(spec["node"])),
        _cluster_identity(data["identity"]),
        tuple(_packed(ip) for ip in _strings(spec["ips"])),
        None if "interface" not in spec else intern(_string(spec["interface"])),
        _written_labels(tuple(sorted(metadata["labels"].items()))),
        intern(_string(spec.get("serviceAccount", "default"))),
        _ports(tuple((p["name"], p["protocol"], p["port"]) for p in spec.get("ports", ()))),
    )
    if record.full_name != name or not record.addresses:
        raise ValueError("it is not the endpoint that its name says, or has no address")
    return record


_DECODERS = {Kind.NODE: _node, Kind.DOCUMENT: _document, Kind.IDENTITY: _identity, Kind.ENDPOINT: _endpoint}


# Values that many endpoints have in common are one object for all of them.


@lru_cache(maxsize=1 << 16)
def _cluster_identity(number: object) -> Identity:
    if not isinstance(number, int) or not travels(number):
        raise ValueError(f"{number!r} is not the number of a cluster identity")
    return Identity(number)


@lru_cache(maxsize=1 << 16)
def labels_of(text: str) -> Labels:
    """Return the labels of a canonical text; raise ValueError for another text."""
    labels = Labels.parse(dict(part.partition("=")[::2] for part in text.split(";") if part))
    if str(labels) != text:
        raise ValueError(f"{text!r} is not the canonical text of labels")
    return labels


@lru_cache(maxsize=1 << 16)
def _written_labels(items: tuple[tuple[str, str], ...]) -> Labels:
    return Labels.parse(dict(items))


@lru_cache(maxsize=1 << 16)
def _ports(items: tuple[tuple[Any, Any, Any], ...]) -> PortSet:
    for name, _, number in items:
        if not isinstance(name, str) or not isinstance(number, int) or not 0 < number < 1 << 16:
            raise ValueError("its ports are not ports")
    return frozenset(NamedPort(name.lower(), PROTOCOL_NUMBERS[protocol][0], number) for name, protocol, number in items)


def _packed(text: str) -> bytes:
    return ip_address(text).packed


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _strings(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return [_string(item) for item in value]
