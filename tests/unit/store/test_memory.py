"""The store of files and folders: every change is seen, once, and never before it has come to rest."""

import os
from pathlib import Path

import pytest

from nfq_enforcer import __version__
from nfq_enforcer.core.labels import LabelFilter
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.memory import MemoryStore
from nfq_enforcer.store.records import Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.store.replica import NodeSettings

ENDPOINT = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web}
spec: {ips: [10.1.0.10]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a document in it and one in a folder below."""
    folder = tmp_path / "documents"
    (folder / "below").mkdir(parents=True)
    (folder / "web.yaml").write_text(ENDPOINT)
    (folder / "below" / "db.yaml").write_text(ENDPOINT.replace("web", "db").replace(".10", ".20"))
    return folder


def store_of(*paths: Path) -> MemoryStore:
    return MemoryStore(paths, NodeSettings("n1"))


def names(store: MemoryStore) -> list[str]:
    store.load()
    return sorted(endpoint.name for endpoint in store.documents.endpoints)


def loaded(*paths: Path) -> MemoryStore:
    """Return a store that has loaded its documents and looked at them since."""
    store = store_of(*paths)
    store.load()
    store.changed()
    return store


def change(store: MemoryStore) -> list[bool]:
    """Look until a change has been seen and loaded, if there is one; return what each look said."""
    looks = [store.changed(), store.changed()]
    if looks[-1]:
        store.load()
    return [*looks, store.changed()]


SEEN, NOT_SEEN = [False, True, False], [False, False, False]


def test_documents_of_files_and_folders_are_loaded(folder: Path) -> None:
    assert names(store_of(folder)) == ["db", "web"]
    assert names(store_of(folder / "web.yaml")) == ["web"]
    assert names(store_of()) == []


def test_what_stays_as_it_is_has_not_changed(folder: Path) -> None:
    assert change(loaded(folder, folder / "web.yaml")) == NOT_SEEN


def test_what_was_never_loaded_is_to_be_loaded(folder: Path) -> None:
    assert change(store_of(folder)) == SEEN


def test_a_file_that_is_written_is_seen_when_it_has_come_to_rest(folder: Path) -> None:
    store = loaded(folder)
    (folder / "web.yaml").write_text(ENDPOINT + "# half")
    assert store.changed() is False
    (folder / "web.yaml").write_text(ENDPOINT + "# half, and the other half")
    assert store.changed() is False

    assert store.changed() is True


def test_a_file_that_comes_is_seen(folder: Path) -> None:
    store = loaded(folder)
    (folder / "below" / "more.yaml").write_text(ENDPOINT.replace("web", "more").replace(".10", ".30"))

    assert change(store) == SEEN
    assert names(store) == ["db", "more", "web"]


def test_a_file_that_goes_is_seen(folder: Path) -> None:
    store = loaded(folder)
    (folder / "below" / "db.yaml").unlink()

    assert change(store) == SEEN
    assert names(store) == ["web"]


def test_a_file_that_is_replaced_is_seen_even_if_size_and_time_are_equal(folder: Path) -> None:
    store = loaded(folder)
    before = (folder / "web.yaml").stat()
    fresh = folder / "web.new"
    fresh.write_text(ENDPOINT.replace("web", "wap"))
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.rename(folder / "web.yaml")

    assert change(store) == SEEN
    assert names(store) == ["db", "wap"]


def test_a_file_that_a_link_now_leads_to_is_seen(folder: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(ENDPOINT.replace("web", name).replace(".10", ".30"))
    link = folder / "link.yaml"
    link.symlink_to(tmp_path / "old")
    store = loaded(folder)
    link.unlink()
    link.symlink_to(tmp_path / "new")

    assert change(store) == SEEN
    assert names(store) == ["db", "new", "web"]


def test_a_named_file_that_goes_is_seen(folder: Path) -> None:
    store = loaded(folder / "web.yaml")
    (folder / "web.yaml").unlink()

    assert [store.changed(), store.changed()] == [False, True]


def test_a_folder_that_vanishes_is_refused_and_one_that_comes_back_is_seen(folder: Path, tmp_path: Path) -> None:
    store = loaded(folder)
    folder.rename(tmp_path / "elsewhere")

    assert [store.changed(), store.changed()] == [False, True]
    with pytest.raises(BadInput) as caught:
        store.load()
    assert str(caught.value) == f"{folder}: cannot be read: No such file or directory"
    assert store.changed() is False  # it was told once

    (tmp_path / "elsewhere").rename(folder)
    assert change(store) == SEEN
    assert names(store) == ["db", "web"]


def test_a_broken_file_is_refused_once_and_seen_when_it_is_mended(folder: Path) -> None:
    store = loaded(folder)
    (folder / "web.yaml").write_text("kind: [")
    assert [store.changed(), store.changed()] == [False, True]
    with pytest.raises(BadInput, match="not valid YAML"):
        store.load()
    assert [store.changed(), store.changed()] == [False, False]

    (folder / "web.yaml").write_text(ENDPOINT)
    assert change(store) == SEEN


def test_folders_that_links_lead_to_are_neither_read_nor_looked_at(folder: Path) -> None:
    for name in ("round", "and-round", "and-round-again"):
        (folder / name).symlink_to(folder)  # followed, they would be more folders than there is time for

    store = loaded(folder)

    assert change(store) == NOT_SEEN
    assert names(store) == ["db", "web"]


POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed}
spec:
  endpointSelector: {}
  ingress: [{}]
"""


def policies(store: MemoryStore) -> list[tuple[str, str]]:
    store.load()
    return [(policy.name, policy.origin) for policy in store.documents.policies]


def test_what_is_applied_stands_beside_what_is_in_files(folder: Path) -> None:
    store = store_of(folder)
    store.applied = store.with_files([File("mine.yaml", POLICY)])

    assert policies(store) == [("closed", "mine.yaml:2")]
    assert names(store) == ["db", "web"]


def test_what_is_applied_again_takes_the_place_of_what_was() -> None:
    store = store_of()
    store.applied = store.with_files([File("old.yaml", POLICY), File("other.yaml", POLICY.replace("closed", "other"))])
    store.applied = store.with_files([File("new.yaml", POLICY)])

    assert policies(store) == [("closed", "new.yaml:2"), ("other", "other.yaml:2")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.yaml", POLICY), ("b.yaml", POLICY)], "b.yaml:4:18: metadata.name: CiliumNetworkPolicy default/closed is"),
        ([("a.yaml", POLICY.replace("ingress", "ingres"))], "a.yaml:7:3: spec.ingres: unknown field 'ingres'"),
    ],
)
def test_files_are_applied_all_or_none(files: list[tuple[str, str]], message: str) -> None:
    store = store_of()
    with pytest.raises(BadInput, match=message):
        store.with_files([File(*file) for file in files])

    assert store.applied == {}


def test_a_name_that_a_file_has_is_refused_with_both_places(folder: Path) -> None:
    (folder / "policy.yaml").write_text(POLICY)
    store = store_of(folder)
    applied = store.with_files([File("mine.yaml", POLICY)])

    with pytest.raises(BadInput, match=r"mine.yaml:4:18: .*default/closed is already defined in .*policy.yaml:2"):
        store.load(applied)


def test_what_was_applied_can_be_taken_back() -> None:
    store = store_of()
    store.load(store.with_files([File("mine.yaml", POLICY)]))

    assert store.without("default", "closed") == {}


def test_what_comes_from_a_file_is_to_be_removed_there(folder: Path) -> None:
    (folder / "policy.yaml").write_text(POLICY)
    store = loaded(folder)

    with pytest.raises(BadInput, match=r"policy default/closed comes from .*policy.yaml:2: remove it there"):
        store.without("default", "closed")


@pytest.mark.parametrize(("namespace", "name", "called"), [("", "closed", "closed"), ("shop", "closed", "shop/closed")])
def test_nobody_takes_back_what_is_not_there(namespace: str, name: str, called: str) -> None:
    store = store_of()
    store.load(store.with_files([File("mine.yaml", POLICY)]))

    with pytest.raises(BadInput, match=f"there is no policy {called}; 'nfq-enforcer policy list' shows"):
        store.without(namespace, name)


def test_a_change_of_files_is_seen_although_a_proposal_was_tried_meanwhile(folder: Path) -> None:
    store = loaded(folder)
    (folder / "policy.yaml").write_text(POLICY)
    with pytest.raises(BadInput, match="already defined"):
        store.load(store.with_files([File("mine.yaml", POLICY)]))

    assert change(store) == SEEN


def kinds(changes: list[Change]) -> list[tuple[str, str, bool]]:
    """Return of each change what it is about, and whether that is there."""
    return [(str(change.kind), change.name, change.record is not None) for change in changes]


def test_the_first_load_hands_out_this_node_and_all_that_documents_say(folder: Path) -> None:
    changes = store_of(folder / "web.yaml").load()

    node, identity, endpoint = changes
    assert node == Change(Kind.NODE, "n1", NodeRecord((), __version__))
    assert isinstance(endpoint.record, EndpointRecord)
    assert (endpoint.name, endpoint.record.node) == ("default/web", "n1")
    assert (identity.kind, identity.name) == (Kind.IDENTITY, str(endpoint.record.identity))
    assert "io.kubernetes.pod.namespace=default" in str(identity.record)


def test_only_what_has_changed_is_handed_out_again(folder: Path) -> None:
    store = loaded(folder)
    assert store.load() == []

    (folder / "below" / "db.yaml").unlink()
    assert kinds(store.load()) == [("endpoint", "default/db", False)]

    (folder / "web.yaml").write_text(ENDPOINT.replace(".10", ".11"))
    assert kinds(store.load()) == [("endpoint", "default/web", True)]


def test_what_is_applied_is_handed_out_and_kept(folder: Path) -> None:
    store = loaded(folder)
    changes = store.load(store.with_files([File("mine.yaml", POLICY)]))

    assert kinds(changes) == [("document", "CiliumNetworkPolicy/default/closed", True)]
    assert store.load() == []
    assert kinds(store.load({})) == [("document", "CiliumNetworkPolicy/default/closed", False)]


def test_what_is_refused_changes_nothing(folder: Path) -> None:
    store = loaded(folder)
    (folder / "below" / "db.yaml").unlink()
    (folder / "web.yaml").write_text(ENDPOINT + "nonsense: 1")
    with pytest.raises(BadInput, match="unknown field 'nonsense'"):
        store.load()

    (folder / "web.yaml").write_text(ENDPOINT)
    assert kinds(store.load()) == [("endpoint", "default/db", False)]


def test_what_cannot_be_enforced_is_refused(folder: Path) -> None:
    store = loaded(folder)
    http = POLICY.replace("{}]", "{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]}]")
    with pytest.raises(BadInput, match=r"mine.yaml:2: CiliumNetworkPolicy default/closed: http rules are understood"):
        store.load(store.with_files([File("mine.yaml", http)]))

    assert store.applied == {}
    assert store.load() == []


def test_only_relevant_labels_make_identities(folder: Path) -> None:
    for name, labels in (("web", "{app: a, version: '1'}"), ("db", "{app: a, version: '2'}")):
        file = next(folder.rglob(f"{name}.yaml"))
        file.write_text(file.read_text().replace(f"name: {name}", f"name: {name}, labels: {labels}"))

    alike = MemoryStore([folder], NodeSettings("n1", relevant=LabelFilter(["!version"]))).load()
    different = store_of(folder).load()

    assert [str(one.kind) for one in alike].count("identity") == 1
    assert [str(one.kind) for one in different].count("identity") == 2
