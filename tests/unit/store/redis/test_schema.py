"""Values of the store: an encoded value is decoded again, and any other value is a SchemaError with a sentence."""

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.cluster.records import SOURCE_ANNOTATION, EndpointRecord, Kind, NodeRecord, Record, document_name
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Datapath
from nfq_enforcer.policy.loader import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.schema import SchemaError, StoreEntry, decode

NUMBER = Identity(70_000)
NODE = NodeRecord((ip_address("192.0.2.1"), ip_address("2001:db8::1")), "1.2.3", "per-flow")
LABELS = Labels.parse({"app": "web", "container:kind": "a", "empty": ""})
ENDPOINT = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, namespace: shop, labels: {app: web, "container:kind": a, empty: ""}}
spec:
  node: n1
  ips: [10.0.0.1, "fd00::1"]
  interface: veth1
  serviceAccount: robot
  ports: [{name: http, port: 80}, {name: DNS, port: 53, protocol: UDP}, {name: sig, port: 1, protocol: SCTP}]
"""
BARE = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web}
spec: {ips: [10.0.0.1]}
"""
CILIUM = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromCIDR: [192.0.2.0/24]}]}
"""
CLUSTERWIDE = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: c}
spec: {endpointSelector: {}, egress: [{toEntities: [world]}]}
"""
PLAIN = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: 'n', namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""
NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
"""


def document(text: str) -> Any:
    (one,) = parse(text, "x.yaml")
    return one.document


def endpoint(text: str = ENDPOINT) -> EndpointRecord:
    return EndpointRecord.of(document(text), NUMBER, "n9")


class TestWritten:
    def test_a_node_is_read_as_it_was_written(self) -> None:
        assert decode(Kind.NODE, "n1", schema.encode_node(NODE).encode()) == NODE
        of_an_older_version = without(NODE_VALUE, "datapath")
        assert decode(Kind.NODE, "n1", of_an_older_version) == NODE._replace(datapath="per-packet")

    @pytest.mark.parametrize("address", ["192.0.2.1", "0.0.0.0", "::"])
    def test_a_node_may_accept_other_agents(self, address: str) -> None:
        node = NODE._replace(peers=(ip_address(address), 9964))

        assert decode(Kind.NODE, "n1", schema.encode_node(node).encode()) == node
        assert "peers" not in json.loads(schema.encode_node(NODE))  # as an older version has it

    @pytest.mark.parametrize(("word", "read"), [("per-flow", Datapath.PER_FLOW), ("per-table", "per-table")])
    def test_a_node_with_the_datapath_of_a_newer_version_is_still_a_node(self, word: str, read: str) -> None:
        value = schema.encode_node(NODE._replace(datapath=word))
        node = decode(Kind.NODE, "n1", value.encode())

        assert json.loads(value)["datapath"] == word
        assert isinstance(node, NodeRecord)
        assert (node.datapath, type(node.datapath)) == (read, type(read))

    def test_labels_of_an_identity_are_read_as_they_were_written(self) -> None:
        assert decode(Kind.IDENTITY, str(NUMBER), schema.encode_identity(LABELS).encode()) == LABELS

    @pytest.mark.parametrize("text", [ENDPOINT, BARE])
    def test_an_endpoint_is_read_as_it_was_written(self, text: str) -> None:
        for record in (endpoint(text), endpoint(text)._replace(source="docker")):
            assert decode(Kind.ENDPOINT, record.full_name, schema.encode_endpoint(record).encode()) == record

    @pytest.mark.parametrize("text", [CILIUM, CLUSTERWIDE, PLAIN, NAMESPACE])
    def test_a_document_is_read_as_it_was_written_and_still_knows_its_file(self, text: str) -> None:
        written = document(text)
        value = schema.encode_document(written)
        read = decode(Kind.DOCUMENT, document_name(written), value.encode())

        assert read == written
        assert getattr(read, "origin") == "x.yaml:2"  # noqa: B009
        assert schema.encode_document(read) == value  # type: ignore[arg-type]

    def test_a_document_is_read_with_its_source(self) -> None:
        written = document(PLAIN)
        written.set_origin("kubernetes:1", written.data, "kubernetes")
        read = decode(Kind.DOCUMENT, document_name(written), schema.encode_document(written).encode())

        assert getattr(read, "source") == "kubernetes"  # noqa: B009

    def test_a_value_is_an_object_of_this_version(self) -> None:
        for value in (
            schema.encode_node(NODE),
            schema.encode_identity(LABELS),
            schema.encode_endpoint(endpoint()),
            schema.encode_document(document(CILIUM)),
        ):
            assert json.loads(value)["v"] == schema.VERSION


class TestIds:
    @given(st.integers(0, 1 << 45), st.integers(0, (1 << 32) - 1))
    def test_an_id_is_a_number_that_grows_as_the_stream_does(self, ms: int, seq: int) -> None:
        number = schema.read_id(f"{ms}-{seq}")

        assert schema.write_id(number) == f"{ms}-{seq}"
        assert schema.read_id(f"{ms + 1}-0") > number
        assert schema.read_entry(f"{ms}-{seq} a b".encode()) == StoreEntry(number, b"a b")

    @pytest.mark.parametrize(
        "text", ["", "-", "1", "1-", "-1", "a-1", "1-2-3", "1.0-1", "+1-1", "١-١", "9" * 5000 + "-1"]
    )
    def test_what_is_no_id_is_said(self, text: str) -> None:
        with pytest.raises(SchemaError, match="is not an id of a change"):
            schema.read_id(text)

    @given(st.binary())
    def test_bytes_are_an_entry_or_none(self, data: bytes) -> None:
        try:
            entry = schema.read_entry(data)
        except SchemaError as error:
            assert "is not an id of a change" in str(error)
        else:
            assert data.endswith(entry.value)


def changed(value: str, **fields: Any) -> bytes:
    return json.dumps({**json.loads(value), **fields}).encode()


def without(value: str, field: str) -> bytes:
    return json.dumps({name: one for name, one in json.loads(value).items() if name != field}).encode()


def spec(**fields: Any) -> bytes:
    """Return an endpoint's value with other fields in its spec; None: without the field."""
    data = json.loads(schema.encode_endpoint(endpoint()))
    data["document"]["spec"].update(fields)
    data["document"]["spec"] = {name: one for name, one in data["document"]["spec"].items() if one is not None}
    return json.dumps(data).encode()


def metadata(**fields: Any) -> bytes:
    data = json.loads(schema.encode_endpoint(endpoint()))
    data["document"]["metadata"].update(fields)
    return json.dumps(data).encode()


NODE_VALUE = schema.encode_node(NODE)
IDENTITY_VALUE = schema.encode_identity(LABELS)
ENDPOINT_VALUE = schema.encode_endpoint(endpoint())
POLICY_VALUE = schema.encode_document(document(CILIUM))
POLICY = "CiliumNetworkPolicy/shop/p"


def policy(**fields: Any) -> bytes:
    return changed(POLICY_VALUE, document={**json.loads(POLICY_VALUE)["document"], **fields})


class TestRefused:
    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (b"", "it is not JSON"),
            (b"\xff", "it is not JSON"),
            (b"{", "it is not JSON"),
            (b"[" * 100_000, "it is not JSON"),
            (b'{"v":1,"x":' + b"9" * 5000 + b"}", "it is not JSON"),
            ('{"v":1}'.encode("utf-16"), "it is not JSON"),
            (b'{"v":1,"x":NaN}', "it is not JSON"),
            (b'{"v":1,"x":"\\ud800"}', "it is not JSON"),
            (b"[]", "it is not an object with a version, so nothing of ours"),
            (b'{"version":1}', "it is not an object with a version, so nothing of ours"),
            (b'{"v":2}', "it is of version 2; this program understands 1"),
            (b'{"v":"1"}', "it is of version '1'; this program understands 1"),
        ],
    )
    def test_nothing_of_ours(self, kind: Kind, value: bytes, reason: str) -> None:
        with pytest.raises(SchemaError) as caught:
            decode(kind, "name", value)
        assert str(caught.value) == reason

    @pytest.mark.parametrize(
        ("kind", "name", "value", "reason"),
        [
            (Kind.NODE, "n1", without(NODE_VALUE, "addresses"), "it has no 'addresses'"),
            (Kind.NODE, "n1", changed(NODE_VALUE, addresses="192.0.2.1"), "'192.0.2.1' is not a list"),
            (Kind.NODE, "n1", changed(NODE_VALUE, addresses=[1]), "1 is not a string"),
            (Kind.NODE, "n1", changed(NODE_VALUE, addresses=["192.0.2.256"]), "value of kind node: '192.0.2.256'"),
            (Kind.NODE, "n1", changed(NODE_VALUE, version=None), "None is not a string"),
            (Kind.NODE, "n1", changed(NODE_VALUE, peers=5), "value of kind node: "),
            (Kind.NODE, "n1", changed(NODE_VALUE, peers={"address": "x", "port": 1}), "'x' does not appear to be"),
            (Kind.NODE, "n1", changed(NODE_VALUE, peers={"address": "::", "port": 0}), "0 is not a port"),
            (Kind.NODE, "n1", changed(NODE_VALUE, peers={"address": "::", "port": True}), "True is not a port"),
            (Kind.NODE, "n1", changed(NODE_VALUE, peers={"address": "::"}), "it has no 'port'"),
            (Kind.IDENTITY, "web", IDENTITY_VALUE.encode(), "web is not the number of a cluster identity"),
            (Kind.IDENTITY, "2", IDENTITY_VALUE.encode(), "2 is not the number of a cluster identity"),
            (Kind.IDENTITY, "16777216", IDENTITY_VALUE.encode(), "16777216 is not the number of a cluster identity"),
            (Kind.IDENTITY, "070000", IDENTITY_VALUE.encode(), "070000 is not the number of a cluster identity"),
            (Kind.IDENTITY, "٧٠٠٠٠", IDENTITY_VALUE.encode(), "٧٠٠٠٠ is not the number of a cluster identity"),
            (Kind.IDENTITY, "9" * 5000, IDENTITY_VALUE.encode(), "is not the number of a cluster identity"),
            (Kind.IDENTITY, "70000", changed(IDENTITY_VALUE, labels=["app"]), "['app'] is not a string"),
            (
                Kind.IDENTITY,
                "70000",
                changed(IDENTITY_VALUE, labels="b;a"),
                "'b;a' is not the canonical text of labels",
            ),
            (Kind.ENDPOINT, "shop/db", ENDPOINT_VALUE.encode(), "it is not the endpoint that its name says"),
            (Kind.ENDPOINT, "shop/web", changed(ENDPOINT_VALUE, identity="70000"), "'70000' is not the number"),
            (Kind.ENDPOINT, "shop/web", changed(ENDPOINT_VALUE, identity=1), "1 is not the number of a cluster"),
            (Kind.ENDPOINT, "shop/web", changed(ENDPOINT_VALUE, identity=7e4), "70000.0 is not the number"),
            (Kind.ENDPOINT, "shop/web", changed(ENDPOINT_VALUE, document=[]), "it is not a value of kind endpoint"),
            (Kind.ENDPOINT, "shop/web", spec(node=None), "it has no 'node'"),
            (Kind.ENDPOINT, "shop/web", spec(ips=[]), "or has neither address nor cgroup, or both"),
            (Kind.ENDPOINT, "shop/web", spec(ips=["10.0.0.1/8"]), "value of kind endpoint: '10.0.0.1/8'"),
            (Kind.ENDPOINT, "shop/web", spec(ports=[{"name": "a", "protocol": "ICMP", "port": 1}]), "it has no 'ICMP'"),
            (Kind.ENDPOINT, "shop/web", spec(ports=[{"name": "a", "protocol": "TCP", "port": 0}]), "are not ports"),
            (Kind.ENDPOINT, "shop/web", spec(ports=[{"name": "a", "protocol": {}, "port": 1}]), "it is not a value"),
            (Kind.ENDPOINT, "shop/web", metadata(labels={"app": 1}), "it is not a value of kind endpoint"),
            (Kind.ENDPOINT, "shop/web", metadata(labels=[1]), "it is not a value of kind endpoint"),
            (Kind.ENDPOINT, "shop/web", metadata(annotations=1), "it is not a value of kind endpoint"),
            (Kind.ENDPOINT, "shop/web", metadata(annotations={SOURCE_ANNOTATION: 1}), "1 is not a string"),
            (Kind.ENDPOINT, "shop/web", metadata(annotations={SOURCE_ANNOTATION: "A B"}), "'A B' is not the name of"),
            (Kind.DOCUMENT, POLICY, changed(POLICY_VALUE, source="A B"), "'A B' is not the name of a source"),
            (Kind.DOCUMENT, POLICY, changed(POLICY_VALUE, source=None), "None is not a string"),
            (
                Kind.DOCUMENT,
                "CiliumNetworkPolicy/shop/q",
                POLICY_VALUE.encode(),
                "it is not the document that its name",
            ),
            (Kind.DOCUMENT, POLICY, without(POLICY_VALUE, "origin"), "it has no 'origin'"),
            (Kind.DOCUMENT, POLICY, policy(kind="Pod"), "unknown kind Pod of cilium.io/v2"),
            (Kind.DOCUMENT, POLICY, policy(apiVersion="v9"), "unknown kind CiliumNetworkPolicy of v9"),
            (Kind.DOCUMENT, POLICY, policy(spec={"ingres": []}), "spec"),
            (
                Kind.DOCUMENT,
                "Endpoint/shop/web",
                changed(POLICY_VALUE, document=endpoint().document()),
                "its name says",
            ),
        ],
    )
    def test_each_wrong_field_is_named(self, kind: Kind, name: str, value: bytes, reason: str) -> None:
        with pytest.raises(SchemaError) as caught:
            decode(kind, name, value)
        assert reason in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMED = [
    (Kind.NODE, "n1", NODE_VALUE),
    (Kind.IDENTITY, "70000", IDENTITY_VALUE),
    (Kind.ENDPOINT, "shop/web", ENDPOINT_VALUE),
    (Kind.DOCUMENT, POLICY, POLICY_VALUE),
    (Kind.DOCUMENT, "Namespace//shop", schema.encode_document(document(NAMESPACE))),
]


def places(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every element of a value."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place, *(found for key, one in inner for found in places(one, (*place, key)))]


def put(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[place[0]] = put(data[place[0]], place[1:], value)
    return copy


def decoded(kind: Kind, name: str, value: bytes) -> Record | None:
    """Return the record of a value, None if it is refused; assert that the record can be encoded again."""
    try:
        record = decode(kind, name, value)
    except SchemaError as error:
        assert str(error)
        return None
    value.decode()  # so that it can be restored
    return record


@given(st.sampled_from(Kind), st.text(), st.binary())
def test_any_bytes_are_a_value_or_refused(kind: Kind, name: str, value: bytes) -> None:
    decoded(kind, name, value)


@given(st.sampled_from(Kind), st.text(), st.dictionaries(st.text(), JSON))
def test_any_object_of_this_version_is_a_value_or_refused(kind: Kind, name: str, data: dict[str, Any]) -> None:
    decoded(kind, name, json.dumps({**data, "v": 1}).encode())


@given(st.data())
def test_any_field_of_a_value_that_becomes_another_is_taken_or_refused(data: st.DataObject) -> None:
    kind, name, value = data.draw(st.sampled_from(NAMED))
    whole = json.loads(value)
    place = data.draw(st.sampled_from(places(whole)))

    decoded(kind, name, json.dumps(put(whole, place, data.draw(JSON))).encode())


class TestLimits:
    @pytest.mark.parametrize("kind", Kind)
    def test_a_value_beyond_the_limit_of_its_kind_is_refused_with_both_sizes(self, kind: Kind) -> None:
        limit = schema.MAX_BYTES[kind]

        with pytest.raises(SchemaError, match=rf"^it has {limit + 1} bytes; allowed: at most {limit}$"):
            decode(kind, "name", b" " * (limit + 1))

    @pytest.mark.parametrize("text", [b"0", b"7", str(schema.MAX_COUNT).encode()])
    def test_a_count_is_read(self, text: bytes) -> None:
        assert schema.read_count(text) == int(text)

    @pytest.mark.parametrize(
        "text",
        [b"", b"-5", b"+5", b"05", b"1_0", b" 1", b"1e3", b"\xd9\xa7", str(schema.MAX_COUNT + 1).encode(), b"9" * 99],
    )
    def test_another_count_is_refused(self, text: bytes) -> None:
        with pytest.raises(SchemaError, match="is not a number from 0 to"):
            schema.read_count(text)

    @pytest.mark.parametrize("text", [f"{1 << 48}-0", f"0-{1 << 32}", "99999999999999999999-99999999999999999999"])
    def test_an_id_out_of_range_is_refused(self, text: str) -> None:
        with pytest.raises(SchemaError, match="is out of range"):
            schema.read_id(text)

    def test_a_reason_is_short_and_printable(self) -> None:
        with pytest.raises(SchemaError) as caught:
            decode(Kind.NODE, "\x1b[2J" + "n" * 100_000, NODE_VALUE.encode())

        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
