"""Privileges of a worker: one capability, no environment, no descriptors but its own, no way back."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nfq_enforcer.dataplane.queue.protocol import KNOWN_QUEUES
from nfq_enforcer.dataplane.worker.priority import NICENESS
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import DRIVERS, FRONT_TO_BACK, dropped, outcomes, passes, start_all, stop_agents

NET_ADMIN, NET_RAW = 1 << 12, 1 << 13
PYTHON = {"PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"}


@pytest.fixture(scope="module")
def shared(make_served: MakeLab) -> Lab:
    """Return the module's lab."""
    return make_served(memory=True)


@pytest.fixture(scope="module", params=DRIVERS)
def worker(shared: Lab, request: pytest.FixtureRequest) -> Iterator[int]:
    """Run agents with a secret in their environment; yield a worker's process id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORE_PASSWORD", "secret")
        start_all(shared, FRONT_TO_BACK, driver=request.param, queues=1)
    yield shared.nodes["n1"].status()["worker"]["pid"]
    stop_agents(shared)


def process_status(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


def test_a_worker_has_one_capability_and_can_get_no_other(worker: int) -> None:
    status = process_status(worker)

    assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {
        "CapEff": NET_ADMIN,
        "CapPrm": NET_ADMIN,
        "CapInh": 0,
        "CapAmb": 0,
    }
    assert int(status["CapBnd"], 16) & ~NET_ADMIN == 0
    assert status["NoNewPrivs"] == "1"


def test_a_worker_runs_before_its_agent(worker: int, shared: Lab) -> None:
    assert os.getpriority(os.PRIO_PROCESS, worker) == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, shared.nodes["n1"].pid) == 0
    assert os.getsid(worker) == worker


def test_a_worker_has_no_environment_but_where_its_interpreter_is(worker: int) -> None:
    environment = Path(f"/proc/{worker}/environ").read_bytes()

    assert b"secret" not in environment
    assert {one.partition(b"=")[0].decode() for one in environment.split(b"\0") if one} <= PYTHON


def descriptors(pid: int) -> dict[int, str]:
    """Return the open descriptors of a process, without those that it closes meanwhile."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(fd.name)] = str(fd.readlink())
    return found


def test_a_worker_has_no_descriptors_of_the_agent(shared: Lab, worker: int) -> None:
    agent = shared.nodes["n1"].pid
    targets = descriptors(worker)
    sockets = [target for number, target in targets.items() if number > 2 and target.startswith("socket:")]
    others = {target for number, target in targets.items() if number > 2} - set(sockets)

    assert (targets[0], targets[1]) == ("/dev/null", "/dev/null")
    assert {re.sub(r"\W.*", "", target.removeprefix("/memfd:").removeprefix("anon_inode:")) for target in others} <= {
        "nfq",  # the counters
        "",  # [eventpoll], if the interpreter has one
    }
    # the channel, the queues of known flows, openings and excess, one raw socket for each IP family, and sock_diag
    assert len(sockets) <= 1 + KNOWN_QUEUES + 2 + 2 + 1
    assert set(descriptors(agent).values()) & set(sockets) == set()


ATTEMPTS = """
import os, sys
from nfq_enforcer.dataplane.worker import privileges, sandbox

privileges.keep_only(privileges.NET_ADMIN)
if not sandbox.restrict_files():
    sys.exit(3)
import wave  # a module that is not loaded yet

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
    return False

assert refused(open, "/etc/passwd")
assert refused(open, sys.argv[1])
assert refused(open, sys.argv[1] + ".new", "w")
assert refused(os.unlink, sys.argv[1])
assert refused(os.listdir, "/etc")
assert refused(os.execv, "/bin/true", ["true"])
assert refused(os.execv, sys.executable, [sys.executable, "-c", ""])
assert refused(os.setuid, 1)
assert refused(os.chroot, "/")
"""


def test_a_worker_reads_modules_and_no_other_file(root: None, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("secret")
    secret.chmod(0o600)

    done = subprocess.run([sys.executable, "-c", ATTEMPTS, str(secret)], capture_output=True, text=True, check=False)

    if done.returncode == 3:
        pytest.skip("this kernel has no Landlock")
    assert (done.returncode, done.stderr) == (0, "")
    assert secret.read_text() == "secret"


async def test_it_still_enforces_policy(shared: Lab, worker: int) -> None:
    expected = passes(["front1"], ["back1", "back2"]) | dropped(["db3"], ["back1"])

    assert await outcomes(shared, expected) == expected
