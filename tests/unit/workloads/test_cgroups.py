"""Cgroups as folders, in a folder of the test's own in place of cgroup2."""

import asyncio
from pathlib import Path

import pytest

from nfq_enforcer.cluster.replica import Cgroup
from nfq_enforcer.errors import NfqError
from nfq_enforcer.workloads.cgroup_watch import CgroupWatch
from nfq_enforcer.workloads.cgroups import Cgroups, find_root

HYBRID = """\
30 20 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:28 / /sys/fs/cgroup/unified\\040here rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:29 / /mnt rw - cgroup2 cgroup2 rw
"""


def number(folder: Path) -> int:
    return folder.stat().st_ino


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    (tmp_path / "nfqe").mkdir()
    return Cgroups(tmp_path)


def test_the_root_is_the_first_file_system_of_cgroup2(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(HYBRID)
    assert find_root(mounts) == Path("/sys/fs/cgroup/unified here")
    mounts.write_text(HYBRID.splitlines()[0])
    assert find_root(mounts) is None


def test_a_cgroup_has_the_number_of_its_folder_and_its_level(cgroups: Cgroups, tmp_path: Path) -> None:
    made = cgroups.make("/nfqe/default.web")

    assert made == cgroups.find("/nfqe/default.web") == Cgroup(2, number(tmp_path / "nfqe" / "default.web"))
    assert cgroups.find("/nfqe/none") is None
    assert (cgroups.children("/nfqe"), cgroups.children("/none")) == (["default.web"], [])


def test_the_cgroups_below_a_unit_are_of_the_unit(cgroups: Cgroups, tmp_path: Path) -> None:
    inner = tmp_path / "a.slice" / "b.service" / "inner"
    inner.mkdir(parents=True)

    assert cgroups.tree("/a.slice/b.service") == (Cgroup(2, number(inner.parent)), Cgroup(3, number(inner)))
    assert cgroups.tree("/a.slice/c.service") == ()


def test_processes_are_those_of_the_whole_tree(cgroups: Cgroups, tmp_path: Path) -> None:
    inner = tmp_path / "nfqe" / "inner"
    inner.mkdir()
    (inner / "cgroup.procs").write_text("12\n9\n")
    (tmp_path / "nfqe" / "cgroup.procs").write_text("30\n")

    assert cgroups.pids("/nfqe") == [9, 12, 30]
    assert cgroups.pids("/none") == []


def test_a_cgroup_with_processes_is_not_made_again(cgroups: Cgroups, tmp_path: Path) -> None:
    (tmp_path / "nfqe" / "cgroup.events").write_text("populated 1\nfrozen 0\n")

    with pytest.raises(NfqError, match="the cgroup /nfqe has processes already"):
        cgroups.make("/nfqe")
    (tmp_path / "nfqe" / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert not cgroups.is_populated("/nfqe")
    assert not cgroups.is_populated("/none")


def test_a_cgroup_that_cannot_be_made_or_entered_is_said(cgroups: Cgroups, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NfqError, match="the cgroup /file/x cannot be made: Not a directory"):
        cgroups.make("/file/x")
    with pytest.raises(NfqError, match="process 5 cannot be moved into the cgroup /none: No such file"):
        cgroups.move(5, "/none")


def test_a_cgroup_that_the_agent_may_not_make_is_said(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(NfqError, match="/nfqe/x cannot be made: permission denied; an agent without CAP_DAC"):
        cgroups.make("/nfqe/x")


def test_a_removed_cgroup_is_gone_and_a_missing_one_ignored(cgroups: Cgroups) -> None:
    cgroups.make("/nfqe/x")

    cgroups.remove("/nfqe/x")
    cgroups.remove("/nfqe/x")

    assert cgroups.find("/nfqe/x") is None


def test_a_watch_returns_at_a_change_and_at_its_limit(tmp_path: Path) -> None:
    async def scene() -> None:
        watch = CgroupWatch()
        watch.follow([tmp_path, tmp_path / "missing"])
        await watch.wait(0.01)
        (tmp_path / "missing").mkdir()
        await asyncio.wait_for(watch.wait(60), 10)
        watch.follow([tmp_path / "missing"])
        (tmp_path / "missing" / "inner").mkdir()
        await asyncio.wait_for(watch.wait(60), 10)
        watch.close()
        watch.close()
        await watch.wait(0.01)

    asyncio.run(scene())
