"""Interfaces: names, MTUs and addresses, read from the kernel and iproute2. The tests need no interface but lo."""

import errno
import json
import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from nfq_enforcer.core.context import Interface
from nfq_enforcer.dataplane import interfaces
from nfq_enforcer.dataplane.interfaces import Interfaces
from nfq_enforcer.errors import NfqError

LO = socket.if_nametoindex("lo")
LO_MTU = int(Path("/sys/class/net/lo/mtu").read_text())
NO_INDEX = 2**31 - 1


def put_ip(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set PATH to a folder with a script ``ip`` and nothing else."""
    program = folder / "ip"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_an_interface_is_known_by_its_index() -> None:
    assert Interfaces()[LO] == Interface("lo", LO_MTU)


def test_index_0_is_no_interface() -> None:
    assert Interfaces()[0] is None


def test_an_interface_that_is_gone_has_a_name_that_no_rule_means_and_any_size() -> None:
    assert Interfaces()[NO_INDEX] == Interface(f"if{NO_INDEX}", 65535)


def test_what_was_asked_once_is_remembered_until_it_is_to_be_forgotten() -> None:
    known = Interfaces()
    first = known[LO]

    assert known[LO] is first
    known.invalidate()
    assert known[LO] is not first
    assert known[LO] == first


def test_the_mtu_is_the_kernels() -> None:
    assert interfaces.mtu("lo") == LO_MTU


def test_there_is_no_mtu_without_an_interface() -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENODEV))):
        interfaces.mtu("no-such-iface0")


def test_addresses_come_with_their_interfaces_in_the_order_of_ip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [
        {"ifname": "eth0", "addr_info": [{"local": "192.0.2.1", "prefixlen": 24}, {"local": "2001:db8::1"}]},
        {"ifname": "wg0", "addr_info": [{}, {"local": "10.9.0.1"}]},
        {},
        {"ifname": "eth1"},
    ]
    put_ip(tmp_path, f"[ \"$*\" = '-j address show scope global' ] && echo '{json.dumps(listed)}'", monkeypatch)

    assert interfaces.host_addresses() == [
        ("eth0", ip_address("192.0.2.1")),
        ("eth0", ip_address("2001:db8::1")),
        ("wg0", ip_address("10.9.0.1")),
    ]


def test_without_iproute2_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NfqError) as caught:
        interfaces.host_addresses()
    assert str(caught.value) == "ip not found in PATH: install the package iproute2"


def test_what_ip_objects_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_ip(tmp_path, "echo 'Cannot open netlink socket' >&2; exit 1", monkeypatch)

    with pytest.raises(NfqError) as caught:
        interfaces.host_addresses()
    assert str(caught.value) == "ip address failed: Cannot open netlink socket"
