"""Process endpoints in the records of a cluster: documents, the store's values, the index and the snapshot."""

from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind
from nfq_enforcer.cluster.replica import Cgroup, NodeSettings, Replica, View
from nfq_enforcer.core.identity import HOST, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.errors import DocumentErrors
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.store.redis import schema
from tests.support.packets import packed

WEB, DB = Identity(300), Identity(301)
DOCUMENT = """\
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, labels: {app: web}}
spec: {cgroup: /nfqe/default.web, node: n1}
"""
TREES = {"/nfqe": (Cgroup(1, 5),), "/nfqe/default.web": (Cgroup(2, 6),), "/a/b": (Cgroup(2, 7), Cgroup(3, 8))}


def record(
    name: str = "web", cgroup: str | None = "/nfqe/default.web", node: str = "n1", **more: Any
) -> EndpointRecord:
    made = EndpointRecord("default", name, node, WEB, (), None, Labels(), "default", frozenset(), cgroup=cgroup)
    return made._replace(**more)


def put(name: str = "web", **fields: Any) -> Change:
    return Change(Kind.ENDPOINT, f"default/{name}", record(name, **fields))


def gone(name: str = "web") -> Change:
    return Change(Kind.ENDPOINT, f"default/{name}", None)


class Node:
    """Node: the replica of n1, with its cgroups."""

    def __init__(self) -> None:
        self.replica = Replica(NodeSettings("n1"))
        self.replica.use_cgroups(TREES)
        self.revision = 0

    def after(self, *changes: Change) -> View:
        self.replica.apply(changes)
        self.revision += 1
        return self.replica.view(self.revision)


def test_a_document_and_a_value_of_the_store_have_the_cgroup() -> None:
    (parsed,) = loader.parse(DOCUMENT, "")
    document = parsed.document
    assert isinstance(document, Endpoint)
    made = EndpointRecord.of(document, WEB, "n9")

    assert (made.cgroup, made.addresses, made.node) == ("/nfqe/default.web", (), "n1")
    assert made.document()["spec"] == {"node": "n1", "cgroup": "/nfqe/default.web"}
    assert schema.decode(Kind.ENDPOINT, "default/web", schema.encode_endpoint(made).encode()) == made


@pytest.mark.parametrize("spec", ['{"node":"n1","cgroup":"a"}', '{"node":"n1"}', '{"node":"n1","cgroup":5}'])
def test_a_value_without_a_valid_cgroup_is_refused(spec: str) -> None:
    value = schema.encode_endpoint(record()).replace('{"node":"n1","cgroup":"/nfqe/default.web"}', spec)

    with pytest.raises(schema.SchemaError):
        schema.decode(Kind.ENDPOINT, "default/web", value.encode())


def test_two_documents_with_one_cgroup_of_a_node_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("---\n".join((DOCUMENT, DOCUMENT.replace("name: web", "name: two"))))
    said = f"{file}:9:16: spec.cgroup: /nfqe/default.web already belongs to Endpoint default/web, defined in {file}:1"

    with pytest.raises(DocumentErrors) as caught:
        loader.load([file])
    assert [str(error) for error in caught.value.errors] == [said]
    file.write_text("---\n".join((DOCUMENT, DOCUMENT.replace("name: web", "name: two").replace("n1", "n2"))))
    assert len(loader.load([file]).endpoints) == 2


def test_a_process_endpoint_of_this_node_is_in_the_snapshot_by_its_cgroups() -> None:
    node = Node()
    view = node.after(put(), put("unit", cgroup="/a/b"), put("away", node="n2"), put("none", cgroup="/none"))

    names = {cgroup: endpoint.name for cgroup, endpoint in view.snapshot.processes.items()}
    assert names == {6: "default/web", 7: "default/unit", 8: "default/unit"}
    assert all(endpoint.is_process and endpoint.is_host for endpoint in view.snapshot.processes.values())
    assert view.sockets == {Cgroup(1, 5), Cgroup(2, 7)}
    assert view.peer_changes == ()
    assert view.snapshot.endpoints == {}


def test_a_change_of_cgroups_changes_the_snapshot() -> None:
    node = Node()
    first = node.after(put("unit", cgroup="/a/b"))
    node.replica.use_cgroups({"/a/b": (Cgroup(2, 70),)})
    second, third = node.after(), node.after()

    assert set(first.snapshot.processes) == {7, 8}
    assert set(second.snapshot.processes) == {70}
    assert second.sockets == frozenset({Cgroup(2, 70)})
    assert third.snapshot is second.snapshot
    assert node.after(gone("unit")).snapshot.processes == {}


def test_of_two_endpoints_with_one_cgroup_the_older_one_has_it() -> None:
    node = Node()
    node.after(put())
    assert node.after(put("two")).snapshot.processes[6].name == "default/web"
    assert node.after(gone()).snapshot.processes[6].name == "default/two"
    assert node.after(put("two", identity=DB)).snapshot.processes[6].identity == DB


def test_both_ends_of_a_flow_are_named_by_their_cgroups() -> None:
    node = Node()
    names = node.after(put(), put("unit", cgroup="/a/b")).names
    here = packed("10.0.0.1")
    opening = Opening(here, here, TCP, 1, 2, -1, -1, True, WEB, HOST, 6, 0)

    source, destination = names.ends(opening)
    assert (source.namespace, source.name, destination.name) == ("default", "web", "")
    assert names.ends(opening._replace(source=HOST)).source.name == ""
    assert [one.cgroup for one in names] == ["/nfqe/default.web", "/a/b"]
