"""The interface of an address: by its route, and behind a bridge by the network namespace of the port."""

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from uuid import uuid4

import pytest

from nfq_enforcer.dataplane import routes
from nfq_enforcer.dataplane.rules import bridge_ports
from tests.support.apart import call_in

NETWORK = """
netns add {0}
netns add {0}-p1
netns add {0}-p2
netns add {0}-p3
"""
HOST = """
link set lo up
link add v1 type veth peer name eth0 netns {0}-p1
link set v1 up
address add 10.78.0.1/32 dev v1
route add 10.78.1.2 dev v1
route add fd78::2 dev v1
link add cni0 type bridge
link set cni0 up
address add 10.79.0.1/24 dev cni0
address add fd79::1/64 dev cni0 nodad
link add v2 type veth peer name eth0 netns {0}-p2
link add v3 type veth peer name eth0 netns {0}-p3
link set v2 up master cni0
link set v3 up master cni0
route add 10.80.0.0/24 via 10.79.0.3
"""
PODS = {
    "p1": "link set eth0 up\naddress add 10.78.1.2/32 dev eth0",
    "p2": "link set eth0 up\naddress add 10.79.0.2/24 dev eth0\naddress add fd79::2/64 dev eth0 nodad",
    "p3": "link set eth0 up\naddress add 10.79.0.3/24 dev eth0",
}


def batch(lines: str, *options: str) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input=lines, text=True, check=True)


@pytest.fixture(scope="module")
def host(root: None) -> Iterator[str]:
    """Build a host with one workload behind a route, and two behind a bridge."""
    name = f"nkr{uuid4().hex[:6]}"
    try:
        batch(NETWORK.format(name))
        batch(HOST.format(name), "-n", name)
        for pod, lines in PODS.items():
            batch(lines, "-n", f"{name}-{pod}")
        yield name
    finally:
        for namespace in (name, *(f"{name}-{pod}" for pod in PODS)):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def find(host: str, address: str, *excluded: str) -> str | None:
    return call_in(host, lambda: routes.find_interface(ip_address(address), excluded))


@pytest.mark.parametrize("loaded", [False, True], ids=["plain", "br_netfilter"])
@pytest.mark.parametrize(
    ("address", "interface", "port"),
    [
        ("10.78.1.2", "v1", "v1"),
        ("fd78::2", "v1", "v1"),
        ("10.79.0.2", "cni0", "v2"),
        ("fd79::2", "cni0", "v2"),
        ("10.79.0.3", "cni0", "v3"),
        ("10.79.0.9", "cni0", None),  # nobody has the address
        ("10.80.0.5", None, None),  # behind a router
        ("10.79.0.1", None, None),  # the host's own
        ("127.0.0.1", None, None),
        ("203.0.113.1", None, None),  # no route
    ],
)
def test_an_address_has_the_interface_of_its_route_or_port(
    host: str, address: str, interface: str | None, port: str | None, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_ports, "filters_frames", lambda: loaded)

    assert find(host, address) == (port if loaded else interface)


def test_an_excluded_interface_is_none(host: str) -> None:
    assert find(host, "10.78.1.2", "v1") is None
