"""The sink of pods: a registrar and a store get the endpoints of pods, with their interfaces."""

import asyncio
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nfq_enforcer.cluster.records import EndpointRecord
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.store.files import FileStore
from nfq_enforcer.workloads.kubernetes.pods import Pod, Port
from nfq_enforcer.workloads.kubernetes.reflector import Name
from nfq_enforcer.workloads.kubernetes.source import PodSink
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import KUBERNETES

WEB = Pod(
    "u1",
    (("role", "web"),),
    "default",
    ("10.0.0.1", "fd00::1"),
    (Port("http", 80, "TCP"),),
    False,
    "Running",
    False,
    "t",
)
DB = WEB._replace(uid="u2", labels=(("role", "db"),), addresses=("10.0.0.2",), ports=())


class Scene:
    """Scene: a sink with a registrar on a store of its own, and the interfaces of the host by address."""

    def __init__(self) -> None:
        settings = NodeSettings("n1")
        self.store = FileStore((), settings)
        self.replica = Replica(settings)
        self.registrar = Registrar("n1", self.store, lambda: self.replica.hosted, self._reconcile)
        self.registrar.sources = (KUBERNETES,)
        self.interfaces: dict[str, str] = {"10.0.0.1": "veth1", "10.0.0.2": "veth2"}
        self.sink = PodSink(self.registrar, self._find)

    def _find(self, address: IPv4Address | IPv6Address) -> str | None:
        return self.interfaces.get(str(address))

    async def _reconcile(self) -> None:
        self.replica.apply(self.store.poll().changes)

    def list(self, **pods: Pod) -> None:
        self.sink.replace({Name("shop", name): pod for name, pod in pods.items()}, "1")

    async def endpoints(self) -> dict[str, EndpointRecord]:
        await self.registrar.settle()
        return dict(self.replica.endpoints)


def play(scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        made = Scene()
        await made.store.start()
        await scene(made)
        await made.store.stop()

    asyncio.run(whole())


def test_pods_become_endpoints_of_this_node() -> None:
    async def scene(s: Scene) -> None:
        s.list(web=WEB, host=WEB._replace(host_network=True))

        (record,) = (await s.endpoints()).values()

        assert (record.full_name, record.node, record.source) == ("shop/web", "n1", "kubernetes")
        assert (record.interface, record.account) == ("veth1", "default")
        assert record.addresses == (bytes((10, 0, 0, 1)), bytes.fromhex("fd00" + "0" * 27 + "1"))
        assert [port.name for port in record.ports] == ["http"]

    play(scene)


def test_labels_that_would_claim_another_identity_are_left_out() -> None:
    async def scene(s: Scene) -> None:
        forged = (("io.cilium.k8s.policy.serviceaccount", "admin"), ("io.kubernetes.pod.namespace", "kube-system"))
        s.list(web=WEB._replace(labels=(*WEB.labels, *forged)))

        assert str((await s.endpoints())["shop/web"].labels) == "k8s:role=web"

    play(scene)


def test_changes_follow_one_by_one() -> None:
    async def scene(s: Scene) -> None:
        s.list(web=WEB)
        s.sink.put(Name("shop", "db"), DB)
        assert set(await s.endpoints()) == {"shop/web", "shop/db"}

        s.sink.remove(Name("shop", "web"), "2")
        assert set(await s.endpoints()) == {"shop/db"}

        s.sink.put(Name("shop", "db"), DB._replace(phase="Succeeded"))
        assert await s.endpoints() == {}

    play(scene)


def test_an_address_goes_to_the_next_pod_and_back() -> None:
    async def scene(s: Scene) -> None:
        s.list(web=WEB)
        s.sink.put(Name("shop", "next"), WEB._replace(uid="u9", created="u"))
        assert set(await s.endpoints()) == {"shop/next"}

        s.sink.remove(Name("shop", "next"), "3")
        assert set(await s.endpoints()) == {"shop/web"}

    play(scene)


def test_an_interface_that_comes_later_is_found() -> None:
    async def scene(s: Scene) -> None:
        del s.interfaces["10.0.0.1"]
        s.list(web=WEB)
        assert (await s.endpoints())["shop/web"].interface is None
        assert s.sink.lacks_interfaces

        s.interfaces["fd00::1"] = "veth7"
        s.sink.look()
        assert (await s.endpoints())["shop/web"].interface == "veth7"
        assert not s.sink.lacks_interfaces

    play(scene)


def test_a_pod_that_cannot_be_an_endpoint_is_named_and_stops_no_other() -> None:
    async def scene(s: Scene) -> None:
        s.list(web=WEB._replace(account="a" * 64), db=DB, local=DB._replace(addresses=("127.0.0.1",)))

        assert set(await s.endpoints()) == {"shop/db"}
        assert sorted(s.sink.invalid) == ["shop/local", "shop/web"]
        assert "loopback" in s.sink.invalid["shop/local"]

        s.sink.put(Name("shop", "web"), WEB)
        assert set(await s.endpoints()) == {"shop/db", "shop/web"}
        assert sorted(s.sink.invalid) == ["shop/local"]

    play(scene)
