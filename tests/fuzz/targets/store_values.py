"""Any value of the store is a record that this version writes back the same, or SchemaError with a printable reason."""

from ipaddress import ip_address

from nfq_enforcer.cluster.records import EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.policy.loader import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.schema import MAX_COUNT, SchemaError

_KINDS = list(Kind)
_ENDPOINT = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web, "container:kind": a}}
spec:
  {node: n1, ips: [10.0.0.1, "fd00::1"], interface: veth1, serviceAccount: robot, ports: [{name: dns, port: 53}]}
"""
_DOCUMENTS = [
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: red}}}",
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: 'n'}, spec: {podSelector: {}}}",
    "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: c}, "
    "spec: {endpointSelector: {}, egress: [{toEntities: [world]}]}}",
]  # fmt: skip


def _seed(kind: Kind, name: str, value: str) -> bytes:
    return bytes((_KINDS.index(kind),)) + f"{name}\n{value}".encode()


def _document_seed(text: str) -> bytes:
    document = parse(text, "x.yaml")[0].document
    assert isinstance(document, PolicyDocument | Namespace)
    return _seed(Kind.DOCUMENT, "/".join(document.key), schema.encode_document(document))


_RECORD = EndpointRecord.of(parse(_ENDPOINT, "x.yaml")[0].document, Identity(70_000), "n9")  # type: ignore[arg-type]
SEEDS = [
    _seed(Kind.NODE, "n1", schema.encode_node(NodeRecord((ip_address("192.0.2.1"), ip_address("fd00::1")), "1.2"))),
    _seed(Kind.IDENTITY, "4711", schema.encode_identity(Labels.parse({"app": "web", "x": ""}))),
    _seed(Kind.ENDPOINT, _RECORD.full_name, schema.encode_endpoint(_RECORD)),
    *map(_document_seed, _DOCUMENTS),
    b"\x001764115200000-0 {}",
    b"\x0042",
]


def check(data: bytes) -> None:
    kind = _KINDS[data[0] % len(_KINDS)] if data else Kind.NODE
    name, _, value = data[1:].partition(b"\n")
    _check_numbers(data[1:])
    try:
        record = schema.decode(kind, name.decode("utf-8", "replace"), value)
    except SchemaError as refusal:
        assert str(refusal).isprintable()
        assert len(str(refusal)) <= 301
        return
    again = _encode(record).encode()
    assert schema.decode(kind, name.decode(), again) == record


def _encode(record: Record) -> str:
    match record:
        case NodeRecord():
            return schema.encode_node(record)
        case EndpointRecord():
            return schema.encode_endpoint(record)
        case Labels():
            return schema.encode_identity(record)
    return schema.encode_document(record)


def _check_numbers(data: bytes) -> None:
    try:
        entry = schema.read_entry(data)
        assert schema.read_id(schema.write_id(entry.id)) == entry.id
    except SchemaError as refusal:
        assert str(refusal).isprintable()
    try:
        assert 0 <= schema.read_count(data) <= MAX_COUNT
    except SchemaError as refusal:
        assert str(refusal).isprintable()
