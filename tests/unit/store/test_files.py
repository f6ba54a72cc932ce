"""FileStore: every change of a file is detected once, and not before the file is at rest."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest

from nfq_enforcer import __version__
from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.cluster.source import Applied, NodeStatus, Started
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.files import FileStore

ENDPOINT = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web}
spec: {ips: [10.1.0.10]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a document and a subfolder with another."""
    folder = tmp_path / "documents"
    (folder / "below").mkdir(parents=True)
    (folder / "web.yaml").write_text(ENDPOINT)
    (folder / "below" / "db.yaml").write_text(ENDPOINT.replace("web", "db").replace(".10", ".20"))
    return folder


T = TypeVar("T")
PATIENCE = 30.0


def run(doing: Awaitable[T]) -> T:
    """Return the result of a coroutine."""

    async def awaited() -> T:
        async with asyncio.timeout(PATIENCE):
            return await doing

    return asyncio.run(awaited())


def store_of(*paths: Path) -> FileStore:
    return FileStore(paths, NodeSettings("n1"))


def loaded(*paths: Path) -> FileStore:
    """Return a store that has loaded and delivered its documents and polled its files since."""
    store = store_of(*paths)
    run(store.start())
    store.poll()
    store.poll_files()
    return store


def delivered(store: FileStore) -> list[tuple[str, str, bool]]:
    """Return for each delivered change its name, and whether the record exists."""
    return [(str(change.kind), change.name, change.record is not None) for change in store.poll().changes]


def endpoints(store: FileStore) -> list[str]:
    """Return the endpoints that a store delivers at its start."""
    run(store.start())
    return sorted(change.name for change in store.poll().changes if change.kind is Kind.ENDPOINT)


def change(store: FileStore) -> list[bool]:
    """Poll until a change is detected and loaded, if any; return the result of each poll."""
    looks = [store.poll_files(), store.poll_files()]
    if looks[-1]:
        run(store.start())
    return [*looks, store.poll_files()]


SEEN, NOT_SEEN = [False, True, False], [False, False, False]


def test_documents_of_files_and_folders_are_loaded(folder: Path) -> None:
    assert endpoints(store_of(folder)) == ["default/db", "default/web"]
    assert endpoints(store_of(folder / "web.yaml")) == ["default/web"]
    assert endpoints(store_of()) == []


def test_what_stays_as_it_is_has_not_changed(folder: Path) -> None:
    assert change(loaded(folder, folder / "web.yaml")) == NOT_SEEN


def test_what_was_never_loaded_is_to_be_loaded(folder: Path) -> None:
    assert change(store_of(folder)) == SEEN


def test_a_file_that_is_written_is_seen_when_it_has_come_to_rest(folder: Path) -> None:
    store = loaded(folder)
    (folder / "web.yaml").write_text(ENDPOINT + "# half")
    assert store.poll_files() is False
    (folder / "web.yaml").write_text(ENDPOINT + "# half, and the other half")
    assert store.poll_files() is False

    assert store.poll_files() is True


def test_a_file_that_comes_is_seen(folder: Path) -> None:
    store = loaded(folder)
    (folder / "below" / "more.yaml").write_text(ENDPOINT.replace("web", "more").replace(".10", ".30"))

    assert change(store) == SEEN
    assert delivered(store) == [("endpoint", "default/more", True)]


def test_a_file_that_goes_is_seen(folder: Path) -> None:
    store = loaded(folder)
    (folder / "below" / "db.yaml").unlink()

    assert change(store) == SEEN
    assert delivered(store) == [("endpoint", "default/db", False)]


def test_a_file_that_is_replaced_is_seen_even_if_size_and_time_are_equal(folder: Path) -> None:
    store = loaded(folder)
    before = (folder / "web.yaml").stat()
    fresh = folder / "web.new"
    fresh.write_text(ENDPOINT.replace("web", "wap"))
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.rename(folder / "web.yaml")

    assert change(store) == SEEN
    assert delivered(store) == [("endpoint", "default/web", False), ("endpoint", "default/wap", True)]


def test_a_file_that_a_link_now_leads_to_is_seen(folder: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(ENDPOINT.replace("web", name).replace(".10", ".30"))
    link = folder / "link.yaml"
    link.symlink_to(tmp_path / "old")
    store = loaded(folder)
    link.unlink()
    link.symlink_to(tmp_path / "new")

    assert change(store) == SEEN
    assert delivered(store) == [("endpoint", "default/old", False), ("endpoint", "default/new", True)]


def test_a_named_file_that_goes_is_seen(folder: Path) -> None:
    store = loaded(folder / "web.yaml")
    (folder / "web.yaml").unlink()

    assert [store.poll_files(), store.poll_files()] == [False, True]


def test_a_folder_that_vanishes_is_refused_and_one_that_comes_back_is_seen(folder: Path, tmp_path: Path) -> None:
    store = loaded(folder)
    folder.rename(tmp_path / "elsewhere")

    assert [store.poll_files(), store.poll_files()] == [False, True]
    with pytest.raises(BadInput) as caught:
        run(store.start())
    assert str(caught.value) == f"{folder}: cannot be read: No such file or directory"
    assert store.poll_files() is False  # the change was delivered once

    (tmp_path / "elsewhere").rename(folder)
    assert change(store) == SEEN
    assert delivered(store) == []


def test_a_broken_file_is_refused_once_and_seen_when_it_is_mended(folder: Path) -> None:
    store = loaded(folder)
    (folder / "web.yaml").write_text("kind: [")
    assert [store.poll_files(), store.poll_files()] == [False, True]
    with pytest.raises(BadInput, match="not valid YAML"):
        run(store.start())
    assert [store.poll_files(), store.poll_files()] == [False, False]

    (folder / "web.yaml").write_text(ENDPOINT)
    assert change(store) == SEEN


def test_folders_that_links_lead_to_are_neither_read_nor_looked_at(folder: Path) -> None:
    for name in ("round", "and-round", "and-round-again"):
        (folder / name).symlink_to(folder)  # if links were followed, the number of folders would be exponential

    assert endpoints(store_of(folder)) == ["default/db", "default/web"]
    assert change(loaded(folder)) == NOT_SEEN


POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed}
spec:
  endpointSelector: {}
  ingress: [{}]
"""
CLOSED = "CiliumNetworkPolicy/default/closed"


def apply(store: FileStore, *files: tuple[str, str]) -> Applied:
    return run(store.apply([File(*file) for file in files]))


def origins(store: FileStore) -> list[str]:
    """Return the origins of the policies that a store delivers."""
    records = (change.record for change in store.poll().changes)
    return [record.origin for record in records if isinstance(record, PolicyDocument)]


def test_what_is_applied_stands_beside_what_is_in_files(folder: Path) -> None:
    store = loaded(folder)

    applied = apply(store, ("mine.yaml", POLICY))
    assert applied == Applied((CLOSED,), (), applied.policies)
    assert [policy.name for policy in applied.policies] == ["closed"]
    assert origins(store) == ["mine.yaml:2"]
    assert change(store) == NOT_SEEN
    assert delivered(store) == []


def test_what_is_applied_stays_when_files_change(folder: Path) -> None:
    store = loaded(folder)
    apply(store, ("mine.yaml", POLICY))
    store.poll()
    (folder / "web.yaml").unlink()

    assert change(store) == SEEN
    assert delivered(store) == [("endpoint", "default/web", False)]


def test_what_is_applied_again_takes_the_place_of_what_was() -> None:
    store = loaded()
    apply(store, ("old.yaml", POLICY), ("other.yaml", POLICY.replace("closed", "other")))
    store.poll()
    apply(store, ("new.yaml", "# further down\n" + POLICY.replace("[{}]", "[{fromEntities: [host]}]")))

    assert origins(store) == ["new.yaml:3"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.yaml", POLICY), ("b.yaml", POLICY)], "b.yaml:4:18: metadata.name: CiliumNetworkPolicy default/closed is"),
        ([("a.yaml", POLICY.replace("ingress", "ingres"))], "a.yaml:7:3: spec.ingres: unknown field 'ingres'"),
    ],
)
def test_files_are_applied_all_or_none(files: list[tuple[str, str]], message: str) -> None:
    store = loaded()
    with pytest.raises(BadInput, match=message):
        apply(store, ("good.yaml", ENDPOINT), *files)

    assert delivered(store) == []
    assert store.refused is None  # the error was raised to the caller of apply


def test_a_name_that_a_file_has_is_refused_with_both_places(folder: Path) -> None:
    (folder / "policy.yaml").write_text(POLICY)
    store = loaded(folder)

    with pytest.raises(BadInput, match=r"mine.yaml:4:18: .*default/closed is already defined in .*policy.yaml:2"):
        apply(store, ("mine.yaml", POLICY))
    assert delivered(store) == []


def test_what_was_applied_can_be_taken_back() -> None:
    store = loaded()
    apply(store, ("mine.yaml", POLICY))
    store.poll()
    run(store.delete_policy("default", "closed"))

    assert delivered(store) == [("document", CLOSED, False)]


def test_what_comes_from_a_file_is_to_be_removed_there(folder: Path) -> None:
    (folder / "policy.yaml").write_text(POLICY)
    store = loaded(folder)

    with pytest.raises(BadInput, match=r"policy default/closed comes from .*policy.yaml:2: remove it there"):
        run(store.delete_policy("default", "closed"))
    with pytest.raises(BadInput, match=r"^endpoint default/web comes from a file: remove it there$"):
        run(store.delete_endpoints(["default/web"]))
    assert delivered(store) == []


def test_other_addresses_of_the_node_are_delivered_and_stay_when_files_change(folder: Path) -> None:
    store = loaded(folder)
    node = NodeRecord((ip_address("10.0.0.9"),), __version__)

    run(store.register(node.addresses))
    assert store.poll().changes == [Change(Kind.NODE, "n1", node)]
    (folder / "web.yaml").unlink()
    run(store.start())
    assert [(change.kind, change.record) for change in store.poll().changes] == [(Kind.ENDPOINT, None)]


@pytest.mark.parametrize(("namespace", "name", "called"), [("", "closed", "closed"), ("shop", "closed", "shop/closed")])
def test_nobody_takes_back_what_is_not_there(namespace: str, name: str, called: str) -> None:
    store = loaded()
    apply(store, ("mine.yaml", POLICY))

    with pytest.raises(BadInput, match=f"there is no policy {called}; 'nfq-enforcer policy list' shows"):
        run(store.delete_policy(namespace, name))


def test_a_change_of_files_is_seen_although_a_proposal_was_tried_meanwhile(folder: Path) -> None:
    store = loaded(folder)
    (folder / "policy.yaml").write_text(POLICY)
    with pytest.raises(BadInput, match="already defined"):
        apply(store, ("mine.yaml", POLICY))

    assert change(store) == SEEN
    assert delivered(store) == [("document", CLOSED, True)]


MORE = ENDPOINT.replace("web}", "more, labels: {app: more}}").replace(".10", ".30")


def test_an_endpoint_that_is_applied_is_told_its_identity_and_whether_it_is_the_first_of_its_kind(folder: Path) -> None:
    store = loaded(folder)
    (first,) = apply(store, ("more.yaml", MORE)).endpoints
    (second,) = apply(store, ("most.yaml", MORE.replace("name: more", "name: most").replace(".30", ".31"))).endpoints
    (wap,) = apply(store, ("wap.yaml", ENDPOINT.replace("web", "wap").replace(".10", ".32"))).endpoints

    assert (first.endpoint, first.new) == ("default/more", True)
    assert "k8s:app=more" in str(first.labels).split(";")
    assert second == Started("default/most", first.identity, first.labels, new=False)
    assert (wap.endpoint, wap.new) == ("default/wap", False)
    assert delivered(store) == [
        ("identity", str(first.identity), True),
        *(("endpoint", f"default/{name}", True) for name in ("more", "most", "wap")),
    ]


def test_endpoints_that_were_applied_can_be_taken_back(folder: Path) -> None:
    store = loaded(folder)
    (more,) = apply(store, ("more.yaml", MORE)).endpoints
    store.poll()

    assert run(store.delete_endpoints(["default/more", "default/nobody"])) == ["default/more"]
    assert delivered(store) == [("identity", str(more.identity), False), ("endpoint", "default/more", False)]
    assert run(store.delete_endpoints(["default/more"])) == []


def test_a_file_that_breaks_is_named_until_it_is_mended_and_all_else_waits(folder: Path) -> None:
    store = loaded(folder)

    async def followed() -> tuple[str, list[str]]:
        (folder / "web.yaml").write_text("kind: [")
        waiting = asyncio.create_task(store.wait())
        await until(lambda: store.refused is not None)
        assert store.refused is not None
        reason = store.refused[1]
        assert (waiting.done(), store.poll().changes) == (False, [])
        (folder / "web.yaml").write_text(ENDPOINT.replace(".10", ".11"))
        await waiting
        return reason, [change.name for change in store.poll().changes]

    reason, names = run(followed())
    assert reason.startswith(f"{folder}/web.yaml:2:1: ")
    assert "not valid YAML" in reason
    assert names == ["default/web"]
    assert store.refused is None


async def until(condition: Callable[[], bool]) -> None:
    """Return once a condition holds."""
    while not condition():
        await asyncio.sleep(0.01)


def test_a_host_that_works_alone_is_the_only_node_and_agrees_with_nobody() -> None:
    store = loaded()

    assert run(store.enforced_by(7, 0.0)) == [NodeStatus("n1", live=True)]
    assert run(store.status()) is None
    assert store.revision is None


def test_the_first_load_hands_out_this_node_and_all_that_documents_say(folder: Path) -> None:
    store = store_of(folder / "web.yaml")
    run(store.start())

    node, identity, endpoint = store.poll().changes
    assert node == Change(Kind.NODE, "n1", NodeRecord((), __version__))
    assert isinstance(endpoint.record, EndpointRecord)
    assert (endpoint.name, endpoint.record.node) == ("default/web", "n1")
    assert (identity.kind, identity.name) == (Kind.IDENTITY, str(endpoint.record.identity))
    assert "io.kubernetes.pod.namespace=default" in str(identity.record)


def test_only_what_has_changed_is_handed_out_again(folder: Path) -> None:
    store = loaded(folder)
    run(store.start())
    assert delivered(store) == []

    (folder / "below" / "db.yaml").unlink()
    run(store.start())
    assert delivered(store) == [("endpoint", "default/db", False)]

    (folder / "web.yaml").write_text(ENDPOINT.replace(".10", ".11"))
    run(store.start())
    assert delivered(store) == [("endpoint", "default/web", True)]


def test_what_is_refused_changes_nothing(folder: Path) -> None:
    store = loaded(folder)
    (folder / "below" / "db.yaml").unlink()
    (folder / "web.yaml").write_text(ENDPOINT + "nonsense: 1")
    with pytest.raises(BadInput, match="unknown field 'nonsense'"):
        run(store.start())
    assert delivered(store) == []

    (folder / "web.yaml").write_text(ENDPOINT)
    run(store.start())
    assert delivered(store) == [("endpoint", "default/db", False)]


def test_rules_for_nodes_are_taken(folder: Path) -> None:
    store = loaded(folder)
    of_nodes = POLICY.replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy").replace("endpointS", "nodeS")
    apply(store, ("mine.yaml", of_nodes))

    assert delivered(store) == [("document", "CiliumClusterwideNetworkPolicy//closed", True)]


def test_only_relevant_labels_make_identities(folder: Path) -> None:
    for name, labels in (("web", "{app: a, version: '1'}"), ("db", "{app: a, version: '2'}")):
        file = next(folder.rglob(f"{name}.yaml"))
        file.write_text(file.read_text().replace(f"name: {name}", f"name: {name}, labels: {labels}"))
    alike, different = FileStore([folder], NodeSettings("n1", relevant=LabelFilter(["!version"]))), store_of(folder)
    run(alike.start())
    run(different.start())

    assert [kind for kind, *_ in delivered(alike)].count("identity") == 1
    assert [kind for kind, *_ in delivered(different)].count("identity") == 2


MANY = 1000


def test_a_large_file_is_read_to_its_end_however_short_its_reader_waits(folder: Path) -> None:
    store = loaded(folder)
    text = "---".join(
        ENDPOINT.replace("web", f"e{number}").replace("10.1.0.10", f"10.2.{number // 250}.{number % 250 + 1}")
        for number in range(MANY)
    )

    async def waited_for() -> int:
        (folder / "many.yaml").write_text(text)
        waits = 0
        while not (changes := store.poll().changes):
            waits += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await store.wait()
        assert len(changes) == MANY
        return waits

    assert run(waited_for()) > 10  # the patience of a single wait would have been too short


def test_an_application_goes_on_if_its_caller_does_not_wait(folder: Path) -> None:
    store = loaded(folder)
    text = "---".join([POLICY.replace("closed", f"closed{number}") for number in range(10)])

    async def left() -> list[Change]:
        applying = asyncio.create_task(store.apply([File("mine.yaml", text)]))
        while not store.changing:
            await asyncio.sleep(0)
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)
        await until(lambda: not store.changing)
        return store.poll().changes

    assert len(run(left())) == 10


def test_a_store_that_stops_follows_no_file(folder: Path) -> None:
    store = loaded(folder)

    async def stopped() -> int:
        waiting = asyncio.create_task(store.wait())
        await asyncio.sleep(0)
        await store.stop()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return len(asyncio.all_tasks())

    assert run(stopped()) == 1  # this one
