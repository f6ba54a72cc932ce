"""Inventory file: the file for the Vagrantfile is valid, and an error in another file is reported with its position."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import nfq_enforcer
from nfq_enforcer.errors import BadInput
from nfq_enforcer.lab import inventory
from nfq_enforcer.lab.topology import Topology

SHIPPED = Path(nfq_enforcer.__file__).parent / "systemd" / "machines.yaml"


def changed(tmp_path: Path, number: int, **change: Any) -> Path:
    """Return the shipped file with one machine changed."""
    data = yaml.safe_load(SHIPPED.read_text())
    data["machines"][number].update(change)
    file = tmp_path / "machines.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def test_the_machines_of_the_vagrantfile_have_the_endpoints_of_the_lab() -> None:
    addresses = {machine.name: machine.ips for machine in inventory.read(SHIPPED).machines}

    assert set(addresses) == set(inventory.ROLES)
    behind_veths = [endpoint for endpoint in Topology("x").endpoints if endpoint.interface]
    assert {endpoint.name: endpoint.addresses for endpoint in behind_veths} == {
        endpoint.name: addresses[endpoint.name] for endpoint in behind_veths
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "n9"}, r"machines\[0\]\.name: 'n9' is no part of the lab; allowed: n1, n2, n3, front1, .*"),
        ({"name": "n2"}, r"machines\[3\]\.name: 'n2' is named twice; allowed: once\n.*missing: n1; .*"),
        ({"ips": ["10.0.0.1"]}, r"machines\[0\]\.ips: allowed: one IPv4 and one IPv6 address"),
        ({"ips": ["10.0.0.1", "x"]}, r"machines\[0\]\.ips\[1\]: 'x' is not an address; allowed: IPv4 or IPv6, .*"),
        ({"ssh": "-oProxyCommand=x"}, r"machines\[0\]\.ssh: '-oProxyCommand=x' is no destination of ssh; allowed: .*"),
        ({"ssh": "a b"}, r"machines\[0\]\.ssh: 'a b' is no destination of ssh; allowed: HOST or USER@HOST"),
        ({"namespace": "../x"}, r"machines\[0\]\.namespace: '\.\./x' is no name of a network namespace; allowed: .*"),
        ({"port": 22}, r"machines\[0\]\.port: unknown field 'port'; did you mean 'ips'\? .*|.*unknown field 'port'.*"),
    ],
)
def test_a_mistake_is_said_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = changed(tmp_path, 0, **change)

    with pytest.raises(BadInput) as refused:
        inventory.read(file)

    assert re.fullmatch(rf"{re.escape(str(file))}:\d+:\d+: {message}", str(refused.value), re.DOTALL)


@pytest.mark.parametrize("text, message", [("", "this has 0"), ("a: 1\n---\nb: 1\n", "this has 2")])
def test_a_file_of_machines_is_one_document(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(text)

    with pytest.raises(BadInput, match=f"a file of machines is one YAML document; {message}"):
        inventory.read(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"none\.yaml: cannot be read: {re.escape(os.strerror(errno.ENOENT))}"):
        inventory.read(tmp_path / "none.yaml")
