"""Watch of containers: list, events, looks; a test holds back or changes the answers of a daemon in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, NamedTuple

from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.workloads.containers.daemon import DaemonError
from nfq_enforcer.workloads.containers.watch import ContainerWatch, WatchTimings

SOCKET = "/run/docker.sock"
TIMINGS = WatchTimings(interval=3600, first_pause=0.001, longest_pause=0.002)
OFTEN = WatchTimings(interval=0.001, starting=0, first_pause=0.001, longest_pause=0.002)


class Link(NamedTuple):
    kind: str = "veth"
    interface: str | None = "veth1"
    bridge: str | None = "docker0"
    passed: bool = True


class FakeDaemon:
    """Daemon in memory: containers with a state, an address in network ``bridge`` and a role."""

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.members: dict[str, str] = {}  # of the network: address by container
        self.reachable = True
        self.gate = asyncio.Event()  # of inspections
        self.gate.set()
        self.sessions = 0
        self._events: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()

    def set(self, container: str, address: str = "", process: int = 7, role: str = "web", name: str = "") -> None:
        """Set the state of a container; without a process it is not active."""
        self.containers[container] = {
            "Id": container,
            "Name": f"/{name or container}",
            "Config": {"Labels": {"role": role}},
            "State": {"Pid": process},
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Networks": {"bridge": {"IPAddress": address}}, "Ports": {"80/tcp": [{}]}},
        }

    def tell(self, action: str, container: str, kind: str = "container") -> None:
        """Send an event about a container, or about its membership of the network."""
        attributes = {"container": container} if kind == "network" else {}
        actor = {"ID": container if kind == "container" else "net-id", "Attributes": attributes}
        self._events.put_nowait({"Type": kind, "Action": action, "Actor": actor})

    def send(self, event: Mapping[str, Any]) -> None:
        self._events.put_nowait(event)

    def close(self) -> None:
        """End the stream of events."""
        self._events.put_nowait(None)

    @asynccontextmanager
    async def connect(self, socket: str) -> AsyncIterator["FakeDaemon"]:
        assert socket == SOCKET
        self.sessions += 1
        if not self.reachable:
            raise DaemonError(f"{socket}: No such file or directory")
        yield self

    @asynccontextmanager
    async def events(self, since: float) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        assert since > 0
        yield self._read()

    async def _read(self) -> AsyncIterator[Mapping[str, Any]]:
        while (event := await self._events.get()) is not None:
            yield event

    def _listed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "Id": data["Id"],
            "Names": [data.get("Name", "/broken")],
            "Labels": data.get("Config", {}).get("Labels"),
            "HostConfig": data.get("HostConfig"),
            "State": "running" if data["State"]["Pid"] else "created",
            "NetworkSettings": data.get("NetworkSettings"),
        }

    async def running(self) -> Any:
        return [self._listed(one) for one in self.containers.values() if one["State"]["Pid"]]

    async def summary(self, container: str) -> Any:
        return [self._listed(one) for key, one in self.containers.items() if key.startswith(container)]

    async def inspect(self, container: str) -> Any:
        await self.gate.wait()
        return self.containers.get(container)

    async def network(self, network: str) -> Any:
        assert network == "net-id"
        members = {container: {"IPv4Address": f"{address}/16"} for container, address in self.members.items()}
        return {"Name": "bridge", "Containers": members}


class Registered:
    """Registrar in memory: the endpoints of the source, and all calls."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.calls: list[str] = []
        self.away: str | None = None
        self.lists = 0

    def replace(self, source: str, endpoints: Any) -> None:
        self.endpoints = {f"{one.namespace}/{one.name}": one for one in endpoints}
        self.lists += 1

    def put(self, source: str, endpoint: Endpoint) -> None:
        name = f"{endpoint.namespace}/{endpoint.name}"
        self.endpoints[name] = endpoint
        self.calls.append(f"put {name} {endpoint.spec.ips[0]} {endpoint.spec.interface}")

    def remove(self, source: str, full_name: str) -> None:
        self.endpoints.pop(full_name, None)
        self.calls.append(f"remove {full_name}")

    def note_problem(self, source: str, problem: str | None) -> None:
        self.away = problem


class Scene:
    """Scene: a watch that runs, its daemon and its registrar."""

    def __init__(self, timings: WatchTimings = TIMINGS, source: str = "docker") -> None:
        self.daemon = FakeDaemon()
        self.registered = Registered()
        self.interface = Link()
        self.gone: set[int] = set()  # processes that have ended
        self.proxies = False
        registrar: Any = self.registered
        self.watch = ContainerWatch(
            source,
            SOCKET,
            "n1",
            registrar,
            self._attachments,
            lambda: self.proxies,
            timings=timings,
            connect=self.daemon.connect,
        )

    def _attachments(self, process: int) -> Mapping[bytes, Link]:
        if process in self.gone:
            raise ProcessLookupError
        return {ip_address(f"172.17.0.{number}").packed: self.interface for number in range(2, 9)}

    @property
    def names(self) -> set[str]:
        return set(self.registered.endpoints)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


def play(
    acts: Callable[[Scene], Coroutine[Any, Any, None]], timings: WatchTimings = TIMINGS, source: str = "docker"
) -> None:
    """Play a scene against a watch that runs, from its first list on."""

    async def run() -> None:
        scene = Scene(timings, source)
        scene.daemon.set("old", "172.17.0.2")
        running = asyncio.create_task(scene.watch.run())
        try:
            await scene.until(lambda: scene.registered.lists)
            await acts(scene)
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_the_first_list_is_registered_as_a_whole() -> None:
    async def acts(scene: Scene) -> None:
        assert scene.names == {"default/old.n1"}
        assert scene.registered.endpoints["default/old.n1"].spec.interface == "veth1"
        assert scene.registered.calls == []

    play(acts)


def test_a_container_is_registered_before_its_first_process_runs() -> None:
    """Docker answers an inspection only once the container has started; networks and list answer at once."""

    async def acts(scene: Scene) -> None:
        daemon = scene.daemon
        daemon.gate.clear()
        daemon.set("new", process=0, role="db")
        daemon.tell("create", "new")
        daemon.members["new"] = "172.17.0.3"
        daemon.tell("connect", "new", "network")
        await scene.until(lambda: "default/new.n1" in scene.names)
        assert "default/new.n1" in scene.watch.status()["changing"]

        daemon.set("new", "172.17.0.3", role="db")
        daemon.tell("start", "new")
        daemon.gate.set()
        await scene.until(lambda: len(scene.registered.calls) == 2)
        expected = ["put default/new.n1 172.17.0.3 None", "put default/new.n1 172.17.0.3 veth1"]
        assert scene.registered.calls == expected

    play(acts)


def test_a_container_that_fails_to_start_is_removed() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.set("new", process=0)
        scene.daemon.members["new"] = "172.17.0.3"
        scene.daemon.tell("connect", "new", "network")
        await scene.until(lambda: "default/new.n1" in scene.names)

        del scene.daemon.members["new"]
        scene.daemon.tell("disconnect", "new", "network")
        await scene.until(lambda: scene.names == {"default/old.n1"})

    play(acts)


def test_an_address_goes_to_a_new_container_at_once() -> None:
    """The end is registered without a question to the daemon, which may hold its answer back."""

    async def acts(scene: Scene) -> None:
        daemon = scene.daemon
        daemon.gate.clear()
        daemon.set("old", process=0)
        daemon.tell("die", "old")
        daemon.set("new", process=0)
        daemon.members["new"] = "172.17.0.2"
        daemon.tell("connect", "new", "network")

        await scene.until(lambda: "default/new.n1" in scene.names)
        assert scene.registered.calls == ["remove default/old.n1", "put default/new.n1 172.17.0.2 None"]

    play(acts)


def test_an_answer_from_before_the_end_is_not_registered() -> None:
    async def acts(scene: Scene) -> None:
        daemon = scene.daemon
        daemon.gate.clear()
        daemon.tell("update", "old")
        await scene.until(lambda: "old" in scene.watch._looks)
        await asyncio.sleep(0)
        daemon.tell("die", "old")
        await scene.until(lambda: not scene.names)
        daemon.set("old", process=0)
        daemon.gate.set()
        await scene.until(lambda: not scene.watch._looks)

        assert scene.registered.calls == ["remove default/old.n1"]

    play(acts)


def test_a_renamed_container_is_another_endpoint() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.set("old", "172.17.0.2", name="renamed")
        scene.daemon.tell("rename", "old")
        await scene.until(lambda: scene.names == {"default/renamed.n1"})

        assert scene.registered.calls == ["remove default/old.n1", "put default/renamed.n1 172.17.0.2 veth1"]

    play(acts)


def test_a_list_finds_what_no_event_told() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.set("silent", "172.17.0.3")
        await scene.until(lambda: "default/silent.n1" in scene.names)
        scene.interface = Link(interface="docker0", bridge=None)
        await scene.until(lambda: scene.registered.endpoints["default/silent.n1"].spec.interface == "docker0")
        scene.gone.add(7)
        scene.daemon.set("silent", "172.17.0.4", process=8)
        await scene.until(lambda: str(scene.registered.endpoints["default/silent.n1"].spec.ips[0]) == "172.17.0.4")
        del scene.daemon.containers["silent"]
        await scene.until(lambda: "default/silent.n1" not in scene.names)

    play(acts, OFTEN)


def test_a_container_that_does_not_start_in_time_is_removed_by_a_list() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.set("new", process=0)
        scene.daemon.members["new"] = "172.17.0.3"
        scene.daemon.tell("connect", "new", "network")
        await scene.until(lambda: "remove default/new.n1" in scene.registered.calls)

    play(acts, OFTEN)


def test_podman_is_asked_about_a_container_that_starts() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.set("new", "172.17.0.3")
        scene.daemon.containers["new"]["State"]["Pid"] = 0
        scene.daemon.tell("init", "new")
        await scene.until(lambda: not scene.watch._looks)
        assert "default/new.n1" not in scene.names

        scene.daemon.set("new", "172.17.0.3")
        scene.daemon.tell("init", "new")
        await scene.until(lambda: "default/new.n1" in scene.names)

    play(acts, source="podman")


def test_the_last_state_stays_while_the_daemon_is_away() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.reachable = False
        scene.daemon.close()
        await scene.until(lambda: scene.registered.away == f"{SOCKET}: No such file or directory")
        assert scene.names == {"default/old.n1"}
        scene.daemon.containers.clear()
        scene.daemon.set("new", "172.17.0.3")
        scene.daemon.reachable = True

        await scene.until(lambda: scene.names == {"default/new.n1"})
        assert scene.registered.away is None
        assert scene.registered.lists == 1

    play(acts)


def test_an_ended_stream_of_events_is_opened_again() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.close()
        await scene.until(lambda: scene.daemon.sessions > 1)
        scene.daemon.set("new", "172.17.0.3")
        scene.daemon.tell("start", "new")
        await scene.until(lambda: "default/new.n1" in scene.names)

    play(acts)


def test_an_error_of_a_look_ends_the_session() -> None:
    async def acts(scene: Scene) -> None:
        async def failing(container: str) -> Any:
            raise DaemonError("the daemon answers 500")

        scene.daemon.summary = failing  # type: ignore[method-assign]
        scene.daemon.tell("start", "old")
        await scene.until(lambda: scene.daemon.sessions > 1)
        assert scene.names == {"default/old.n1"}

    play(acts)


def test_a_container_with_another_answer_is_named_and_the_others_are_registered() -> None:
    async def acts(scene: Scene) -> None:
        scene.daemon.containers["broken"] = {"Id": "broken", "State": {"Pid": 9}}
        scene.daemon.tell("start", "broken")
        scene.daemon.set("new", "172.17.0.3")
        scene.daemon.tell("start", "new")
        await scene.until(lambda: "default/new.n1" in scene.names and scene.watch.status()["problems"])

        problem = "container broken cannot be read: the answer has no object NetworkSettings"
        assert scene.watch.status()["problems"] == [problem]
        scene.daemon.set("broken", "172.17.0.4")
        scene.daemon.tell("update", "broken")
        await scene.until(lambda: "default/broken.n1" in scene.names)
        assert scene.watch.status()["problems"] == []

    play(acts)


def test_events_of_another_form_are_ignored() -> None:
    async def acts(scene: Scene) -> None:
        for event in ({}, {"Type": "container", "Actor": None}, {"Action": "start", "Actor": {"Attributes": 1}}):
            scene.daemon.send(event)
        scene.daemon.tell("exec_create: sh", "old")
        scene.daemon.tell("create", "net", "network")
        scene.daemon.set("new", "172.17.0.3")
        scene.daemon.tell("start", "new")
        await scene.until(lambda: "default/new.n1" in scene.names)

        assert scene.daemon.sessions == 1

    play(acts)


def test_the_status_names_bridges_and_published_ports_beyond_policy() -> None:
    async def acts(scene: Scene) -> None:
        scene.interface = Link(passed=False)
        scene.proxies = True
        await scene.until(lambda: len(scene.watch.status()["problems"]) == 2)

        proxy, bridge = scene.watch.status()["problems"]
        assert proxy.startswith("containers of this host reach published ports of others (old) as the host")
        assert bridge.startswith("no policy applies between containers on one bridge (docker0)")
        assert scene.watch.status()["containers"] == 1

    play(acts, OFTEN)
