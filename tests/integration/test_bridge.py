"""Endpoints behind a bridge of their node: which sources a port can send, with and without br_netfilter.

With br_netfilter the interface of an endpoint is its port, and the kernel checks the source of each frame there.
Without br_netfilter it is the bridge: the ports can use each other's addresses, as on one interface.
"""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.integration.test_source_filter import (
    ATTACKER,
    TARGET,
    VICTIM,
    arriving,
    declare,
    declared,
    from_to,
    halves,
)
from tests.support.labs import (
    DATAPATHS,
    FAMILIES,
    FRONT_TO_BACK,
    PATIENT,
    PER_FLOW,
    SINGLE_QUEUE,
    DatapathSettings,
    Policies,
    await_flow,
    dropped,
    identities,
    now,
    outcomes,
    policy,
    run_in,
    stamps_on,
    until,
)
from tests.support.namespaces import link_socket, received, within
from tests.support.open_flows import is_offloaded, open_flow

PORTS = {name: f"veth-{name}" for name in (VICTIM, ATTACKER)}
both_families = pytest.mark.parametrize("family", FAMILIES)
# Says by ARP (RFC 826), as its own and as an answer, that the first address is at this machine, to the second one.
CLAIM = """
import fcntl, socket, struct, sys
interface, claimed, target = sys.argv[1], *map(socket.inet_aton, sys.argv[2:4])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
    sender.bind((interface, 0x0806))
    own, everyone = sender.getsockname()[4], b"\\xff" * 6
    for operation in (1, 2):
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, own, claimed, everyone, target)
        sender.send(everyone + own + b"\\x08\\x06" + body)
"""

# nft on a kernel without the family bridge: nf_tables answers EOPNOTSUPP to a table of it (nft_supported_family).
LACKING = """#!/bin/sh
[ "$1" = -f ] || exec {0} "$@"
input=$(cat)
case $input in *"table bridge"*)
    echo 'Error: Could not process rule: Operation not supported' >&2
    exit 1
esac
printf '%s\\n' "$input" | {0} "$@"
"""


DATAPATH_SETTINGS = [SINGLE_QUEUE[0], *(one for one in DATAPATHS if one.mode == PER_FLOW)]


@pytest.fixture(scope="module")
def bridged(make_served: MakeLab, datapath: DatapathSettings) -> Lab:
    """Give a lab with agents, in which the endpoints of n1 have become ports of a bridge."""
    lab = make_served()
    shown = run_in(lab, "n1", "ip", "-o", "address", "show", "dev", PORTS[VICTIM], "scope", "global")
    gateways = [line.split()[3] for line in shown.splitlines()]
    commands = ["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up"]
    commands += [f"address add {gateway} dev br0{' nodad' if ':' in gateway else ''}" for gateway in gateways]
    for name, port in PORTS.items():
        commands += [f"address flush dev {port}", f"link set {port} master br0"]
        commands += [f"route replace {lab.address(name, family)} dev br0" for family in FAMILIES]
    run_in(lab, "n1", "ip", "-batch", "-", text="\n".join(commands))
    lab.start_agents(**datapath.settings)
    return lab


@pytest.fixture
def ports(bridged: Lab) -> Lab:
    """Give the lab with br_netfilter, and with the ports as interfaces of the endpoints."""
    filter_bridge(bridged, on=True)
    declare_endpoints(bridged, PORTS)
    return bridged


@pytest.fixture
def shared(bridged: Lab) -> Lab:
    """Give the lab without br_netfilter, and with the bridge as interface of the endpoints."""
    filter_bridge(bridged, on=False)
    declare_endpoints(bridged, dict.fromkeys(PORTS, "br0"))
    return bridged


def filter_bridge(lab: Lab, *, on: bool) -> None:
    """Switch br_netfilter on or off at n1."""
    for name in ("iptables", "ip6tables"):
        run_in(lab, "n1", "sh", "-c", f"echo {int(on)} >/proc/sys/net/bridge/bridge-nf-call-{name}")


def declare_endpoints(lab: Lab, interfaces: Mapping[str, str | None]) -> None:
    """Declare the endpoints of n1 on these interfaces."""
    roles = {VICTIM: "frontend", ATTACKER: "backend"}
    addresses = {name: [lab.address(name, family) for family in FAMILIES] for name in interfaces}
    declare(lab, *(declared(name, "n1", port, *addresses[name], role=roles[name]) for name, port in interfaces.items()))


@both_families
async def test_a_port_sends_from_its_own_address_and_is_stamped(ports: Lab, family: int) -> None:
    own = from_to(ports, VICTIM, TARGET, family, b"token")

    (arrived,) = await arriving(ports, (VICTIM, [own]), family=family)

    assert stamps_on(arrived) == [identities(ports)[VICTIM]]


@both_families
async def test_a_port_with_its_neighbours_address_is_dropped_counted_and_shown(ports: Lab, family: int) -> None:
    forged = from_to(ports, VICTIM, TARGET, family, b"token", sport=51_000)
    node, since = ports.nodes["n1"], now()
    before = node.status()["source_filter"]["drops"].get(PORTS[ATTACKER], 0)

    assert await arriving(ports, (ATTACKER, [forged]), family=family) == []

    flow = await_flow(node, since, verdict="DROPPED", source=str(ports.address(VICTIM, family)), source_port=51_000)
    assert (flow["drop_reason_desc"], flow["traffic_direction"]) == ("INVALID_SOURCE_IP", "EGRESS")
    assert node.status()["source_filter"]["drops"][PORTS[ATTACKER]] == before + 1


@both_families
async def test_a_port_gets_into_no_open_flow_of_its_neighbour(
    ports: Lab, datapath: DatapathSettings, family: int
) -> None:
    port = open_flow(ports, VICTIM, TARGET, family)
    assert is_offloaded(ports, "n1", port) == (datapath.mode == PER_FLOW)
    forged = from_to(ports, VICTIM, TARGET, family, b"token", sport=port)

    assert await arriving(ports, (ATTACKER, [forged]), family=family) == []


@pytest.mark.parametrize("forged", [0, 2], ids=["first", "last"])
@both_families
async def test_a_fragment_of_a_neighbouring_port_is_not_joined(ports: Lab, forged: int, family: int) -> None:
    parts, _ = halves(ports, family)
    own = [part for place, part in enumerate(parts) if place != forged]

    assert await arriving(ports, (ATTACKER, [parts[forged]]), (VICTIM, own), family=family) == []


async def test_a_port_claims_no_address_of_its_neighbour_by_arp(ports: Lab) -> None:
    """The host's neighbour table keeps the victim; the attacker's own claim counts."""
    gateway = "10.31.1.1"
    known = neighbour(ports, VICTIM)

    for name in (VICTIM, ATTACKER):
        run_in(ports, ATTACKER, sys.executable, "-c", CLAIM, UPLINK, str(ports.address(name)), gateway)
    await until(lambda: neighbour(ports, ATTACKER) == hardware_address(ports, ATTACKER))

    assert neighbour(ports, VICTIM) == known == hardware_address(ports, VICTIM)


async def test_ports_can_talk_by_link_local_addresses_under_any_policy(ports: Lab) -> None:
    """The limit: such an address names no endpoint, and no document says which port it belongs to."""
    policies = Policies(ports)
    await policies.apply("closed", policy("closed", "frontend", ingress=[{}]))
    with link_socket(ports, VICTIM, UPLINK, 6, 7000) as receiver, link_socket(ports, ATTACKER, UPLINK, 6) as sender:
        index = within(ports, ATTACKER, lambda: socket.if_nametoindex(UPLINK))
        sender.sendto(b"token", (link_local(ports, VICTIM), 7000, 0, index))

        assert await asyncio.to_thread(received, receiver, PATIENT)
    expected = dropped([ATTACKER], [VICTIM])
    assert await outcomes(ports, expected) == expected
    await policies.withdraw_all()


@pytest.mark.parametrize("change", ["delete table bridge nfq_enforcer", "flush set bridge nfq_enforcer owned4"])
async def test_the_table_of_the_ports_is_restored(ports: Lab, change: str) -> None:
    node, forged = ports.nodes["n1"], from_to(ports, VICTIM, TARGET, 4, b"token")
    repairs = node.status()["rules"]["repairs"]

    run_in(ports, "n1", "nft", *change.split())

    await until(lambda: node.status()["rules"]["repairs"] > repairs)
    assert node.status()["rules"]["intact"]
    assert "table bridge nfq_enforcer" in node.status()["rules"]["last_missing"]
    assert await arriving(ports, (ATTACKER, [forged]), family=4) == []


@pytest.mark.parametrize("named", [True, False], ids=["with", "without"])
async def test_an_endpoint_without_an_interface_is_forged_by_others_without_one(ports: Lab, named: bool) -> None:
    """The limit: a neighbour whose document names an interface cannot, another one can."""
    declare_endpoints(ports, {VICTIM: None, ATTACKER: PORTS[ATTACKER] if named else None})
    forged = from_to(ports, VICTIM, TARGET, 4, b"token")

    arrived = await arriving(ports, (ATTACKER, [forged]), family=4)

    assert [stamps_on(one) for one in arrived] == ([] if named else [[identities(ports)[VICTIM]]])


async def test_a_kernel_without_tables_of_bridges_leaves_whole_packets_to_the_worker(
    ports: Lab, datapath: DatapathSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, forged = ports.nodes["n1"], from_to(ports, VICTIM, TARGET, 4, b"token")
    node.stop()
    lacking = tmp_path / "nft"
    lacking.write_text(LACKING.format(shutil.which("nft")))
    lacking.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        node.start(**datapath.settings)
    node.wait_until_ready()

    assert "table bridge" not in run_in(ports, "n1", "nft", "list", "tables")
    assert "forged sources from ports of bridges are not dropped in the kernel" in node.log.read_text()
    assert node.status()["rules"]["intact"]
    assert await arriving(ports, (ATTACKER, [forged]), family=4) == []

    node.stop()
    node.start(**datapath.settings)
    node.wait_until_ready()


@both_families
async def test_without_br_netfilter_a_port_can_send_as_its_neighbour(shared: Lab, family: int) -> None:
    """The limit: one interface, the bridge, has both endpoints."""
    policies = Policies(shared)
    await policies.apply("front-to-back", FRONT_TO_BACK)
    own, forged = (from_to(shared, name, TARGET, family, b"token of " + name.encode()) for name in (ATTACKER, VICTIM))

    (arrived,) = await arriving(shared, (ATTACKER, [forged]), family=family)
    assert stamps_on(arrived) == [identities(shared)[VICTIM]]
    assert await arriving(shared, (ATTACKER, [own]), family=family) == []  # no backend may connect to a backend
    await policies.withdraw_all()


def link_local(lab: Lab, machine: str) -> str:
    shown = run_in(lab, machine, "ip", "-6", "-o", "address", "show", "dev", UPLINK, "scope", "link")
    return shown.split()[3].partition("/")[0]


def hardware_address(lab: Lab, machine: str) -> str:
    return run_in(lab, machine, "cat", f"/sys/class/net/{UPLINK}/address").strip()


def neighbour(lab: Lab, machine: str) -> str:
    """Return the hardware address at which n1 has a machine's IPv4 address."""
    shown = run_in(lab, "n1", "ip", "-4", "neighbour", "show", str(lab.address(machine)), "dev", "br0").split()
    return shown[shown.index("lladdr") + 1] if "lladdr" in shown else ""
