"""Set-up scripts for hosts: shellcheck finds no fault, and an invalid argument gives one sentence."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nfq_enforcer
from nfq_enforcer.lab.topology import Topology

SCRIPTS = Path(nfq_enforcer.__file__).parent / "systemd"
PROVISION, ENDPOINTS = SCRIPTS / "provision.sh", SCRIPTS / "endpoints.sh"
VAGRANTFILE = Path(nfq_enforcer.__file__).parents[1] / "Vagrantfile"
REDIS = "redis://nfqe@10.0.0.1"


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", [PROVISION, ENDPOINTS], ids=lambda script: script.name)
def test_shellcheck_finds_no_fault(script: Path) -> None:
    checked = run(Path(sys.executable).with_name("shellcheck"), script)

    assert checked.returncode == 0, checked.stdout
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("script", [PROVISION, ENDPOINTS], ids=lambda script: script.name)
def test_help_names_every_option(script: Path) -> None:
    shown = run(script, "--help")

    assert shown.returncode == 0
    assert set(re.findall(r"^ +(--[a-z-]+)\)", script.read_text(), re.MULTILINE)) <= set(
        re.findall(r"--[a-z-]+", shown.stdout)
    )
    assert run(PROVISION, "node", "--help").stdout == run(PROVISION, "store", "-h").stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the role of this host is missing; allowed: store, node"),
        (["router"], "'router' is not a role of a host; allowed: store, node"),
        (["store", "--port", "1"], "'--port' is not an option of 'store'; allowed: --bind, --prefix, --password-file"),
        (["store", "--bind"], "--bind needs a value"),
        (["store", "--bind", ""], "--bind needs a value"),
        (["store", "--bind", "here"], "--bind 'here' is not an address"),
        (["store", "--prefix", "a b"], "--prefix 'a b': allowed are letters, digits and . _ -"),
        (["store", "--password-file", "/nowhere"], "--password-file /nowhere cannot be read; allowed: a regular file"),
        (
            ["store", "--password-file", "/dev/zero"],
            "--password-file /dev/zero cannot be read; allowed: a regular file",
        ),
        (["node"], "a node needs --store URL; 'memory:' for a host that works alone"),
        (
            ["node", "--bind", "1"],
            "'--bind' is not an option of 'node'; allowed: --store, --interface, --name, --password-file",
        ),
        (["node", "--store", "10.0.0.1"], "--store is not a URL of a store; allowed: memory:, redis://…"),
        (["node", "--store", f'{REDIS}"'], "--store is not a URL of a store; allowed: memory:, redis://…"),
        (["node", "--store", "redis://nfqe:secret@10.0.0.1"], "--store contains a password, which every user"),
        (["node", "--store", REDIS, "--name", "a b"], "--name 'a b': allowed are letters, digits and . _ -"),
        (["node", "--store", REDIS, "--interface", "a b"], "--interface 'a b' is no name of an interface"),
        (
            ["node", "--store", "memory:", "--password-file", "/dev/null"],
            "--password-file: the store memory: has no password",
        ),
    ],
)
def test_what_cannot_be_used_is_said(arguments: list[str], message: str) -> None:
    refused = run(PROVISION, *arguments)

    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"provision.sh: {message}")
    assert refused.stderr.count("\n") == 1
    assert "secret" not in refused.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "'' is not a command; allowed: router, network, register, tools, operator, operated"),
        (["operated", "/none"], "'/none' is no key: it cannot be read"),
        (["network"], "'' is no node; allowed: 1, 2, 3"),
        (["register", "4", "a=b"], "'4' is no node; allowed: 1, 2, 3"),
        (["network", "1", "front1"], "'front1' is no endpoint; allowed: NAME=ROLE"),
    ],
)
def test_what_cannot_be_an_endpoint_is_said(arguments: list[str], message: str) -> None:
    refused = run(ENDPOINTS, *arguments)

    assert refused.returncode == 2
    assert refused.stderr.startswith(f"endpoints.sh: {message}")
    assert refused.stderr.count("\n") == 1


def test_the_endpoints_on_virtual_machines_are_those_of_the_lab() -> None:
    found = re.findall(r'"(n\d)" => \["([0-9.]+)", %w\[(.*)\]\]', VAGRANTFILE.read_text())

    declared = {(node, *endpoint.split("=")) for node, _, endpoints in found for endpoint in endpoints.split()}
    assert declared == {(endpoint.node, endpoint.name, endpoint.role) for endpoint in Topology("x").endpoints}
    assert [address for _, address, _ in found] == ["172.31.0.11", "172.31.0.12", "172.31.0.13"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_has_no_mistake_and_is_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "nfq-enforcer.service"
    unit.write_text((SCRIPTS / unit.name).read_text().replace("/usr/local/bin/nfq-enforcer agent", "/bin/true"))

    checked = run(
        "systemd-analyze", "security", "--offline=true", "--threshold=33", unit
    )  # 5 of it: Envoy has another user
    verified = run("systemd-analyze", "verify", "--man=no", unit)

    assert checked.returncode == 0, checked.stdout
    assert not [line for line in verified.stderr.splitlines() if unit.name in line], verified.stderr
