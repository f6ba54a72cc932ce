"""Forged stamps: only stamps of this node leave by a cluster interface, whoever sends the packet."""

import asyncio
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.labs import (
    DATAPATHS,
    FAMILIES,
    FRONT_TO_BACK,
    PATIENT,
    DatapathSettings,
    Policies,
    await_flow,
    identities,
    now,
    run_in,
    stamps_on,
    start_all,
)
from tests.support.packets import udp

UNDECLARED = "rogue"
# Sends a whole packet as it is: raw(7) for IPv4, and IPV6_HDRINCL for IPv6.
SEND_RAW = """
import socket, sys
packet, target = bytes.fromhex(sys.argv[1]), sys.argv[2]
if packet[0] >> 4 == 4:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.sendto(packet, (target, 0))
else:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, 36, 1)
        sender.sendto(packet, (target, 0))
"""
# A whole TCP connection whose every packet has the option, by setsockopt(IP_OPTIONS).
CONNECT_WITH_OPTION = """
import socket, sys
target, option = sys.argv[1], bytes.fromhex(sys.argv[2])
with socket.socket() as client:
    client.settimeout(1.0)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
    try:
        client.connect((target, 80))
        print("open")
    except OSError:
        print("refused")
"""


@pytest.fixture(scope="module", params=[one for one in DATAPATHS if one.queues == 1], ids=str)
def guarded(make_served: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a lab with agents, and a workload on n1 that no document declares."""
    settings: DatapathSettings = request.param
    lab = make_served()
    start_all(lab, **settings.settings)
    lab.network.attach(UNDECLARED, "n1")
    yield lab
