"""Open flows of datagrams, and whether a node offloads them."""

import itertools
import sys

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import run_in

# Exchanges datagrams between two ports, until both ends have received so many.
_TALK = """
import socket, sys
family, address, source, number = sys.argv[1:]
with socket.socket(int(family), socket.SOCK_DGRAM) as talking:
    talking.settimeout(5)
    talking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    talking.bind(("", int(source)))
    for _ in range(int(number)):
        talking.sendto(b"?0 ", (address, 53))
        talking.recv(1000)
"""
_ports = itertools.count(45_000)


def open_flow(lab: Lab, source: str, target: str, family: int) -> int:
    """Exchange datagrams until the flow is offloaded, where the mode offloads flows; return the client's port."""
    port, number = next(_ports), "2" if family == 4 else "10"
    run_in(lab, source, sys.executable, "-c", _TALK, number, str(lab.address(target, family)), str(port), "6")
    return port


def is_offloaded(lab: Lab, node: str, port: int) -> bool:
    """Return whether a node's flow of this client's port has a connmark."""
    listed = run_in(lab, node, "conntrack", "-L", "-o", "extended").splitlines()
    (line,) = (one for one in listed if f" sport={port} " in one)
    return " mark=0 " not in line
