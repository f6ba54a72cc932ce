"""The publisher brings the documents of an API server into a store, newest last, from nodes that may be late."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.cluster.source import Applied
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.files import FileStore
from nfq_enforcer.workloads import publisher
from nfq_enforcer.workloads.publisher import Data, Publisher
from nfq_enforcer.workloads.registrar import Registrar


class Node:
    """A node with a store of files and a replica, and two publishers: of this node, and of one that may be late."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        settings = NodeSettings("n1")
        self.store = FileStore(files, settings)
        self.replica = Replica(settings)
        self.registrar = Registrar("n1", self.store, lambda: self.replica.hosted, self.reconcile)
        self.one, self.late = self.publisher(), self.publisher()
        self.registrar.publisher = self.one
        self.refused: list[tuple[str, str]] = []
        self.one.on_refused = self.note

    def publisher(self) -> Publisher:
        return Publisher("kubernetes", self.store, lambda: self.replica.documents, self.registrar.note_change)

    async def note(self, data: Data, reason: str) -> None:
        self.refused.append((data["metadata"]["name"], reason))

    async def reconcile(self) -> None:
        self.replica.apply(self.store.poll().changes)

    async def write(self, publisher: Publisher | None = None) -> bool:
        written = await (publisher or self.one).write()
        await self.reconcile()
        return written

    @property
    def roles(self) -> dict[str, Any]:
        """The role that each policy selects, by the policy's name."""
        return {
            document.name: document.data["spec"]["podSelector"]["matchLabels"]["role"]  # type: ignore[index]
            for document in self.replica.documents.values()
            if document.kind == "NetworkPolicy"
        }


def run(scene: Callable[[Node], Coroutine[Any, Any, None]], *files: Path) -> None:
    async def play() -> None:
        node = Node(files)
        await node.store.start()
        await node.reconcile()
        await scene(node)
        await node.store.stop()

    asyncio.run(play())


def policy(version: int | str, role: str = "db", name: str = "p", **spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "resourceVersion": str(version),
            "uid": "4711",
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": {"podSelector": {"matchLabels": {"role": role}}, **spec},
        "status": {"conditions": []},
    }


def test_a_document_comes_changes_and_ends() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5))
        await node.registrar.settle()
        first, document = node.roles, node.replica.documents["NetworkPolicy/shop/p"]
        node.one.put(policy(6, "web"))
        await node.registrar.settle()
        second = node.roles
        node.one.remove(policy(7, "web"))
        await node.registrar.settle()

        assert (first, second, node.roles) == ({"p": "db"}, {"p": "web"}, {})
        assert document.source == "kubernetes"
        assert document.data["metadata"] == {
            "name": "p",
            "namespace": "shop",
            "resourceVersion": "5",
            "uid": "4711",
        }
        assert "status" not in document.data

    run(scene)


def test_a_list_that_comes_before_the_state_of_the_store_takes_out_what_has_ended() -> None:
    """An agent that starts has its first list before it has the state of the store."""

    async def scene(node: Node) -> None:
        node.one.replace("NetworkPolicy", [policy(5, name="a"), policy(6, name="b"), policy(30, name="c")], "30")
        await node.write()
        starting = Replica(NodeSettings("n1"))
        publisher = Publisher("kubernetes", node.store, lambda: starting.documents, node.registrar.note_change)

        publisher.replace("NetworkPolicy", [policy(6, name="b")], "20")
        await publisher.write()
        await node.reconcile()
        assert set(node.roles) == {"a", "b", "c"}
        starting = node.replica
        await publisher.write()
        await node.reconcile()

        assert set(node.roles) == {"b", "c"}  # c is newer than the list

    run(scene)


def test_a_late_node_does_not_undo_a_newer_change() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5))
        await node.write()
        node.one.put(policy(6, "web"))
        await node.write()
        node.late.put(policy(5))
        changed = await node.write(node.late)
        node.late.put(policy(6, "web"))
        changed |= await node.write(node.late)

        assert not changed and node.roles == {"p": "web"}

    run(scene)


def test_a_version_without_another_content_is_not_written() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5))
        await node.write()
        node.one.put({**policy(6), "status": {"conditions": [{"type": "Valid"}]}})
        changed = await node.write()
        node.one.remove(policy(7))
        await node.write()

        assert not changed and node.roles == {}

    run(scene)


def test_versions_that_have_gone_back_are_a_problem_once_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(50))
        await node.write()
        node.one.replace("NetworkPolicy", [policy(7, "web")], "8")
        await node.write()
        at_once = dict(node.one.problems)
        monkeypatch.setattr(publisher, "_LATE", 0.0)
        await node.write()
        later = dict(node.one.problems)
        node.one.put(policy(51, "web"))
        await node.write()

        assert at_once == {} and node.one.problems == {}
        assert "newer version of it than the API server" in later["NetworkPolicy shop/p"]
        assert node.roles == {"p": "web"}

    run(scene)


def test_a_late_deletion_leaves_a_document_that_was_made_anew() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(9, "web"))
        await node.write()
        node.late.remove(policy(8))
        await node.write(node.late)

        assert node.roles == {"p": "web"}

    run(scene)


def test_a_late_list_takes_out_only_documents_that_are_not_newer() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5, name="old"))
        node.one.put(policy(20, name="new"))
        await node.write()
        node.late.replace("NetworkPolicy", [policy(7, name="listed")], "10")
        await node.write(node.late)

        assert set(node.roles) == {"listed", "new"}

    run(scene)


def test_a_list_leaves_documents_of_other_kinds_and_of_people() -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "resourceVersion": "3"}}

    async def scene(node: Node) -> None:
        await node.store.apply([File("mine.yaml", str(policy(1, name="mine")))])
        await node.reconcile()
        node.one.put(namespace)
        node.one.put(policy(5))
        await node.write()
        node.one.replace("NetworkPolicy", [], "30")
        await node.write()

        assert node.roles == {"mine": "db"}
        assert "Namespace//shop" in node.replica.documents

    run(scene)


def test_a_deleted_document_is_not_brought_back_without_an_event() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5))
        node.late.put(policy(5))
        await node.write(node.late)
        await node.write()
        node.one.remove(policy(6))
        await node.write()
        again = await node.write(node.late)

        assert node.roles == {} and not again

    run(scene)


def test_a_refused_document_is_named_once_and_the_others_are_in_force() -> None:
    async def scene(node: Node) -> None:
        many = [policy(number, name=f"p{number}") for number in range(1, 8)]
        node.one.replace("NetworkPolicy", [*many, policy(9, name="bad", podTypes=["x"])], "10")
        await node.write()
        node.one.put(policy(9, name="bad", podTypes=["x"]))
        await node.write()
        problems = dict(node.one.problems)
        node.one.put(policy(11, name="bad"))
        await node.write()

        assert set(node.roles) == {"bad", *(f"p{number}" for number in range(1, 8))}
        assert list(problems) == ["NetworkPolicy shop/bad"] and node.one.problems == {}
        assert [name for name, _ in node.refused] == ["bad"]
        assert problems["NetworkPolicy shop/bad"].startswith("spec.podTypes: ")

    run(scene)


def test_an_annotation_that_would_have_an_effect_is_not_lost() -> None:
    async def scene(node: Node) -> None:
        audited = policy(5)
        audited["metadata"]["annotations"]["nfq-enforcer.io/audit"] = "true"
        node.one.put(audited)
        await node.write()

        assert node.roles == {}
        assert "nfq-enforcer.io/audit" in node.one.problems["NetworkPolicy shop/p"]

    run(scene)


def test_the_version_before_a_refused_one_stays_in_force_until_the_document_ends() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5))
        await node.write()
        node.one.put(policy(6, "web", podTypes=["x"]))
        await node.write()
        before, problems = node.roles, dict(node.one.problems)
        node.one.put(policy(7))
        await node.write()
        as_before = dict(node.one.problems)
        node.one.put(policy(8, "web", podTypes=["x"]))
        node.one.remove(policy(9, "web"))
        await node.write()

        assert before == {"p": "db"} and problems and not as_before
        assert node.roles == {} and node.one.problems == {}

    run(scene)


def test_the_document_of_a_person_stays(tmp_path: Path) -> None:
    async def scene(node: Node) -> None:
        await node.store.apply([File("mine.yaml", str(policy(90)))])
        await node.reconcile()
        node.one.put(policy(5, "web"))
        await node.write()
        refused = dict(node.one.problems)
        node.one.remove(policy(6, "web"))
        await node.write()

        assert node.roles == {"p": "db"}
        assert "NetworkPolicy shop/p has a document of its own" in refused["NetworkPolicy shop/p"]

    run(scene)


def test_a_person_deletes_a_document_of_a_source_by_force_only() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(5))
        await node.write()

        with pytest.raises(
            BadInput, match="NetworkPolicy shop/p comes from kubernetes: it changes and ends there only"
        ):
            await node.store.delete_policy("shop", "p")
        with pytest.raises(BadInput, match="comes from kubernetes"):
            await node.store.apply([File("mine.yaml", str(policy(1)))])
        await node.store.delete_policy("shop", "p", force=True)
        await node.reconcile()
        assert node.roles == {}

    run(scene)


def test_versions_that_are_no_numbers_are_taken_as_they_come() -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy("abc"))
        await node.write()
        node.one.put(policy("abb", "web"))
        await node.write()

        assert node.roles == {"p": "web"}

    run(scene)


def test_a_write_that_fails_is_repeated_with_the_newest_state(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(node: Node) -> None:
        node.one.put(policy(4, name="gone"))
        await node.write()
        apply, delete = node.store.apply, node.store.delete_documents

        async def fail(*_args: object, **_options: object) -> Applied:
            raise NfqError("the store is not reachable")

        monkeypatch.setattr(node.store, "apply", fail)
        monkeypatch.setattr(node.store, "delete_documents", fail)
        node.one.put(policy(5))
        node.one.remove(policy(6, name="gone"))
        failed = await node.write()
        node.one.put(policy(7, "web"))
        monkeypatch.setattr(node.store, "apply", apply)
        monkeypatch.setattr(node.store, "delete_documents", delete)
        await node.write()

        assert not failed and node.roles == {"p": "web"} and node.one.problems == {}

    run(scene)
