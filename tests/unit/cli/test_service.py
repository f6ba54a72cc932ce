"""The systemd unit: its command, its privileges, and its syntax."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import nfq_enforcer
from nfq_enforcer.agent import defaults
from nfq_enforcer.agent.config import Config
from nfq_enforcer.agent.watch import WatchTimings

UNIT = Path(nfq_enforcer.__file__).parent / "systemd" / "nfq-enforcer.service"
PROGRAM = "/usr/local/bin/nfq-enforcer"


@pytest.fixture(scope="module")
def settings() -> Mapping[str, list[str]]:
    """Return the values of each setting, as ``Section.Name``, in their order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(f"{section}.{name}", []).append(value)
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))  # the program may not be installed

    run = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert UNIT.name not in run.stderr


def test_it_counts_as_started_when_the_agent_says_ready(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.Type"] == ["notify"]
    assert settings["Service.ExecStart"] == [f"{PROGRAM} agent"]


def test_the_agent_always_comes_back(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.Restart"] == ["always"]
    assert settings["Unit.StartLimitIntervalSec"] == ["0"]


def test_a_reload_starts_the_agent_anew_in_its_process(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.ExecReload"] == ["/bin/kill -USR2 $MAINPID"]


def test_an_agent_that_no_longer_works_is_replaced(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.WatchdogSec"] == ["30"]
    assert settings["Service.NotifyAccess"] == ["main"]
    assert WatchTimings().interval < 30 / 4


def test_a_stop_is_the_agents_own_and_a_crash_leaves_the_rules(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.KillMode"] == ["process"]  # otherwise workers end before the rules are removed, and Envoy
    assert "Service.ExecStopPost" not in settings
    assert "--keep-rules" not in settings["Service.ExecStart"][0]


def test_the_socket_is_where_the_agent_puts_it(settings: Mapping[str, list[str]]) -> None:
    (folder,) = settings["Service.RuntimeDirectory"]

    assert f"/run/{folder}" == str(Path(defaults.DEFAULT_SOCKET).parent)
    assert settings["Service.RuntimeDirectoryPreserve"] == ["restart"]  # Envoy's files are there too


def test_the_last_known_state_is_in_a_folder_of_its_own(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.StateDirectory"] == ["nfq-enforcer"]
    assert settings["Service.StateDirectoryMode"] == ["0700"]


def test_a_program_with_all_privileges_makes_the_cgroup_of_processes(settings: Mapping[str, list[str]]) -> None:
    (command,) = settings["Service.ExecStartPre"]

    assert command.startswith("-+")  # a failure stops no agent; all privileges
    assert f'{Config().processes.cgroup}"' in command
    assert "Service.ProtectControlGroups" not in settings


def test_it_may_no_more_than_it_needs(settings: Mapping[str, list[str]]) -> None:
    assert settings["Service.CapabilityBoundingSet"] == [
        "CAP_NET_ADMIN CAP_NET_RAW CAP_SETUID CAP_SETGID CAP_CHOWN CAP_KILL"
    ]  # test_http_rules runs an agent with these
    assert settings["Service.RestrictAddressFamilies"] == ["AF_UNIX AF_NETLINK AF_INET AF_INET6"]
    assert settings["Service.NoNewPrivileges"] == ["yes"]


def test_it_starts_when_there_are_addresses_and_before_what_runs_workloads(settings: Mapping[str, list[str]]) -> None:
    assert settings["Unit.Wants"] == ["network-online.target"]
    assert settings["Unit.After"][0] == "network-online.target"
    assert "docker.service" in settings["Unit.Before"][0].split()
