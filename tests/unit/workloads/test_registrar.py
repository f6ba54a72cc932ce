"""The registrar brings the endpoints of sources into a store, and takes out those that have ended."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cluster.records import EndpointRecord
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.loader import File
from nfq_enforcer.store.files import FileStore
from nfq_enforcer.workloads.endpoints import make_endpoint, usable_labels
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import DOCKER, KUBERNETES

WEB, DB = "10.0.0.1", "10.0.0.2"


class Node:
    """A node with a store of files and a replica, and a registrar that writes to the store."""

    def __init__(self, *files: Path) -> None:
        settings = NodeSettings("n1")
        self.store = FileStore(files, settings)
        self.replica = Replica(settings)
        self.registrar = Registrar("n1", self.store, lambda: self.replica.hosted, self.reconcile)
        self.registrar.sources = (DOCKER, KUBERNETES)

    async def reconcile(self) -> None:
        self.replica.apply(self.store.poll().changes)

    @property
    def sources(self) -> dict[str, str]:
        return {name: record.source for name, record in self.replica.endpoints.items()}

    def record(self, name: str) -> EndpointRecord:
        return self.replica.endpoints[f"default/{name}"]


def run(scene: Callable[[Node], Coroutine[Any, Any, None]], *files: Path) -> None:
    async def play() -> None:
        node = Node(*files)
        await node.store.start()
        await node.reconcile()
        await scene(node)
        await node.store.stop()

    asyncio.run(play())


def web(ip: str = WEB, role: str = "frontend", name: str = "web") -> Endpoint:
    return make_endpoint("default", name, {"role": role}, [ip])


def document(name: str, ip: str) -> str:
    return f"""
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: {name}, labels: {{role: mine}}}}
spec: {{ips: [{ip}]}}
"""


def test_an_endpoint_of_a_source_comes_changes_and_ends() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()
        first = node.record("web")
        node.registrar.put(DOCKER, web(DB, "backend"))
        await node.registrar.settle()
        second = node.record("web")
        node.registrar.remove(DOCKER, "default/web")
        node.registrar.remove(DOCKER, "default/never")
        await node.registrar.settle()

        assert (first.source, first.node, first.addresses) == ("docker", "n1", (bytes([10, 0, 0, 1]),))
        assert (second.addresses, second.identity != first.identity) == ((bytes([10, 0, 0, 2]),), True)
        assert node.sources == {} and node.registrar.problems == {}

    run(scene)


def test_a_list_takes_out_the_endpoints_that_it_no_longer_has() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web(), web(DB, name="db")])
        node.registrar.replace(KUBERNETES, [web("10.0.0.3", name="pod")])
        await node.registrar.settle()
        node.registrar.replace(DOCKER, [web(DB, name="db")])
        await node.registrar.settle()

        assert node.sources == {"default/db": "docker", "default/pod": "kubernetes"}

    run(scene)


def test_a_new_endpoint_has_the_address_of_an_ended_one_at_once() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()
        node.registrar.replace(DOCKER, [web(name="next")])
        await node.registrar.settle()

        assert node.sources == {"default/next": "docker"} and node.registrar.problems == {}

    run(scene)


def test_the_older_claim_of_an_address_stays_and_the_other_is_refused_until_it_is_free() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web(), web(DB, name="db")])
        await node.registrar.settle()
        node.registrar.replace(KUBERNETES, [web(name="pod"), web("10.0.0.3", name="other")])
        await node.registrar.settle()
        refused = dict(node.registrar.problems)
        both = node.sources
        node.registrar.remove(DOCKER, "default/web")
        await node.registrar.settle()

        assert "default/web" in refused["default/pod"] and WEB in refused["default/pod"]
        assert both == {"default/web": "docker", "default/db": "docker", "default/other": "kubernetes"}
        assert node.sources["default/pod"] == "kubernetes" and node.registrar.problems == {}

    run(scene)


def test_of_two_sources_with_one_name_the_first_in_order_has_it() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()
        node.registrar.replace(KUBERNETES, [web(DB)])
        await node.registrar.settle()

        assert node.sources == {"default/web": "kubernetes"} and node.registrar.problems == {}
        assert node.record("web").addresses == (bytes([10, 0, 0, 2]),)

    run(scene)


def test_a_document_keeps_its_name_and_address(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(document("web", WEB))

    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web(DB), web(name="other")])
        await node.registrar.settle()

        assert node.sources == {"default/web": ""}
        assert "has a document of its own" in node.registrar.problems["default/web"]
        assert WEB in node.registrar.problems["default/other"]

    run(scene, file)


def test_nobody_else_changes_or_deletes_the_endpoint_of_a_source() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()

        with pytest.raises(BadInput, match="default/web comes from docker on node n1"):
            await node.store.apply([File("mine.yaml", document("web", DB))])
        with pytest.raises(BadInput, match="default/web comes from docker on node n1"):
            await node.store.delete_endpoints(["default/web"])

        await node.reconcile()
        assert node.record("web").addresses == (bytes([10, 0, 0, 1]),)

    run(scene)


def test_a_document_that_was_printed_as_that_of_a_source_is_a_persons() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()
        printed = {**node.record("web").document()}
        node.registrar.replace(DOCKER, [])
        await node.registrar.settle()
        await node.store.apply([File("printed.yaml", str(printed))])
        await node.registrar.settle()
        await node.reconcile()

        assert printed["metadata"]["annotations"] == {"nfq-enforcer.io/source": "docker"}
        assert node.sources == {"default/web": ""}

    run(scene)


def test_a_deletion_that_fails_is_a_problem_that_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> list[str]:
        raise NfqError("the store is away")

    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web(), web(DB, name="db")])
        await node.registrar.settle()
        node.registrar.replace(DOCKER, [])
        node.registrar.replace(KUBERNETES, [web()])
        with monkeypatch.context() as patch:
            patch.setattr(node.store, "delete_endpoints", fail)
            await node.registrar.settle()
            await node.registrar.settle()
            problems, sources = dict(node.registrar.problems), node.sources
        await node.registrar.settle()

        reason = "it has ended, and is not deleted yet: the store is away"
        assert problems == {"default/web": reason, "default/db": reason}
        assert sources == {"default/web": "docker", "default/db": "docker"}
        assert caplog.text.count("the store is away") == len(problems)
        assert node.sources == {"default/web": "kubernetes"} and node.registrar.problems == {}

    run(scene)


def test_a_source_that_is_away_leaves_its_endpoints() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()
        node.registrar.note_problem(DOCKER, "its socket does not exist")
        await node.registrar.settle()
        away = dict(node.registrar.away)
        node.registrar.note_problem(DOCKER, None)

        assert node.sources == {"default/web": "docker"}
        assert (away, node.registrar.away) == ({"docker": "its socket does not exist"}, {})

    run(scene)


def test_a_source_that_has_named_nothing_yet_leaves_the_endpoints_of_before() -> None:
    async def scene(node: Node) -> None:
        await node.store.apply([File("before", document("web", WEB))], source=DOCKER)
        await node.reconcile()
        await node.registrar.settle()
        before = node.sources
        node.registrar.replace(DOCKER, [])
        await node.registrar.settle()

        assert (before, node.sources) == ({"default/web": "docker"}, {})

    run(scene)


def test_a_source_that_the_configuration_no_longer_has_loses_its_endpoints() -> None:
    async def scene(node: Node) -> None:
        await node.store.apply([File("before", document("web", WEB))], source=DOCKER)
        await node.reconcile()
        node.registrar.sources = (KUBERNETES,)
        await node.registrar.settle()

        assert node.sources == {}

    run(scene)


def test_an_endpoint_that_vanishes_from_the_store_comes_back() -> None:
    async def scene(node: Node) -> None:
        node.registrar.replace(DOCKER, [web()])
        await node.registrar.settle()
        await node.store.delete_endpoints(["default/web"], source=DOCKER)
        await node.reconcile()
        await node.registrar.settle()

        assert node.sources == {"default/web": "docker"}

    run(scene)


def test_the_first_endpoints_are_awaited_for_a_limited_time() -> None:
    async def scene(node: Node) -> None:
        waiting = asyncio.create_task(node.registrar.wait_named(60))
        node.registrar.replace(DOCKER, [web()])
        await asyncio.sleep(0)
        waits_for_the_other = not waiting.done()
        node.registrar.note_problem(KUBERNETES, "no API server")
        await waiting
        await node.registrar.write()
        not_reconciled = node.sources
        await node.reconcile()

        assert waits_for_the_other and not_reconciled == {}
        assert node.sources == {"default/web": "docker"}
        node.registrar.away.clear()
        await node.registrar.wait_named(0.01)

    run(scene)


def test_a_failed_reconciliation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(node: Node) -> None:
        async def fail() -> None:
            raise NfqError("a worker does not answer")

        registrar = Registrar("n1", node.store, lambda: node.replica.hosted, fail)
        registrar.sources = (DOCKER,)
        registrar.replace(DOCKER, [web()])
        await registrar.settle()

        assert "endpoints of workloads are not in force yet: a worker does not answer" in caplog.text

    run(scene)


@pytest.mark.parametrize(
    ("namespace", "name", "ips", "message"),
    [
        ("default", "Web", [WEB], "metadata.name"),
        ("default", "web", ["10.0.0.300"], "spec.ips"),
        ("default", "web", [], "spec.ips: an endpoint has at least one address"),
        ("a b", "web", [WEB], "metadata.namespace"),
    ],
)
def test_a_value_that_no_document_may_have_is_refused(namespace: str, name: str, ips: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=f"{namespace}/{name}: {message}"):
        make_endpoint(namespace, name, {}, ips)


def test_labels_that_no_endpoint_can_have_are_left_out() -> None:
    labels = {
        "role": "frontend",
        "app.kubernetes.io/name": "web",
        "org.opencontainers.image.title": "a title with blanks",
        "io.cilium.k8s.policy.cluster": "other",
        "reserved:host": "",
        "bad key": "x",
    }

    assert usable_labels(labels) == {"role": "frontend", "app.kubernetes.io/name": "web"}


def test_an_endpoint_has_all_that_a_document_can_say() -> None:
    endpoint = make_endpoint(
        *("shop", "web", {"role": "frontend"}, [WEB, "fd00::1"]),
        interface="veth1",
        service_account="shop",
        ports=[("http", 80, "TCP")],
    )

    spec = endpoint.spec
    assert ([str(ip) for ip in spec.ips], spec.interface, spec.service_account) == ([WEB, "fd00::1"], "veth1", "shop")
    assert [(port.name, port.port, port.protocol) for port in spec.ports] == [("http", 80, "TCP")]
