"""Identity of a process: given by root's configuration alone, kept for the life of a socket, ended with the process."""

import configparser
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.dataplane.rules.filter_table import SocketRule, tag
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    BRIEF,
    FAMILIES,
    PATIENT,
    PROGRAM,
    await_flow,
    flows_since,
    from_role,
    now,
    policy,
    start,
    stop_agents,
    until,
)
from tests.support.process_endpoints import (
    BACKEND_PORT,
    TRAFFIC,
    Attempt,
    cgroups,
    check,
    enter,
    order,
    run_options,
    running,
)

USER = 65_534  # nobody: no right on this host
POLICY = policy("backend", "backend", ingress=[from_role("frontend")]) + policy("jailed", "jailed", egress=[{}])
JAILED = policy("jailed", "jailed", egress=[{"toEndpoints": [{"matchLabels": {"role": "backend"}}]}])
UNIT = "nfqe-test.service"


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(memory=True)


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """Run the agent of one node with the privileges of the service; its user ``nobody`` may start frontends."""
    service = configparser.RawConfigParser(strict=False)
    service.read_string((files("nfq_enforcer.systemd") / "nfq-enforcer.service").read_text())
    names = service["Service"]["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
    confined = tmp_path / "python"
    bounding = ",".join(("-all", *names))
    confined.write_text(
        f'#!/bin/sh\numask 077\nexec setpriv --bounding-set={bounding} --no-new-privs {sys.executable} "$@"\n'
    )
    confined.chmod(0o755)
    lab.nodes["n1"].python = str(confined)
    cgroups().folder(lab.nodes["n1"].cgroup).mkdir(exist_ok=True)  # as the service does
    allow = [{"user": USER, "labels": {"role": "frontend"}}]
    units = [{"cgroup": f"/nfqe-unit-{lab.topology.run_id}", "name": "unit", "labels": {"role": "backend"}}]
    settings = {"allow_localhost": "policy", "enforcement": "per-endpoint", "queues": 1}
    start(lab, "n1", documents=POLICY, processes={"allow": allow, "units": units}, **settings)
    try:
        yield lab
    finally:
        stop_agents(lab)


def own(lab: Lab, port: int = BACKEND_PORT) -> list[Attempt]:
    return [Attempt(protocol, lab.address("n1", family), port) for protocol in ("TCP", "UDP") for family in FAMILIES]


def as_nobody(argv: list[str]) -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *argv]


def run_as_nobody(lab: Lab, role: str, *command: str) -> "subprocess.CompletedProcess[str]":
    argv = enter(lab, "n1", as_nobody([*run_options(lab, "n1", role), *command]))
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENT, cwd="/")


def listed(lab: Lab) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in client.call(lab.nodes["n1"].socket, "endpoints")}


async def test_a_process_is_listed_until_it_has_ended(host: Lab) -> None:
    with running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store") as process:
        entry = listed(host)["store"]
        assert entry["pids"] == [process.pid]
        assert entry["cgroup"] == f"{host.nodes['n1'].cgroup}/default.store"
        with (
            pytest.raises(AssertionError, match="default/store runs already"),
            running(host, "n1", "backend", "serve", "1", name="store"),
        ):
            pass

        await check(host, "n1", "frontend", own(host), "ok")
        flows = client.call(host.nodes["n1"].socket, "conntrack", to="store")["flows"]
        assert {one["destination"]["port"] for one in flows} == {BACKEND_PORT}
        assert {one["destination"]["identity"] for one in flows} == {entry["identity"]}
        assert host.nodes["n1"].status()["endpoints"] >= 1

    await until(lambda: "store" not in listed(host), timeout=3 * PATIENT)
    assert not cgroups().folder(str(entry["cgroup"])).exists()


async def test_only_those_whom_the_configuration_names_can_give_an_identity(host: Lab) -> None:
    with running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store"):
        address = str(host.address("n1", 4))
        question = [*TRAFFIC, "ask", f"TCP,{address},{BACKEND_PORT},{PATIENT}"]

        allowed, refused = run_as_nobody(host, "frontend", *question), run_as_nobody(host, "backend", *question)

        assert (allowed.stdout.strip(), allowed.stderr) == ("ok", "")
        assert refused.returncode == 1
        assert refused.stderr == (
            f"nfq-enforcer: user {USER} may not start role=backend in namespace default; allowed by processes.allow in "
            "the agent's configuration: role=frontend in namespace default\n"
        )


async def test_a_user_cannot_take_an_identity_by_hand(host: Lab) -> None:
    with running(host, "n1", "frontend", "serve", "7000", name="front"):
        folder = cgroups().folder(str(listed(host)["front"]["cgroup"]))
        api = shlex.join([*PROGRAM, "endpoint", "list", "--socket", str(host.nodes["n1"].socket)])
        move = f"echo $$ > {folder}/cgroup.procs"
        for script in (move, f"mkdir {folder}/mine", f"mkdir {folder.parent}/mine", api):
            argv = as_nobody(["sh", "-c", script])
            found = subprocess.run(argv, capture_output=True, check=False, cwd="/")
            assert found.returncode != 0, script
        inside = run_as_nobody(host, "frontend", "sh", "-c", move)
        assert "ermission denied" in inside.stderr


async def test_a_stray_process_below_the_parent_has_no_identity_and_no_traffic(host: Lab) -> None:
    with running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store"):
        folder = cgroups().folder(host.nodes["n1"].cgroup) / "stray"
        folder.mkdir()
        try:
            since = now()
            script = f'echo $$ > {folder}/cgroup.procs; exec "$@"'
            ask = [*TRAFFIC, "ask", *(f"{one.protocol},{one.address},{one.port},{BRIEF}" for one in own(host))]
            argv = enter(host, "n1", ["sh", "-c", script, "sh", *ask])
            found = subprocess.run(argv, capture_output=True, text=True, check=True)
            assert found.stdout.split() == ["timeout"] * 4
            await_flow(host.nodes["n1"], since, reason="UNKNOWN_PROCESS")
        finally:
            folder.rmdir()


async def test_datagrams_of_closed_sockets_are_never_those_of_the_host(host: Lab) -> None:
    await _apply(host, POLICY.replace("jailed", "unused") + JAILED)
    with running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store"):
        since, address = now(), str(host.address("front1", 4))
        argv = [*run_options(host, "n1", "jailed"), *TRAFFIC, "fire", address, "53", "200"]
        subprocess.run(enter(host, "n1", argv), check=True, timeout=PATIENT)

        await_flow(host.nodes["n1"], since, verdict="DROPPED", destination=address)
        passed = [one for one in flows_since(host.nodes["n1"], since) if one["destination"] == address]
        assert {one["verdict"] for one in passed} == {"DROPPED"}


async def _apply(lab: Lab, text: str) -> None:
    revision = lab.nodes["n1"].status()["revision"]
    (lab.documents / "policies.yaml").write_text(text)
    await until(lambda: lab.nodes["n1"].status()["revision"] > revision)


async def test_children_have_the_identity_and_a_socket_keeps_that_of_its_birth(host: Lab) -> None:
    address = str(host.address("n1", 4))
    with ExitStack() as stack:
        stack.enter_context(running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store"))
        child = ["sh", "-c", '"$@" & wait', "sh", *TRAFFIC, "ask", f"TCP,{address},{BACKEND_PORT},{PATIENT}"]
        forked = subprocess.run(
            enter(host, "n1", [*run_options(host, "n1", "frontend"), *child]),
            capture_output=True,
            text=True,
            check=True,
        )
        assert forked.stdout.strip() == "ok"

        other = stack.enter_context(running(host, "n1", "other", "serve", "7001", name="other"))
        assert other.poll() is None
        into = str(cgroups().folder(str(listed(host)["other"]["cgroup"])))
        moving = stack.enter_context(
            running(host, "n1", "frontend", "hold", address, str(BACKEND_PORT), into, name="moving")
        )
        assert order(moving, "move") == "ok"  # the socket is that of a frontend
        assert order(moving, "new", timeout=BRIEF) == "timeout"  # made after the move
        assert order(moving, "send") == "ok"


@pytest.mark.parametrize("anew", [False, True], ids=["restart", "handover"])
async def test_running_processes_survive_their_agent(host: Lab, anew: bool) -> None:
    address, node = str(host.address("n1", 4)), host.nodes["n1"]
    with ExitStack() as stack:
        stack.enter_context(running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store"))
        held = stack.enter_context(running(host, "n1", "frontend", "hold", address, str(BACKEND_PORT), name="held"))
        before = listed(host)
        if anew:
            node.start_anew()
        else:
            node.stop(signal.SIGKILL)  # its rules stay
            configuration = {"allow_localhost": "policy", "enforcement": "per-endpoint", "queues": 1}
            start(host, "n1", documents=POLICY, **configuration)

        assert order(held, "send") == "ok"
        after = listed(host)
        assert {name: after[name]["pids"] for name in ("store", "held")} == {
            name: before[name]["pids"] for name in ("store", "held")
        }
        await check(host, "n1", "frontend", own(host), "ok")
        await check(host, "n1", None, own(host), "timeout")


async def test_a_unit_has_its_identity_also_after_its_restart(host: Lab) -> None:
    """Make the cgroup of a unit by hand, as systemd does at each start; this machine has none."""
    folder = cgroups().folder(f"/nfqe-unit-{host.topology.run_id}")
    script = f'echo $$ > {folder}/cgroup.procs; exec "$@"'
    argv = enter(host, "n1", ["sh", "-c", script, "sh", *TRAFFIC, "serve", str(BACKEND_PORT)])
    for _ in range(2):
        folder.mkdir()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as unit:
            try:
                assert unit.stdout is not None
                assert unit.stdout.readline() == "ready\n"
                await until(lambda: _is_enforced(host, folder))
                assert listed(host)["unit"]["pids"] == [unit.pid]
                await check(host, "n1", "frontend", own(host), "ok")
                await check(host, "n1", None, own(host), "timeout")
            finally:
                unit.kill()
        await until(lambda: _removed(folder))


def _is_enforced(lab: Lab, folder: Path) -> bool:
    """Return whether the rules have the present cgroup of the unit."""
    rule = SocketRule("to_process", 1, folder.stat().st_ino)
    return tag(rule.text) in _chain(lab, "sockets_in")


def _chain(lab: Lab, name: str) -> str:
    listing = enter(lab, "n1", ["nft", "list", "chain", "inet", "nfq_enforcer", name])
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


async def test_without_process_endpoints_no_packet_meets_their_rules(host: Lab) -> None:
    await until(lambda: "goto" not in _chain(host, "switch_out"), timeout=3 * PATIENT)
    assert "goto" not in _chain(host, "switch_in") + _chain(host, "sockets_in") + _chain(host, "sockets_out")
    with running(host, "n1", "backend", "serve", str(BACKEND_PORT), name="store"):
        assert "goto processes_out" in _chain(host, "switch_out")
