"""Files and folders are loaded all or nothing, and one error lists all mistakes of all documents."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput, DocumentErrors
from nfq_enforcer.policy.loader import Documents, File, endpoint_labels, from_data, load, parse, read

POLICY = (
    "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {}, namespace: {}}}\n"
    "spec: {{endpointSelector: {{}}, ingress: [{{}}]}}\n---\n"
).format
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}, labels: {{{}}}}}\n---\n".format
ENDPOINT = (
    "apiVersion: nfq-enforcer.io/v1\nkind: Endpoint\nmetadata: {{name: {}, namespace: shop, labels: {{role: a}}}}\n"
    "spec: {{ips: [{}]}}\n---\n"
).format


def problems(*paths: Path) -> list[str]:
    with pytest.raises(DocumentErrors) as caught:
        load(paths)
    return [str(error) for error in caught.value.errors]


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """Yield a folder that exists but that this process cannot read, as root or not."""
    shared = Path(tempfile.mkdtemp(dir="/tmp"))
    (shared / "closed").mkdir(mode=0o000)
    shared.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield shared / "closed"
    os.seteuid(user)
    shutil.rmtree(shared)


def test_a_folder_is_read_with_all_below_it_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "c.yml").write_text(NAMESPACE("c", ""))
    (tmp_path / "a.yaml").write_text(NAMESPACE("a1", "") + NAMESPACE("a2", ""))
    (tmp_path / "b" / "b.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}')

    documents = load([tmp_path])

    assert [(one.name, Path(one.origin).name) for one in documents.namespaces] == [
        ("a1", "a.yaml:1"),
        ("a2", "a.yaml:5"),
        ("b", "b.json:1"),
        ("c", "c.yml:1"),
    ]


def test_documents_are_sorted_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(POLICY("p", "shop") + ENDPOINT("e", "10.0.0.1") + NAMESPACE("shop", ""))

    documents = load([tmp_path])

    assert [one.name for one in documents.policies] == ["p"]
    assert [one.name for one in documents.endpoints] == ["e"]
    assert [one.name for one in documents.namespaces] == ["shop"]


def test_hidden_files_and_what_editors_leave_are_skipped(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".git/a.yaml", ".a.yaml.swp", ".#a.yaml", "#a.yaml#", "a.yaml~", "a.yaml.orig", "README.md"):
        (tmp_path / name).write_text("no: document")

    assert load([tmp_path]) == Documents()


def test_a_file_is_read_whatever_its_name_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(NAMESPACE("a", ""))
    (tmp_path / "b.txt").write_text(NAMESPACE("b", ""))
    (tmp_path / "c.yaml").symlink_to(tmp_path / "a.yaml")

    documents = load([tmp_path / "b.txt", tmp_path / "a.yaml", tmp_path])

    assert [one.name for one in documents.namespaces] == ["b", "a"]


def test_a_list_is_read_as_its_items() -> None:
    text = (
        "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n"
        "- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n"
        "- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n"
    )

    assert [(one.document.name, one.document.origin) for one in parse(text, "x")] == [("a", "x:5"), ("b", "x:6")]


def test_everything_wrong_in_any_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: [")
    (tmp_path / "b.yaml").write_text(NAMESPACE("B", ""))
    (tmp_path / "c.yaml").write_bytes(b"\xff")
    (tmp_path / "d.yaml").symlink_to("nowhere")
    (tmp_path / "e.yaml").write_text(NAMESPACE("e", "") * 2)

    messages = problems(tmp_path, tmp_path / "gone")

    assert [one.removeprefix(f"{tmp_path}/").split(": ")[:2] for one in messages] == [
        ["a.yaml:2:1", "not valid YAML"],
        ["b.yaml:3:18", "metadata.name"],
        ["c.yaml:1:1", "byte 0xff is not UTF-8; documents are UTF-8 text"],
        ["d.yaml", "cannot be read"],
        ["gone", "cannot be read"],
        ["e.yaml:7:18", "metadata.name"],
    ]


def test_a_second_document_of_a_name_is_refused_naming_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(POLICY("web", "shop"))
    second.write_text(POLICY("web", "other") + POLICY("web", "shop"))

    assert problems(tmp_path) == [
        f"{second}:8:18: metadata.name: CiliumNetworkPolicy shop/web is already defined in {first}:1"
    ]


def test_an_address_has_one_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(ENDPOINT("a", "'fe80::1', 10.0.0.1") + ENDPOINT("b", "10.0.0.2, 'FE80:0::1', 10.0.0.2"))

    assert problems(tmp_path) == [
        f"{file}:9:24: spec.ips[1]: fe80::1 already belongs to Endpoint shop/a, defined in {file}:1",
        f"{file}:9:37: spec.ips[2]: 10.0.0.2 already belongs to Endpoint shop/b, defined in {file}:6",
    ]


def test_what_is_neither_file_nor_folder_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")

    assert problems(tmp_path) == [f"{tmp_path}/pipe.yaml: cannot be read: it is a FIFO; allowed: a regular file"]


def test_a_path_that_cannot_be_looked_at_is_refused() -> None:
    path = Path("/tmp", "a" * 5000)

    assert problems(path) == [f"{path}: cannot be read: {os.strerror(errno.ENAMETOOLONG)}"]


def test_a_folder_that_cannot_be_read_is_refused(closed_folder: Path) -> None:
    assert problems(closed_folder) == [f"{closed_folder}: cannot be read: {os.strerror(errno.EACCES)}"]


def test_an_endpoint_bears_its_own_labels_and_those_of_its_namespace_and_account(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        ENDPOINT("web", "10.0.0.1") + NAMESPACE("shop", "team: a, 'vm:tier': b") + NAMESPACE("other", "team: c")
    )
    documents = load([tmp_path])

    assert str(endpoint_labels(documents.endpoints[0], documents.namespaces)).split(";") == [
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=a",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=default",
        "k8s:io.kubernetes.pod.namespace=shop",
        "k8s:role=a",
        "vm:io.cilium.k8s.namespace.labels.tier=b",
    ]


def test_a_namespace_needs_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ENDPOINT("web", "10.0.0.1"))
    (endpoint,) = load([tmp_path]).endpoints

    assert endpoint_labels(endpoint, [], "east") == Labels.parse(
        {
            "role": "a",
            "io.kubernetes.pod.namespace": "shop",
            "io.cilium.k8s.policy.cluster": "east",
            "io.cilium.k8s.policy.serviceaccount": "default",
            "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "shop",
        }
    )


def test_files_can_be_read_by_one_and_understood_by_another(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("not a document")
    (tmp_path / "a.yaml").write_text(NAMESPACE("a", ""))

    assert read([tmp_path]) == [
        File(str(tmp_path / "a.yaml"), NAMESPACE("a", "")),
        File(str(tmp_path / "b.yaml"), "not a document"),
    ]


def test_what_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DocumentErrors) as caught:
        read([tmp_path / "missing.yaml", tmp_path / "gone"])

    assert [error.message for error in caught.value.errors] == [f"cannot be read: {os.strerror(errno.ENOENT)}"] * 2


def test_a_document_keeps_what_was_written() -> None:
    (one,) = parse(NAMESPACE("a", "team: shop"), "x.yaml")

    assert one.document.key == ("Namespace", "", "a")
    assert one.document.data == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "a", "labels": {"team": "shop"}},
    }


def test_documents_of_an_agent_are_documents_again() -> None:
    data = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}

    (namespace,) = from_data([data]).namespaces

    assert (namespace.name, namespace.data) == ("shop", data)


def test_a_document_of_a_kind_that_a_newer_agent_has_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^a document has the kind 'Later', which this version does not have$"):
        from_data([{"kind": "Later"}])
