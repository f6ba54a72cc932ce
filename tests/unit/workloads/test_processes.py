"""Source of processes: permissions, names and the file of running endpoints, with folders in place of cgroup2."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.workloads.cgroups import Cgroups
from nfq_enforcer.workloads.processes import Caller, Permission, Processes, Unit
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.sources import PROCESS
from tests.support.members import until

ROOT, USER = Caller(10, 0, frozenset({0})), Caller(11, 1000, frozenset({1000, 27}))
FRONT, BATCH = {"role": "frontend"}, {"role": "batch"}
PERMISSIONS = (Permission(1000, None, "default", FRONT), Permission(None, 27, "shop", BATCH))
NGINX = Unit("/system.slice/nginx.service", "nginx", "default", {"role": "web"})


class Store:
    """Store of a registrar that writes nothing: the endpoints count as in force at once."""

    async def apply(self, *_: object, **__: object) -> None:
        return


class Host:
    """Host: a source of processes over folders."""

    def __init__(self, folder: Path, *units: Unit, linger: float = 0.0, cgroups: bool = True) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir(exist_ok=True)
        self.registrar = Registrar("n1", Store(), dict, self._reconcile)  # type: ignore[arg-type]
        self.registrar.sources = (PROCESS,)
        self.processes = Processes(
            self.registrar,
            Cgroups(self.root) if cgroups else None,
            "/nfqe",
            units,
            PERMISSIONS,
            folder / "processes.json",
            linger,
        )
        self.trees = 0
        self.processes.note_trees = self._count

    async def _reconcile(self) -> None:
        return

    def _count(self, _trees: object) -> None:
        self.trees += 1

    def named(self) -> set[str]:
        return set(self.registrar._wanted.get(PROCESS, {}))

    def has(self, pid: int, cgroup: str) -> None:
        """Have a process in a cgroup, as the kernel records it."""
        (self.root / cgroup.lstrip("/") / "cgroup.events").write_text("populated 1\n")
        (self.root / cgroup.lstrip("/") / "cgroup.procs").write_text(f"{pid}\n")

    def end(self, cgroup: str) -> None:
        for file in (self.root / cgroup.lstrip("/")).iterdir():
            file.unlink()


def play(host: Host, scene: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
    async def following() -> None:
        task = asyncio.create_task(host.processes.run())
        await asyncio.sleep(0)
        host.processes.begin()
        try:
            await scene(host)
        finally:
            task.cancel()

    asyncio.run(following())


async def begin(host: Host, caller: Caller = ROOT, name: str = "web", namespace: str = "default", **labels: str) -> str:
    cgroup = await host.processes.start(caller, namespace, name, labels)
    host.has(caller.pid, cgroup)
    return cgroup


def test_root_may_start_any_process(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        cgroup = await begin(host, role="db")

        assert cgroup == "/nfqe/default.web"
        assert (host.root / "nfqe/default.web/cgroup.procs").read_text() == "10\n"
        assert host.named() == {"default/web"}
        assert host.processes.pids(cgroup) == [10]
        assert host.processes.status() == {"cgroup": "/nfqe"}
        assert (*host.processes.problems(), *host.processes.changing()) == ()

    play(Host(tmp_path, linger=60), scene)


@pytest.mark.parametrize(("namespace", "labels"), [("default", FRONT), ("shop", BATCH)])
def test_users_and_groups_may_start_what_the_configuration_says(
    tmp_path: Path, namespace: str, labels: dict[str, str]
) -> None:
    async def scene(host: Host) -> None:
        await begin(host, USER, namespace=namespace, **labels)
        assert host.named() == {f"{namespace}/web"}

    play(Host(tmp_path, linger=60), scene)


@pytest.mark.parametrize(
    ("namespace", "labels"), [("default", {}), ("shop", FRONT), ("default", {**FRONT, "tier": "a"}), ("default", BATCH)]
)
def test_every_other_identity_is_refused(tmp_path: Path, namespace: str, labels: dict[str, str]) -> None:
    async def scene(host: Host) -> None:
        with pytest.raises(NfqError, match=r"user 1000 may not start .* allowed by processes\.allow .*: role=frontend"):
            await host.processes.start(USER, namespace, "web", labels)
        with pytest.raises(NfqError, match=r"user 2 may not .*: none"):
            await host.processes.start(Caller(1, 2, frozenset({2})), namespace, "web", labels)
        assert not (host.root / "nfqe").exists()

    play(Host(tmp_path), scene)


def test_a_name_belongs_to_one_running_process_or_unit(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        await begin(host, role="db")
        with pytest.raises(NfqError, match=r"default/web runs already \(process 10\): choose another --name"):
            await begin(host, role="other")
        with pytest.raises(NfqError, match="default/nginx is a unit of the configuration"):
            await begin(host, name="nginx")
        with pytest.raises(BadInput, match="is too long; allowed"):
            await begin(host, name="a" * 151)
        with pytest.raises(BadInput, match=r"default/UPPER: metadata\.name"):
            await begin(host, name="UPPER")
        assert host.named() == {"default/web", "default/nginx"}

    play(Host(tmp_path, NGINX, linger=60), scene)


def test_an_endpoint_ends_after_its_last_process(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        cgroup = await begin(host)
        host.end(cgroup)

        async def ended() -> bool:
            return not host.named()

        await until(ended, "the endpoint has ended")
        assert not (host.root / "nfqe/default.web").exists()
        assert json.loads((tmp_path / "processes.json").read_text()) == []

    play(Host(tmp_path), scene)


@pytest.mark.parametrize("refused", [True, False])
def test_an_endpoint_that_is_not_in_force_is_taken_back(tmp_path: Path, refused: bool) -> None:
    async def scene(host: Host) -> None:
        if refused:
            host.registrar.settle = _settled  # type: ignore[method-assign]
            host.registrar.problems["default/web"] = "another one has it"
        else:
            host.processes.is_enforced = lambda number: False
        with pytest.raises(NfqError, match="is refused: another one" if refused else "is not in force on this node"):
            await begin(host)
        assert host.named() == set()
        assert not (host.root / "nfqe/default.web").exists()

    play(Host(tmp_path, linger=60), scene)


def test_an_endpoint_that_comes_back_with_another_cgroup_is_put_in_force(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        enforced: list[int] = []

        async def reconcile() -> None:
            enforced.append(host.processes.trees["/nfqe/default.web"][0].number)

        host.processes.reconcile = reconcile
        host.processes.is_enforced = lambda number: number in enforced
        host.end(await begin(host, role="db"))
        enforced.clear()
        await begin(host, role="db")
        assert enforced

    play(Host(tmp_path, linger=60), scene)


async def _settled() -> None:
    return


def test_processes_of_an_earlier_agent_keep_their_endpoints(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        await begin(host, role="db")
        await begin(host, name="gone")

    first = Host(tmp_path, linger=60)
    play(first, scene)
    first.end("/nfqe/default.gone")
    (first.root / "nfqe/default.gone").rmdir()

    async def later(host: Host) -> None:
        assert host.named() == {"default/web"}
        assert set(host.processes.trees) == {"/nfqe", "/nfqe/default.web"}

    play(Host(tmp_path, linger=60), later)


@pytest.mark.parametrize("text", ["no JSON", '[{"name": "web"}]', "{}"])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "processes.json").write_text(text)

    async def scene(host: Host) -> None:
        assert host.named() == set()

    play(Host(tmp_path), scene)
    assert text == "{}" or "processes of before have no endpoint" in caplog.text


def test_a_host_without_cgroup2_says_so(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        with pytest.raises(NfqError, match="this host has no cgroup2"):
            await begin(host)
        assert host.processes.pids("/nfqe") == []
        assert host.processes.status() == {"cgroup": None}
        assert "no cgroup2" in host.registrar.away[PROCESS]

    play(Host(tmp_path, NGINX, cgroups=False), scene)


def test_nothing_starts_before_policy_is_enforced(tmp_path: Path) -> None:
    with pytest.raises(NfqError, match="the agent is starting"):
        asyncio.run(begin(Host(tmp_path)))


def test_the_cgroup_of_a_unit_is_followed(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        folder = host.root / "system.slice" / "nginx.service"

        async def known() -> bool:
            tree = host.processes.trees.get(NGINX.cgroup)
            return bool(tree and tree[0].number == folder.stat().st_ino)

        folder.mkdir()
        await until(known, "the cgroup is known")
        assert host.trees

    folder = tmp_path / "cgroup" / "system.slice"
    folder.mkdir(parents=True)
    play(Host(tmp_path, NGINX), scene)
