"""A node whose uplink is a port of a bridge, as on hosts of virtual machines, with and without br_netfilter."""

from collections.abc import Iterator

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.bridges import ABSENT, BRIDGE, PASSED, pass_frames, port_of
from tests.support.labs import (
    DRIVERS,
    FAMILIES,
    FRONT_TO_BACK,
    Policies,
    dropped,
    outcomes,
    passes,
    run_in,
    stop_agents,
)

NODE = "n1"


def move_uplink(lab: Lab) -> None:
    """Make the uplink of n1 a port of a bridge, which gets its addresses and routes."""
    commands = [f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0", f"link set {BRIDGE} up"]
    shown = run_in(lab, NODE, "ip", "-o", "address", "show", "dev", UPLINK, "scope", "global")
    for address in (line.split()[3] for line in shown.splitlines()):
        commands.append(f"address add {address} dev {BRIDGE}{' nodad' if ':' in address else ''}")
    routes = [
        line.replace(f"dev {UPLINK}", f"dev {BRIDGE}")
        for family in (4, 6)
        for line in run_in(lab, NODE, "ip", f"-{family}", "route", "show", "dev", UPLINK).splitlines()
        if " via " in line
    ]
    commands += [f"address flush dev {UPLINK}", f"link set {UPLINK} master {BRIDGE}"]
    commands += [f"route replace {route.split(' proto')[0].split(' metric')[0]} dev {BRIDGE}" for route in routes]
    run_in(lab, NODE, "ip", "-batch", "-", text="\n".join(commands))


@pytest.fixture(scope="module", params=DRIVERS)
def bridged(make_served: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    if not PASSED.is_dir():
        pytest.skip(ABSENT)
    lab = make_served()
    move_uplink(lab)
    lab.documents.mkdir(exist_ok=True)
    lab.store.start()
    for name, node in lab.nodes.items():
        own = {"ips": [str(lab.address(NODE, family)) for family in FAMILIES]} if name == NODE else {}
        node.start(node=own, driver=request.param)
        node.wait_until_ready()
    lab.declare_endpoints()
    yield lab
    stop_agents(lab)


@pytest.mark.parametrize("passed", [False, True], ids=["without br_netfilter", "with br_netfilter"])
async def test_stamps_are_set_and_trusted_on_a_port_of_the_bridge(bridged: Lab, passed: bool) -> None:
    pass_frames(bridged, NODE, on=passed)
    expected = passes(["front1", "front2", "front3"], ["back1", "back2"]) | dropped(
        ["db3", "world", "back2"], ["back1"]
    )

    policies = Policies(bridged)
    await policies.apply("front-to-back", FRONT_TO_BACK)
    seen = await outcomes(bridged, expected)
    await policies.withdraw_all()

    assert seen == expected


async def test_what_the_bridge_switches_to_another_node_is_stamped(bridged: Lab) -> None:
    pass_frames(bridged, NODE, on=True)
    port = port_of("front1")
    commands = [f"address flush dev {port} scope global", f"link set {port} master {BRIDGE}"]
    for family in FAMILIES:
        own, peer, gateway = (bridged.address(name, family) for name in ("front1", "back2", "n2"))
        commands.append(f"route replace {own} dev {BRIDGE} src {bridged.address(NODE, family)}")
        direct = str(peer), "via", str(gateway), "dev", UPLINK, "onlink"
        run_in(bridged, "front1", "ip", f"-{family}", "route", "replace", *direct)
        run_in(bridged, "n2", "ip", f"-{family}", "route", "replace", str(own), "dev", UPLINK)
    run_in(bridged, NODE, "ip", "-batch", "-", text="\n".join(commands))
    policies = Policies(bridged)
    await policies.apply("front-to-back", FRONT_TO_BACK)

    expected = passes(["front1"], ["back2"])  # which has no other way to know who sends
    seen = await outcomes(bridged, expected)
    await policies.withdraw_all()

    assert seen == expected
