"""Look-ups of sockets by their ends in the kernel, and the time that one takes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_enforcer.core.wire.packet import ICMP, TCP, UDP
from nfq_enforcer.dataplane.worker.process_sockets import ProcessSockets, read_answer
from nfq_enforcer.workloads.cgroups import find_root
from tests.support.packets import packed

SHARED_END = """
import os, socket, subprocess, sys
from nfq_enforcer.dataplane.worker.process_sockets import ProcessSockets

home = next(line for line in open("/proc/self/cgroup") if line.startswith("0::"))[4:].strip()
root = sys.argv[1].rpartition("/")[0]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "route", "add", "192.0.2.0/24", "dev", "lo", "src", "127.0.0.1"], check=True)
servers = [socket.create_server((f"127.0.0.{number}", 80)) for number in (1, 2)]


def opened(group, server, blocking=True):
    open(f"{group}/cgroup.procs", "w").write(str(os.getpid()))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("127.0.0.1", 4000))
    client.setblocking(blocking)
    client.connect_ex((server, 80))
    open(f"{root}/{home}/cgroup.procs", "w").write(str(os.getpid()))
    return client


sockets, asked = ProcessSockets(), (6, (bytes((127, 0, 0, 1)), 4000), (bytes((10, 0, 0, 1)), 80), None)
clients = [opened(sys.argv[1], "127.0.0.1")]
print(sockets.find(*asked))
clients.append(opened(sys.argv[2], "127.0.0.2"))
print(sockets.find(*asked))
subprocess.run(["iptables", "-A", "INPUT", "-d", "192.0.2.1", "-j", "DROP"], check=True)
clients.append(opened(sys.argv[2], "192.0.2.1", blocking=False))
print(sockets.find(*asked))
"""
FAMILIES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


@pytest.fixture
def sockets() -> Iterator[ProcessSockets]:
    found = ProcessSockets()
    yield found
    found.close()


def own_cgroup() -> int:
    """Return the number of this process's cgroup."""
    root = find_root()
    assert root is not None
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return (root / line[4:]).stat().st_ino


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_connected_sockets_and_listeners_are_found_with_their_cgroup(
    sockets: ProcessSockets, family: socket.AddressFamily, address: str
) -> None:
    with socket.create_server((address, 0), family=family) as server, socket.socket(family) as client:
        here, mine = packed(address), own_cgroup()
        port = server.getsockname()[1]
        assert sockets.find(TCP, (here, port), (here, 1), None) == mine
        assert sockets.find(TCP, (here, port), (here, 1), "lo") == mine
        assert sockets.find(TCP, (here, port), (here, 1), "none") == mine
        client.connect((address, port))
        own = client.getsockname()[1]
        assert sockets.find(TCP, (here, own), (here, port), None) == mine
        assert sockets.find(TCP, (here, 1), (here, 2), None) is None
        assert sockets.find(ICMP, (here, own), (here, port), None) is None


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_sockets_of_datagrams_are_found(sockets: ProcessSockets, family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
        server.bind(("", 0))
        port = server.getsockname()[1]
        client.connect((address, port))
        here, own = packed(address), client.getsockname()[1]

        assert sockets.find(UDP, (here, port), (here, own), "lo") == own_cgroup()
        assert sockets.find(UDP, (here, own), (here, port), "lo") == own_cgroup()
        assert sockets.find(UDP, (here, 1), (here, 2), "lo") is None


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("mapped", [False, True], ids=["one family", "both families"])
def test_a_socket_that_is_connected_to_a_translated_address_is_found_by_its_local_end(
    sockets: ProcessSockets, kind: socket.SocketKind, mapped: bool
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.socket(socket.AF_INET6 if mapped else socket.AF_INET, kind) as client:
        client.connect(("::ffff:127.0.0.1" if mapped else "127.0.0.1", server.getsockname()[1]))
        port, proto = client.getsockname()[1], TCP if kind == socket.SOCK_STREAM else UDP

        assert sockets.find(proto, (packed("127.0.0.1"), port), (packed("192.0.2.1"), 80), None) == own_cgroup()
        assert sockets.find(proto, (packed("127.0.0.2"), port), (packed("192.0.2.1"), 80), None) is None


def test_of_sockets_with_one_local_end_the_opening_one_counts_and_two_cgroups_are_none() -> None:
    """Two cgroups use one local end, in a namespace of their own; a third socket is opening a connection from it."""
    root = find_root()
    assert root is not None
    groups = [root / f"nfqe-test-ends-{os.getpid()}-{number}" for number in range(2)]
    for group in groups:
        group.mkdir()
    try:
        answers = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", SHARED_END, *map(str, groups)],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.split()  # fmt: skip
        first, second = (str(group.stat().st_ino) for group in groups)
    finally:
        for group in groups:
            group.rmdir()

    assert answers == [first, "None", second]


def test_an_answer_that_is_none_is_no_socket() -> None:
    assert read_answer(b"") == (0, None)
    assert read_answer(bytes(200)) == (0, None)
