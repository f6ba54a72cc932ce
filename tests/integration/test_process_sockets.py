"""Look-ups of sockets by their ends in the kernel, and the time that one takes."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_enforcer.core.wire.packet import ICMP, TCP, UDP
from nfq_enforcer.dataplane.worker.process_sockets import ProcessSockets, read_answer
from nfq_enforcer.workloads.cgroups import find_root
from tests.support.packets import packed

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


def test_an_answer_that_is_none_is_no_socket() -> None:
    assert read_answer(b"") == (0, None)
    assert read_answer(bytes(200)) == (0, None)
