"""Schema version 1 of a cluster in Redis. Pure: it encodes and decodes, and opens no connection.

Every key begins with the cluster's prefix and a colon (``nfqe:`` by default), so that clusters can share a server.

| key | type | holds |
|---|---|---|
| meta | hash | schema (this version), clock (time of the last heartbeat of any node, ms), run (the run id, from INFO, of the server that a node has joined last), serial (of the last change), revision (of the policy), collected (time of the last garbage collection, ms) |
| nodes, documents, identities, endpoints | hash | name → entry; ``records.Kind`` has the form of the names |
| numbers | hash | canonical labels → number of their identity |
| ipcache | hash | address → endpoint with it; for a container also ``ADDRESS@NODE``: containers of two nodes can have one address, and the field of the address has the last one |
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
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from sys import intern
from typing import Any, NamedTuple

from pydantic import ValidationError

from nfq_enforcer import text as text_forms
from nfq_enforcer.cluster.records import SOURCE_ANNOTATION, EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.core.identity import Identity, travels
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.fields import (
    MAX_PORT,
    check_user_label_key,
    is_cgroup_path,
    is_dns_label,
    is_dns_name,
    is_interface_name,
    is_node_name,
    is_service_name,
    is_unicast,
)
from nfq_enforcer.policy.registry import KINDS, versions
from nfq_enforcer.policy.rules import PROTOCOL_NUMBERS, NamedPort, PortSet
from nfq_enforcer.text import shorten

VERSION = 1
Key = tuple[Kind, str]

_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_NUMBER = re.compile(r"[1-9][0-9]{0,7}")  # a single spelling, so that no identity has two names
_COUNT = re.compile(rb"0|[1-9][0-9]{0,15}")
_VERSION = re.compile(r"[A-Za-z0-9.+!_-]{0,64}")  # of a node's program
_WORD = re.compile(r"[a-z][a-z-]{0,31}")  # of a node's datapath
_SOURCE = re.compile(r"([a-z][a-z-]{0,31})?")
_MS, _SEQ = 1 << 48, 1 << 32  # of an id, exclusive: in the year 10889
MAX_COUNT = 1 << 46  # of serial and revision: 14 digits, as many as Lua's JSON writes
MAX_BYTES = {Kind.NODE: 1 << 17, Kind.DOCUMENT: 1 << 25, Kind.IDENTITY: 1 << 17, Kind.ENDPOINT: 1 << 18}
MAX_CHANGES = 1 << 27  # bytes of the changes of one stream entry

HASHES = {
    Kind.NODE: "nodes",
    Kind.DOCUMENT: "documents",
    Kind.IDENTITY: "identities",
    Kind.ENDPOINT: "endpoints",
}


class SchemaError(Exception):
    """A value cannot be decoded by this version; ``str`` is the reason, of limited length and printable."""

    def __init__(self, reason: str) -> None:
        """Set the reason."""
        super().__init__(shorten(reason, 300))


class StoreEntry(NamedTuple):
    """StoreEntry: a value, and the id of the change that wrote it as one number, greater for later changes."""

    id: int
    value: bytes


def read_id(text: str) -> int:
    """Return an id of the stream, ``MS-SEQ``, as one number; raise SchemaError for another text."""
    if not _ID.fullmatch(text):
        raise SchemaError(f"'{shorten(text)}' is not an id of a change")
    ms, seq = map(int, text.split("-"))
    if ms >= _MS or seq >= _SEQ:
        raise SchemaError(f"the id {text} is out of range")
    return ms << 32 | seq


def read_count(text: bytes) -> int:
    """Return a serial or a revision; raise SchemaError for another text, and for a number that is out of range."""
    if not _COUNT.fullmatch(text) or int(text) > MAX_COUNT:
        raise SchemaError(f"'{shorten(text.decode('utf-8', 'replace'))}' is not a number from 0 to {MAX_COUNT}")
    return int(text)


def write_id(number: int) -> str:
    """Return the id in the stream's form, ``MS-SEQ``."""
    return f"{number >> 32}-{number & 0xFFFFFFFF}"


def read_entry(data: bytes) -> StoreEntry:
    """Return the entry in a field of a hash; raise SchemaError if its id is not one."""
    head, _, value = data.partition(b" ")
    return StoreEntry(read_id(head.decode("ascii", "replace")), value)


def read_json(data: bytes) -> Any:
    """Return the value of a JSON text; raise SchemaError for another text, or one that cannot be encoded again."""
    try:
        return text_forms.read_json(data)
    except ValueError:
        raise SchemaError("it is not JSON") from None


def check_size(kind: Kind, value: bytes) -> None:
    """Raise SchemaError for a value that is larger than any node accepts."""
    if len(value) > MAX_BYTES[kind]:
        raise SchemaError(f"it has {len(value)} bytes; allowed: at most {MAX_BYTES[kind]}")


def is_namespace(key: Key) -> bool:
    """Return whether an entry is a Namespace document."""
    return key[0] is Kind.DOCUMENT and key[1].startswith("Namespace/")


def encode_node(record: NodeRecord) -> str:
    """Return the value of a node."""
    addresses, version, datapath, peers = record
    more = {"peers": {"address": str(peers[0]), "port": peers[1]}} if peers is not None else {}
    return _encode({"addresses": list(map(str, addresses)), "version": version, "datapath": datapath, **more})


def encode_identity(labels: Labels) -> str:
    """Return the value of an identity."""
    return _encode({"labels": str(labels)})


def encode_document(document: PolicyDocument | Namespace) -> str:
    """Return the value of a document, with the file and place of its origin, and the source that brought it."""
    source = {"source": document.source} if document.source else {}
    return _encode({"origin": document.origin, **source, "document": document.data})


def document_source(value: bytes) -> str:
    """Return the source that brought a document, by a value that has been decoded before; empty: a person."""
    source: str = read_json(value).get("source", "")
    return source


def encode_endpoint(record: EndpointRecord) -> str:
    """Return the value of an endpoint, byte for byte as ``lua/write.lua`` makes it."""
    return f'{{"v":1,"identity":{record.identity},"document":{endpoint_document(record)}}}'


def endpoint_document(record: EndpointRecord) -> str:
    """Return the document within an endpoint's value."""
    return _dump(record.document())


def decode(kind: Kind, name: str, value: bytes) -> Record:
    """Return the record of a value; raise SchemaError for a value that this version cannot decode."""
    check_size(kind, value)
    data = read_json(value)
    if not isinstance(data, dict) or "v" not in data:
        raise SchemaError("it is not an object with a version, so nothing of ours")
    if data["v"] != VERSION:
        raise SchemaError(f"it is of version {shorten(repr(data['v']))}; this program understands {VERSION}")
    try:
        return _DECODERS[kind](name, data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SchemaError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, BadInput) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise SchemaError(f"it is not a value of kind {kind}: {reason}") from None


def _encode(data: Mapping[str, Any]) -> str:
    return _dump({"v": VERSION, **data})


def _dump(data: object) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, default=str)


def _node(name: str, data: Mapping[str, Any]) -> NodeRecord:
    _match(is_node_name, name, "the name of a node")
    addresses = tuple(ip_address(_packed(address)) for address in _strings(data["addresses"]))
    version, datapath = _string(data["version"]), _string(data.get("datapath", "per-packet"))
    _match(_VERSION.fullmatch, version, "a version")
    _match(_WORD.fullmatch, datapath, "the name of a datapath")
    peers = _listening(data["peers"]) if "peers" in data else None
    return NodeRecord(addresses, version, _datapath(datapath), peers)


def _listening(data: Mapping[str, Any]) -> tuple[IPv4Address | IPv6Address, int]:
    """Return address and port at which a node's agent accepts others; the address may be that of all interfaces."""
    address, port = ip_address(_string(data["address"])), data["port"]
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port <= MAX_PORT:
        raise ValueError(f"{shorten(repr(port))} is not a port")
    return address, port


def _datapath(word: str) -> Datapath | str:
    """Return the datapath of a node; the word of a newer version's datapath stays a string."""
    try:
        return Datapath(word)
    except ValueError:
        return word


def _document(name: str, data: Mapping[str, Any]) -> PolicyDocument | Namespace:
    written = data["document"]
    kind = KINDS.get(_string(written["kind"]))
    if kind is None or written["apiVersion"] not in versions(written["kind"]):
        raise ValueError(f"unknown kind {written['kind']} of {written.get('apiVersion')}")
    document = kind[1].model_validate(written)
    if not isinstance(document, PolicyDocument | Namespace) or "/".join(document.key) != name:
        raise ValueError("it is not the document that its name says")
    document.set_origin(_string(data["origin"]), written, _source(data.get("source", "")))
    return document


def _identity(name: str, data: Mapping[str, Any]) -> Labels:
    if not _NUMBER.fullmatch(name) or not travels(int(name)):
        raise ValueError(f"{shorten(name)} is not the number of a cluster identity")
    return labels_of(_string(data["labels"]))


def _endpoint(name: str, data: Mapping[str, Any]) -> EndpointRecord:
    """Decode the fields of a record, a hundred thousand times in seconds: without the models of documents."""
    metadata, spec = data["document"]["metadata"], data["document"]["spec"]
    own_name = _string(metadata["name"])
    _match(is_dns_name, own_name, "the name of an endpoint")
    record = EndpointRecord(
        _namespace(_string(metadata["namespace"])),
        own_name,
        _node_name(_string(spec["node"])),
        _cluster_identity(data["identity"]),
        tuple(_packed(ip) for ip in _strings(spec.get("ips", []))),
        None if "interface" not in spec else _interface(_string(spec["interface"])),
        _written_labels(tuple(sorted(metadata["labels"].items()))),
        _account(_string(spec.get("serviceAccount", "default"))),
        _ports(tuple((p["name"], p["protocol"], p["port"]) for p in spec.get("ports", ()))),
        _source(metadata["annotations"].get(SOURCE_ANNOTATION, "")) if "annotations" in metadata else "",
        None if "cgroup" not in spec else _cgroup(_string(spec["cgroup"])),
    )
    if record.full_name != name or bool(record.addresses) is (record.cgroup is not None):
        raise ValueError("it is not the endpoint that its name says, or has neither address nor cgroup, or both")
    return record


_DECODERS = {Kind.NODE: _node, Kind.DOCUMENT: _document, Kind.IDENTITY: _identity, Kind.ENDPOINT: _endpoint}


# Values that many endpoints have in common are one object for all of them.


@lru_cache(maxsize=1 << 16)
def _namespace(text: str) -> str:
    _match(is_dns_label, text, "the name of a namespace")
    return intern(text)


@lru_cache(maxsize=1 << 16)
def _node_name(text: str) -> str:
    _match(is_node_name, text, "the name of a node")
    return intern(text)


@lru_cache(maxsize=1 << 16)
def _interface(text: str) -> str:
    _match(is_interface_name, text, "the name of an interface")
    return intern(text)


def _source(written: object) -> str:
    source = _string(written)
    _match(_SOURCE.fullmatch, source, "the name of a source of workloads")
    return intern(source)


def _cgroup(text: str) -> str:
    _match(is_cgroup_path, text, "the path of a cgroup")
    return text


@lru_cache(maxsize=1 << 16)
def _account(text: str) -> str:
    _match(is_dns_name, text, "the name of a service account")
    return intern(text)


@lru_cache(maxsize=1 << 16)
def _cluster_identity(number: object) -> Identity:
    if not isinstance(number, int) or isinstance(number, bool) or not travels(number):
        raise ValueError(f"{shorten(repr(number))} is not the number of a cluster identity")
    return Identity(number)


@lru_cache(maxsize=1 << 16)
def labels_of(text: str) -> Labels:
    """Return the labels of a canonical text; raise ValueError for another text."""
    labels = Labels.parse(dict(part.partition("=")[::2] for part in text.split(";") if part))
    if str(labels) != text:
        raise ValueError(f"'{shorten(text)}' is not the canonical text of labels")
    return labels


@lru_cache(maxsize=1 << 16)
def _written_labels(items: tuple[tuple[str, str], ...]) -> Labels:
    for key, _ in items:
        check_user_label_key(key)
    return Labels.parse(dict(items))


@lru_cache(maxsize=1 << 16)
def _ports(items: tuple[tuple[Any, Any, Any], ...]) -> PortSet:
    for name, _, number in items:
        is_number = isinstance(number, int) and not isinstance(number, bool) and 0 < number <= MAX_PORT
        if not isinstance(name, str) or not is_service_name(name) or not is_number:
            raise ValueError("its ports are not ports")
    return frozenset(NamedPort(name.lower(), PROTOCOL_NUMBERS[protocol][0], number) for name, protocol, number in items)


def _packed(text: str) -> bytes:
    packed = ip_address(text).packed
    if "%" in text or not is_unicast(packed):
        raise ValueError(f"'{shorten(text)}' is not the address of one host")
    return packed


def _match(matches: Callable[[str], object], text: str, noun: str) -> None:
    if not matches(text):
        raise ValueError(f"'{shorten(text)}' is not {noun}")


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shorten(repr(value))} is not a string")
    return value


def _strings(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{shorten(repr(value))} is not a list")
    return [_string(item) for item in value]
