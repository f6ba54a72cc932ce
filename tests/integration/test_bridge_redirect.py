"""Connections from ports of a bridge reach the proxy with br_netfilter, routed by the host or switched by the bridge.

The node has no agent (see ``tests/support/redirection``); ``test_bridge_http`` has one, with Envoy.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.integration.conftest import MakeLab
from tests.support.bridges import ABSENT, PASSED, bridge, pass_frames, switch
from tests.support.labs import FAMILIES, run_in
from tests.support.redirection import (
    PORT,
    SLOT,
    Connection,
    Redirection,
    redirecting,
    served,
    snapshot,
    visit,
)

NODE, OTHER = "n1", "world"
SHORT = 1.5  # s, without an answer to a SYN and to its repetition
UNRULED = 8080  # a port without HTTP rules
LONG = "x" * 50_000
ENDS = ("front1", "back1")
both_families = pytest.mark.parametrize("family", FAMILIES)
both_ways = pytest.mark.parametrize("switched", [False, True], ids=["routed", "switched"])


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Iterator[Lab]:
    """Build a lab whose machines serve the port; the endpoints of the node are ports of a bridge, with br_netfilter."""
    if not PASSED.exists():
        pytest.skip(ABSENT)
    lab = make_lab()
    bridge(lab, NODE, ENDS)
    pass_frames(lab, NODE, on=True)
    with ExitStack() as servers:
        for machine in (*ENDS, NODE, "front2", OTHER):
            servers.enter_context(served(lab, machine))
        servers.enter_context(served(lab, "back1", UNRULED))
        yield lab


@pytest.fixture(params=[False, True], ids=["routed", "switched"])
def way(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """Send packets between the endpoints by the host, or directly by the bridge."""
    with switch(lab, *ENDS) if request.param else ExitStack():
        yield


MODES: list[tuple[Driver, int | None]] = [
    (driver, epoch) for driver in (Driver.NETLINK, Driver.NETFILTERQUEUE) for epoch in (None, 1)
]


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: f"{mode[0].value}-{mode[1]}")
def node(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Redirection]:
    """Redirect clients of back1, and all connections by front1 and by the node."""
    driver, epoch = request.param
    state = snapshot(lab, NODE, "back1", NODE, clients=("front1", NODE), epoch=epoch)
    with redirecting(lab, NODE, state, driver) as one:
        yield one


in_one_mode = pytest.mark.parametrize("node", MODES[:1], indirect=True)


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    """Forget the packets of the test before."""
    if "node" in request.fixturenames:
        node: Redirection = request.getfixturevalue("node")
        node.verdict_on = lambda seen: Verdict.ACCEPT
        node.forget()


def lines(lab: Lab, client: str, family: int, *, slot: int = SLOT) -> list[str]:
    """Return the lines that a redirected client receives."""
    return [f"slot {slot}", f"peer {lab.address(client, family)}", "ping"]


@both_families
@pytest.mark.usefixtures("way")
def test_a_connection_between_two_ports_is_redirected(node: Redirection, lab: Lab, family: int) -> None:
    with Connection(lab, "front1", lab.address("back1", family)) as connection:
        assert [connection.line(), connection.line()] == lines(lab, "front1", family)[:2]
        assert connection.echo(LONG) == LONG
        syns = [(one.way, one.slot) for one in node.seen if one.packet.opens]
    assert syns == [("asks", 0), ("to proxy", SLOT), ("from proxy", SLOT)]
    assert node.ways() == {"asks", "to proxy", "from proxy"}


@both_families
@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("front1", "front2"),  # on another node
        ("world", "back1"),
        ("front1", NODE),
        (NODE, "back1"),
    ],
)
def test_connections_of_one_port_are_redirected(
    node: Redirection, lab: Lab, client: str, server: str, family: int
) -> None:
    assert visit(lab, client, lab.address(server, family)) == lines(lab, client, family)
    assert node.ways() == {"asks", "to proxy", "from proxy"}


@both_families
def test_without_br_netfilter_connections_that_the_host_routes_are_redirected(
    node: Redirection, lab: Lab, family: int
) -> None:
    pass_frames(lab, NODE, on=False)
    found = {server: visit(lab, "front1", lab.address(server, family)) for server in ("back1", "front2")}
    pass_frames(lab, NODE, on=True)

    assert found == dict.fromkeys(("back1", "front2"), lines(lab, "front1", family))
    assert node.ways() == {"asks", "to proxy", "from proxy"}


@both_families
@pytest.mark.usefixtures("way")
def test_a_server_is_reached_by_a_published_port(node: Redirection, lab: Lab, family: int) -> None:
    command, server = ("iptables", "{}:{}") if family == 4 else ("ip6tables", "[{}]:{}")
    to = server.format(lab.address("back1", family), PORT)
    rule = ("PREROUTING", "-p", "tcp", "--dport", "8081", "-j", "DNAT", "--to-destination", to)
    run_in(lab, NODE, command, "-t", "nat", "-A", *rule)

    found = visit(lab, "front1", lab.address(NODE, family), 8081)

    run_in(lab, NODE, command, "-t", "nat", "-D", *rule)
    assert found == lines(lab, "front1", family)


@both_families
@pytest.mark.usefixtures("way")
def test_a_connection_without_rules_is_queued_once(node: Redirection, lab: Lab, family: int) -> None:
    """Each of its packets is, in one hook; neither the frame nor the packet is queued again."""
    with Connection(lab, "back1", lab.address("front1", family), source=None) as connection:
        assert connection.line() == f"peer {lab.address('back1', family)}"
        assert connection.echo("ping") == "ping"
    packets = [one.packet for one in node.seen if one.packet.proto == TCP]

    assert sum(packet.opens for packet in packets) == sum(packet.is_syn_ack for packet in packets) == 1
    assert node.ways() == {"no proxy"}


@both_families
@pytest.mark.usefixtures("way")
def test_offloaded_flows_stay_redirected(node: Redirection, lab: Lab, family: int) -> None:
    decided = Verdict.ACCEPT if node.epoch is None else Verdict.OFFLOAD_FLOW
    node.verdict_on = lambda seen: Verdict.ACCEPT if seen.packet.opens else decided
    with Connection(lab, "front1", lab.address("back1", family)) as connection:
        assert [connection.line(), connection.line()] == lines(lab, "front1", family)[:2]
        assert connection.echo("ping") == "ping"
        before = len(node.seen)
        assert connection.echo(LONG) == LONG
        assert (len(node.seen) == before) == (node.epoch is not None)


@both_families
@pytest.mark.usefixtures("way")
def test_without_the_proxy_open_connections_end_and_new_ones_wait_for_it(
    node: Redirection, lab: Lab, family: int
) -> None:
    server = lab.address("back1", family)
    with Connection(lab, "front1", server) as connection:
        connection.line(), connection.line()
        node.kill_proxy()
        assert connection.line() == ""
        with pytest.raises(ConnectionError):
            while True:
                connection.echo("more")
    with pytest.raises(TimeoutError):
        visit(lab, "front1", server, timeout=SHORT)
    assert not any(one.packet.opens and one.way == "no proxy" for one in node.seen)
    node.start_proxy()

    assert visit(lab, "front1", server) == lines(lab, "front1", family)


# -- fail closed -------------------------------------------------------------------------------------------------------


CHAINS = ["chain inet nfq_enforcer bridged_prerouting", "chain bridge nfq_enforcer redirect_prerouting"]
MAP = "map bridge nfq_enforcer ports"


@in_one_mode
@both_families
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("flushed", [*CHAINS, MAP])
def test_without_a_part_of_the_rules_a_connection_reaches_its_server_by_the_proxy_or_not_at_all(
    node: Redirection, lab: Lab, flushed: str, family: int
) -> None:
    """Nor does it reach a service of the node with the same port, on all addresses."""
    run_in(lab, NODE, "nft", "flush", *flushed.split())
    try:
        found = visit(lab, "front1", lab.address("back1", family), timeout=SHORT)
    except TimeoutError:
        found = []
    faults = node.call(node.rules.check)

    assert found in ([], lines(lab, "front1", family))
    assert "no proxy" not in node.ways()
    assert [fault.place for fault in faults] == [f"table {flushed.split()[1]} nfq_enforcer"]
    assert node.call(node.rules.repair, faults) == []
    assert visit(lab, "front1", lab.address("back1", family)) == lines(lab, "front1", family)


@in_one_mode
@pytest.mark.parametrize(
    "command",
    [
        *(f"delete {chain}" for chain in CHAINS),
        "delete table bridge nfq_enforcer",
        "delete table inet nfq_enforcer",
        "flush ruleset",
    ],
)
def test_rules_that_another_program_removes_are_restored(node: Redirection, lab: Lab, command: str) -> None:
    run_in(lab, NODE, "nft", *command.split())

    assert node.call(node.rules.repair, node.call(node.rules.check)) == []

    with switch(lab, *ENDS):
        for family in FAMILIES:
            assert visit(lab, "front1", lab.address("back1", family)) == lines(lab, "front1", family)


@in_one_mode
@both_families
@pytest.mark.parametrize(("switched", "passed"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("mark", [0x01000000, 0x02000000 | SLOT, 0x04000000 | SLOT, 0x08000000 | SLOT, 0x0F000000])
def test_a_mark_that_a_frame_already_has_changes_nothing(
    node: Redirection, lab: Lab, mark: int, switched: bool, passed: bool, family: int
) -> None:
    """Such a SYN takes the way of every other, or gets no answer; a slot that nobody has chosen is compared later."""
    ingress = f"chain in {{ type filter hook ingress device veth-front1 priority 0; meta mark set {mark:#x}; }}"
    run_in(lab, NODE, "nft", f"table netdev forged {{ {ingress}; }}")
    pass_frames(lab, NODE, on=passed)
    try:
        with switch(lab, *ENDS) if switched else ExitStack():
            found = visit(lab, "front1", lab.address("back1", family), timeout=SHORT)
    except OSError:
        found = []
    pass_frames(lab, NODE, on=True)
    run_in(lab, NODE, "nft", "delete table netdev forged")

    assert found in ([], lines(lab, "front1", family))
    assert "no proxy" not in node.ways()


# -- bridges and ports that come later ---------------------------------------------------------------------------------


@pytest.fixture
def late(make_lab: MakeLab) -> Iterator[Lab]:
    """Build a lab without a bridge, whose endpoints serve the port."""
    lab = make_lab()
    with served(lab, "back1"), served(lab, "front2"):
        yield lab


def everywhere(lab: Lab) -> dict[tuple[str, bool, int], list[str]]:
    """Return the lines that front1 receives from servers, by server, whether the bridge switches, and family."""
    found = {}
    for server, switched in (("front2", False), ("back1", False), ("back1", True)):
        with switch(lab, *ENDS) if switched else ExitStack():
            for family in FAMILIES:
                try:
                    found[server, switched, family] = visit(lab, "front1", lab.address(server, family), timeout=SHORT)
                except TimeoutError:
                    found[server, switched, family] = []
    return found


def test_a_bridge_that_comes_later(late: Lab) -> None:
    """The hooks of br_netfilter are registered with the first bridge, as they are when the module is loaded later."""
    state = snapshot(late, NODE, "back1", clients=("front1",))
    with redirecting(late, NODE, state) as node:
        pass_frames(late, NODE, on=True)
        node.call(node.rules.follow_bridges)
        bridge(late, NODE, ENDS)

        assert not any(everywhere(late).values())
        assert "no proxy" not in node.ways()
        assert node.call(node.rules.check) == []

        node.call(node.rules.follow_bridges)

        found = everywhere(late)
        assert found == {key: lines(late, "front1", key[-1]) for key in found}
        assert node.call(node.rules.check) == []

        for passed in (False, True):
            pass_frames(late, NODE, on=passed)
            node.call(node.rules.follow_bridges)
        assert everywhere(late) == found


def test_the_chain_of_an_earlier_agent_may_be_too_early(late: Lab) -> None:
    """It has been made before the hooks of br_netfilter. It goes alone: the members of the table's sets stay."""
    hook = "type filter hook prerouting priority -2147483648; policy accept;"
    run_in(late, NODE, "nft", f"table inet nfq_enforcer {{ chain bridged_prerouting {{ {hook} }}; }}")
    before = run_in(late, NODE, "nft", "-j", "list", "tables", "inet")  # with their handles
    pass_frames(late, NODE, on=True)
    with redirecting(late, NODE, snapshot(late, NODE, "back1", clients=("front1",))) as node:
        assert run_in(late, NODE, "nft", "-j", "list", "tables", "inet") == before
        assert node.call(node.rules.check) == []
        bridge(late, NODE, ENDS)
        node.call(node.rules.follow_bridges)
        found = everywhere(late)

        assert found == {key: lines(late, "front1", key[-1]) for key in found}


def test_an_agent_that_takes_over_the_rules(late: Lab) -> None:
    """It finds the chain of its predecessor, which was made in time, or none."""
    bridge(late, NODE, ENDS)
    pass_frames(late, NODE, on=True)
    state = snapshot(late, NODE, "back1", clients=("front1",))
    with redirecting(late, NODE, state) as node:
        for _ in range(2):
            successor = Redirection(late, NODE, node.driver).rules
            node.call(successor.install, state, [node.numbers])
            node.call(successor.set_proxied, True)
            found = everywhere(late)
            assert found == {key: lines(late, "front1", key[-1]) for key in found}
            assert node.call(successor.check) == []
            run_in(late, NODE, "nft", "delete", *CHAINS[0].split())


def test_a_port_that_comes_later_or_gets_another_address(late: Lab) -> None:
    bridge(late, NODE, ENDS)
    pass_frames(late, NODE, on=True)
    state = snapshot(late, NODE, "back1", clients=("front1",))
    with redirecting(late, NODE, state) as node, switch(late, *ENDS):
        for change in (
            ("link", "set", "veth-front1", "nomaster"),
            ("link", "set", "veth-front1", "master", "br0"),
            ("link", "set", "veth-front1", "address", "02:00:00:00:00:11"),
        ):
            run_in(late, NODE, "ip", *change)
            node.call(node.rules.follow_bridges)
            assert node.call(node.rules.check) == []

        for family in FAMILIES:
            assert visit(late, "front1", late.address("back1", family)) == lines(late, "front1", family)


def test_a_server_beyond_a_port(late: Lab) -> None:
    """The machine at a further port is no endpoint; the client is one."""
    bridge(late, NODE, ENDS)
    pass_frames(late, NODE, on=True)
    state = snapshot(late, NODE, clients=("front1",))
    own = {4: "10.31.1.200", 6: "fd00:31:1::200"}
    with redirecting(late, NODE, state) as node, served(late, OTHER):
        world = late.topology.namespace(OTHER)
        run_in(late, NODE, "ip", "link", "add", "veth-late", "type", "veth", "peer", "name", "late", "netns", world)
        run_in(late, NODE, "ip", "link", "set", "veth-late", "master", "br0", "up")
        run_in(late, OTHER, "ip", "link", "set", "late", "up")
        for family, address in own.items():
            nodad = ("nodad",) if family == 6 else ()
            run_in(late, OTHER, "ip", "address", "add", address, "dev", "late", *nodad)
            run_in(late, OTHER, "ip", f"-{family}", "route", "add", str(late.address("front1", family)), "dev", "late")
            run_in(late, "front1", "ip", f"-{family}", "route", "add", address, "dev", UPLINK)
            run_in(late, NODE, "ip", f"-{family}", "route", "add", address, "dev", "br0")
        node.call(node.rules.follow_bridges)

        for family, address in own.items():
            assert visit(late, "front1", address) == lines(late, "front1", family)
        assert node.ways() == {"asks", "to proxy", "from proxy"}


def test_nothing_remains(late: Lab) -> None:
    bridge(late, NODE, ENDS)
    with redirecting(late, NODE, snapshot(late, NODE, "back1")):
        assert "bridged_prerouting" in run_in(late, NODE, "nft", "list", "ruleset")

    assert "nfq_enforcer" not in run_in(late, NODE, "nft", "list", "ruleset")
