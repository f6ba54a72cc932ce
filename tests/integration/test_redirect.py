"""Connections with HTTP rules reach the proxy in the slot of the verdict, all of their packets, and no others do.

The rules, queues and drivers are ours; a transparent proxy of the tests stands for Envoy. It sends each client the line
``slot N``, and each server sends the address that it sees.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.packet import Packet
from nfq_enforcer.dataplane.queue.protocol import HeldPacket, Redirect
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import FAMILIES, run_in, until
from tests.support.redirection import (
    PORT,
    SLOT,
    UID,
    Connection,
    Redirection,
    Seen,
    redirecting,
    served,
    snapshot,
    visit,
)

NODE, OTHER, FAR = "n1", "n2", "n3"  # n3 is behind a router
SHORT = 1.5  # s, without an answer to a SYN and to its repetition
both_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Iterator[Lab]:
    """Build a lab whose machines serve the port, without agents; the node's endpoint back1 has HTTP rules."""
    lab = make_lab()
    with ExitStack() as servers:
        for machine in ("back1", NODE, "front2", "back2", OTHER, FAR, "world"):
            servers.enter_context(served(lab, machine))
        yield lab


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[Redirection]:
    """Redirect clients of back1 and of the node, and all connections by front1 and by the node."""
    with redirecting(lab, NODE, snapshot(lab, NODE, "back1", NODE, clients=("front1", NODE))) as one:
        yield one


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    """Forget the packets and verdicts of the test before."""
    if "node" in request.fixturenames:
        node: Redirection = request.getfixturevalue("node")
        node.slot_of, node.verdict_on = lambda packet: Redirect(SLOT), lambda seen: Verdict.ACCEPT
        node.forget()


def lines(lab: Lab, client: str, family: int, *, slot: int = SLOT) -> list[str]:
    """Return the lines that a redirected client receives."""
    return [f"slot {slot}", f"peer {lab.address(client, family)}", "ping"]


PLACES = [
    ("front1", "back1"),  # both forwarded
    ("front1", "front2"),  # egress
    ("world", "back1"),  # ingress
    ("front1", NODE),  # the server is the host
    ("world", NODE),
    (NODE, "world"),  # the client is the host
    (NODE, "back1"),
    (NODE, NODE),  # both are
]


@both_families
@pytest.mark.parametrize(("client", "server"), PLACES)
def test_a_connection_reaches_its_server_through_the_proxy(
    node: Redirection, lab: Lab, client: str, server: str, family: int
) -> None:
    assert visit(lab, client, lab.address(server, family)) == lines(lab, client, family)
    assert node.ways() == {"asks", "to proxy", "from proxy"}


@both_families
@pytest.mark.parametrize(("client", "server"), PLACES)
def test_no_packet_is_queued_twice_and_each_syn_names_its_slot(
    node: Redirection, lab: Lab, client: str, server: str, family: int
) -> None:
    with Connection(lab, client, lab.address(server, family)) as connection:
        assert connection.line() == f"slot {SLOT}"
        connection.line()
        syns = [(one.way, one.slot) for one in node.seen if one.packet.opens]

    assert syns == [("asks", 0), ("to proxy", SLOT), ("from proxy", SLOT)]
    assert not any(one.slot for one in node.seen if not one.packet.opens)


@both_families
def test_a_connection_without_rules_passes_without_the_proxy(node: Redirection, lab: Lab, family: int) -> None:
    assert visit(lab, "world", lab.address("front2", family)) == lines(lab, "world", family)[1:]
    assert node.seen == []


@both_families
def test_a_syn_that_gets_no_slot_goes_its_ordinary_way(node: Redirection, lab: Lab, family: int) -> None:
    node.slot_of = lambda packet: Verdict.UNDECIDED

    assert visit(lab, "front1", lab.address("back1", family)) == lines(lab, "front1", family)[1:]
    assert node.ways() == {"asks", "no proxy"}


@both_families
@pytest.mark.parametrize("client", ["front1", NODE])
def test_routing_rules_for_marks_of_others_apply_to_a_syn_that_asked(
    node: Redirection, lab: Lab, client: str, family: int
) -> None:
    """Such a rule matches the whole mark."""
    node.slot_of = lambda packet: Verdict.UNDECIDED
    command, server = "iptables" if family == 4 else "ip6tables", str(lab.address("world", family))
    mark = ("PREROUTING" if client == "front1" else "OUTPUT", "-d", server, "-j", "MARK", "--set-mark", "0x10")
    run_in(lab, NODE, "ip", f"-{family}", "route", "add", "unreachable", "default", "table", "99")
    run_in(lab, NODE, "ip", f"-{family}", "rule", "add", "fwmark", "0x10", "lookup", "99", "pref", "80")
    run_in(lab, NODE, command, "-t", "mangle", "-A", *mark)

    with pytest.raises(OSError, match=r"route|unreachable|timed out"):
        visit(lab, client, server, timeout=SHORT)
    assert not any(one.way == "no proxy" for one in node.seen if client == "front1")

    run_in(lab, NODE, command, "-t", "mangle", "-D", *mark)
    run_in(lab, NODE, "ip", f"-{family}", "rule", "del", "pref", "80")
    run_in(lab, NODE, "ip", f"-{family}", "route", "flush", "table", "99")
    assert visit(lab, client, server) == lines(lab, client, family)[1:]


@both_families
@pytest.mark.parametrize("client", ["front1", NODE])
def test_a_syn_that_is_repeated_asks_again(node: Redirection, lab: Lab, client: str, family: int) -> None:
    asked: list[Packet] = []

    def drop_first(packet: Packet) -> Verdict | Redirect:
        asked.append(packet)
        return Verdict.DROP if len(asked) == 1 else Redirect(SLOT)

    node.slot_of = drop_first

    assert visit(lab, client, lab.address("back1", family)) == lines(lab, client, family)
    assert len(asked) == 2


@both_families
@pytest.mark.parametrize("client", ["front1", NODE])
def test_a_syn_is_repeated_while_its_answer_is_lost(node: Redirection, lab: Lab, client: str, family: int) -> None:
    lost: list[Seen] = []

    def lose_first(seen: Seen) -> Verdict:
        if not lost and seen.packet.is_syn_ack and seen.way == "from proxy":
            lost.append(seen)
            return Verdict.DROP
        return Verdict.ACCEPT

    node.verdict_on = lose_first

    assert visit(lab, client, lab.address("back1", family)) == lines(lab, client, family)
    assert lost


@both_families
def test_a_server_is_reached_by_a_published_port(node: Redirection, lab: Lab, family: int) -> None:
    command, server = ("iptables", "{}:{}") if family == 4 else ("ip6tables", "[{}]:{}")
    to = server.format(lab.address("back1", family), PORT)
    rule = ("PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "DNAT", "--to-destination", to)
    run_in(lab, NODE, command, "-t", "nat", "-A", *rule)

    assert visit(lab, "world", lab.address(NODE, family), 8080) == lines(lab, "world", family)
    run_in(lab, NODE, command, "-t", "nat", "-D", *rule)


@both_families
def test_reverse_path_filters_pass_redirected_connections(node: Redirection, lab: Lab, family: int) -> None:
    run_in(lab, NODE, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")

    for client, server in PLACES:
        assert visit(lab, client, lab.address(server, family)) == lines(lab, client, family)
    run_in(lab, NODE, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")


@both_families
def test_a_firewall_that_closes_the_host_passes_redirected_connections(
    node: Redirection, lab: Lab, family: int
) -> None:
    command = "iptables" if family == 4 else "ip6tables"
    established = ("-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
    for chain in ("INPUT", "OUTPUT"):
        run_in(lab, NODE, command, "-A", chain, "-p", "ipv6-icmp" if family == 6 else "icmp", "-j", "ACCEPT")
        run_in(lab, NODE, command, "-P", chain, "DROP")

    forwarded = [visit(lab, client, lab.address("back1", family)) for client in ("front1", "world")]
    with pytest.raises(TimeoutError):  # the rules for services of the host hold as without a proxy
        visit(lab, "world", lab.address(NODE, family), timeout=SHORT)
    run_in(lab, NODE, command, "-A", "INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "ACCEPT")
    run_in(lab, NODE, command, "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
    run_in(lab, NODE, command, "-A", "OUTPUT", *established)
    run_in(lab, NODE, command, "-A", "OUTPUT", "-o", "lo", "-j", "ACCEPT")
    served = visit(lab, "world", lab.address(NODE, family))

    for chain in ("INPUT", "OUTPUT"):
        run_in(lab, NODE, command, "-P", chain, "ACCEPT")
        run_in(lab, NODE, command, "-F", chain)
    assert forwarded == [lines(lab, client, family) for client in ("front1", "world")]
    assert served == lines(lab, "world", family)
    assert {fault.text for fault in node.call(node.rules.check)}
    assert node.call(node.rules.repair, node.call(node.rules.check)) == []


LONG = "x" * 50_000


@both_families
@pytest.mark.parametrize(("client", "server"), [("front1", FAR), (FAR, "back1"), (NODE, FAR), (FAR, NODE)])
def test_the_proxy_learns_the_mtu_of_a_path(node: Redirection, lab: Lab, client: str, server: str, family: int) -> None:
    """An ICMP error about a packet of the proxy goes to the address of the client, or of the server."""
    far, size = lab.address(FAR, family), 1300 if family == 4 else 1280
    run_in(lab, "rtr", "ip", f"-{family}", "route", "replace", f"{far}/{32 if family == 4 else 128}", *via(size))

    with Connection(lab, client, lab.address(server, family)) as connection:
        assert [connection.line(), connection.line()] == lines(lab, client, family)[:2]
        assert connection.echo(LONG) == LONG
    run_in(lab, "rtr", "ip", f"-{family}", "route", "del", f"{far}/{32 if family == 4 else 128}", *via(size))
    run_in(lab, NODE, "ip", "route", "flush", "cache")


def via(mtu: int) -> tuple[str, ...]:
    return ("dev", "far", "mtu", "lock", str(mtu))


# -- the proxy is gone -------------------------------------------------------------------------------------------------


@both_families
def test_without_the_proxy_open_connections_end_and_new_ones_wait_for_it(
    node: Redirection, lab: Lab, family: int
) -> None:
    server = lab.address("back1", family)
    with Connection(lab, "front1", server) as connection:
        connection.line(), connection.line()
        node.kill_proxy()
        ended = connection.line()
        with pytest.raises(ConnectionError):
            while True:
                connection.echo("more")
    with pytest.raises(TimeoutError):
        visit(lab, "front1", server, timeout=SHORT)
    assert not any(one.packet.opens and one.way == "no proxy" for one in node.seen)
    node.start_proxy()

    assert ended == ""
    assert visit(lab, "front1", server) == lines(lab, "front1", family)


@both_families
def test_a_connection_whose_socket_has_vanished_gets_a_rst(node: Redirection, lab: Lab, family: int) -> None:
    command = "iptables" if family == 4 else "ip6tables"
    unseen = ("OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")
    with Connection(lab, "front1", lab.address("back1", family)) as connection:
        connection.line(), connection.line()
        run_in(lab, NODE, command, "-t", "raw", "-A", *unseen)
        run_in(lab, NODE, "ss", "-K", "sport", "=", f":{PORT}")
        run_in(lab, NODE, command, "-t", "raw", "-D", *unseen)

        with pytest.raises(ConnectionResetError):
            connection.echo("more")


def test_a_slot_without_a_listener_is_closed(node: Redirection, lab: Lab) -> None:
    node.slot_of = lambda packet: Redirect(SLOT + 1)

    with pytest.raises(TimeoutError):
        visit(lab, "front1", lab.address("back1"), timeout=SHORT)
    assert node.ways() == {"asks"}


@both_families
def test_the_slots_are_a_thousand(node: Redirection, lab: Lab, family: int) -> None:
    node.kill_proxy()
    node.start_proxy(1, SLOT, 1000)

    for slot in (1, 1000):
        node.slot_of = lambda packet, slot=slot: Redirect(slot)  # type: ignore[misc]
        assert visit(lab, "front1", lab.address("back1", family)) == lines(lab, "front1", family, slot=slot)


# -- no way around -----------------------------------------------------------------------------------------------------


@both_families
@pytest.mark.parametrize("mark", [0x01000000, 0x02000000 | SLOT, 0x04000000 | SLOT, 0x08000000 | SLOT, 0x0F000000])
def test_a_mark_that_a_process_sets_changes_nothing(node: Redirection, lab: Lab, mark: int, family: int) -> None:
    try:
        first = visit(lab, NODE, lab.address("back1", family), mark=mark)[0]
    except OSError:  # the kernel finds no source address for a way over ``lo``
        first = None

    assert first in {f"slot {SLOT}", None}
    assert "no proxy" not in node.ways()


AS_PROXY = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
made = socket.socket(family)
made.setsockopt(socket.SOL_SOCKET, 36, 0x08000007)
made.setsockopt(*(socket.IPPROTO_IPV6, 75, 1) if ":" in sys.argv[1] else (socket.SOL_IP, 19, 1))
made.settimeout(1.5)
made.bind((sys.argv[1], int(sys.argv[2])))
try:
    made.connect((sys.argv[3], int(sys.argv[4])))
    print(made.recv(100).decode(), end="")
except OSError as error:
    print(type(error).__name__)
"""


def as_user(lab: Lab, uid: int, source: object, port: int, server: object) -> str:
    """Connect with the mark of the proxy, as this user of the node; return the server's line, or the error."""
    own = ("setpriv", "--reuid", str(uid), "--clear-groups", "--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw")
    program = [*own, sys.executable, "-c", AS_PROXY, str(source), str(port), str(server), str(PORT)]
    return subprocess.run(lab.network.command(NODE, program), capture_output=True, text=True, check=True).stdout.strip()


@both_families
def test_only_the_proxys_user_may_send_for_a_client(node: Redirection, lab: Lab, family: int) -> None:
    client, server = lab.address("front1", family), lab.address("back1", family)

    assert as_user(lab, UID, client, 0, server) == f"peer {client}"
    assert node.ways() == {"from proxy", "to proxy"}
    assert as_user(lab, UID + 1, client, 0, server) == "TimeoutError"  # the proxy answers the real client


@both_families
def test_a_client_and_the_proxy_never_share_a_connection(node: Redirection, lab: Lab, family: int) -> None:
    client, server = lab.address("front1", family), lab.address("back1", family)
    with Connection(lab, "front1", server) as connection:
        connection.line(), connection.line()
        of_client = connection.socket.getsockname()[1]
        of_proxy = next(one.packet.sport for one in node.seen if one.packet.opens and one.way == "from proxy")

        with pytest.raises(TimeoutError):
            Connection(lab, "front1", server, source=(str(client), of_proxy), timeout=SHORT)
        assert as_user(lab, UID, client, of_client, server) == "TimeoutError"
        assert connection.echo("still open") == "still open"


@both_families
def test_ports_of_a_connection_that_has_ended_serve_another(node: Redirection, lab: Lab, family: int) -> None:
    """Both ways: the port of the proxy for the client, and the port of the client for the proxy."""
    client, server = lab.address("front1", family), lab.address("back1", family)
    with Connection(lab, "front1", server) as connection:
        assert [connection.line(), connection.line()] == lines(lab, "front1", family)[:2]
        of_client = connection.socket.getsockname()[1]
        of_proxy = next(one.packet.sport for one in node.seen if one.packet.opens and one.way == "from proxy")
    node.forget()

    assert visit(lab, "front1", server, source=(str(client), of_proxy)) == lines(lab, "front1", family)
    assert node.ways() == {"asks", "to proxy", "from proxy"}
    assert as_user(lab, UID, client, of_client, server) == f"peer {client}"


# -- rules that others change ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "faults"),
    [
        (("ip", "rule", "del", "pref", "90"), ["routing of IPv4"]),
        (("ip", "-6", "rule", "del", "pref", "90"), ["routing of IPv6"]),
        (("ip", "route", "flush", "table", "28262"), ["routing of IPv4"]),
        (("ip", "-6", "route", "flush", "table", "28262"), ["routing of IPv6"]),
        (("iptables", "-F", "INPUT"), ["IPv4 filter"]),
        (("ip6tables", "-F", "NFQE-FROM-PROXY"), ["IPv6 filter"]),
        (("nft", "flush", "chain", "inet", "nfq_enforcer", "slot_openings"), ["table inet nfq_enforcer"]),
        (("nft", "flush", "chain", "inet", "nfq_enforcer", "to_proxy"), ["table inet nfq_enforcer"]),
        (("nft", "flush", "map", "inet", "nfq_enforcer", "slots"), ["table inet nfq_enforcer"]),
        (("nft", "flush", "set", "inet", "nfq_enforcer", "l7_in4"), ["table inet nfq_enforcer"]),
        (("nft", "flush", "ruleset"), None),
    ],
)
def test_a_change_by_another_program_is_repaired(
    node: Redirection, lab: Lab, command: tuple[str, ...], faults: list[str] | None
) -> None:
    assert node.call(node.rules.check) == []
    run_in(lab, NODE, *command)
    found = node.call(node.rules.check)

    assert found
    assert faults is None or [fault.place for fault in found] == faults
    assert node.call(node.rules.repair, found) == []
    assert visit(lab, "front1", lab.address("back1")) == lines(lab, "front1", 4)
    assert visit(lab, "world", lab.address("back1", 6)) == lines(lab, "world", 6)


@both_families
def test_without_the_routing_rules_no_packet_passes_the_proxy_by(node: Redirection, lab: Lab, family: int) -> None:
    run_in(lab, NODE, "ip", f"-{family}", "route", "flush", "table", "28262")

    for client in ("front1", NODE):
        with pytest.raises(TimeoutError):
            visit(lab, client, lab.address("back1", family), timeout=SHORT)
    node.call(node.rules.repair, node.call(node.rules.check))


def test_a_change_of_endpoints_changes_members_and_the_end_of_the_proxy_empties_the_sets(
    node: Redirection, lab: Lab
) -> None:
    node.call(node.rules.set_proxied, False)
    assert visit(lab, "front1", lab.address("back1")) == lines(lab, "front1", 4)[1:]
    node.call(node.rules.set_proxied, True)
    assert visit(lab, "front1", lab.address("back1")) == lines(lab, "front1", 4)

    changed = snapshot(lab, NODE, "front1", revision=2)
    node.call(node.rules.release_addresses, changed)
    node.call(node.rules.update, changed)
    assert visit(lab, "world", lab.address("back1")) == lines(lab, "world", 4)[1:]
    node.call(node.rules.update, snapshot(lab, NODE, "back1", NODE, clients=("front1", NODE), revision=3))
    assert visit(lab, "world", lab.address("back1")) == lines(lab, "world", 4)
    assert node.call(node.rules.check) == []


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [Driver.NETLINK, Driver.NETFILTERQUEUE])
async def test_a_syn_waits_for_its_slot(lab: Lab, driver: Driver) -> None:
    held: list[HeldPacket] = []

    def hold(packet: Packet) -> HeldPacket:
        held.append(HeldPacket(Verdict.ACCEPT))
        return held[-1]

    with redirecting(lab, OTHER, snapshot(lab, OTHER, "back2"), driver) as node:
        node.slot_of = hold
        with pytest.raises(TimeoutError):
            visit(lab, "front2", lab.address("back2"), timeout=0.5)
        held_port = node.seen[0].port
        node.slot_of = lambda packet: Redirect(SLOT)
        assert visit(lab, "world", lab.address("back2")) == lines(lab, "world", 4)  # no other packet waits
        held[0].settle(Redirect(SLOT))
        await until(lambda: any(one.way == "to proxy" and one.port == held_port for one in node.seen))


@both_families
@pytest.mark.parametrize("driver", [Driver.NETLINK, Driver.NETFILTERQUEUE])
def test_offloaded_flows_stay_redirected(lab: Lab, driver: Driver, family: int) -> None:
    with redirecting(lab, OTHER, snapshot(lab, OTHER, "back2", OTHER, clients=(OTHER,), epoch=1), driver) as node:
        node.verdict_on = lambda seen: Verdict.ACCEPT if seen.packet.opens else Verdict.OFFLOAD_FLOW
        for client, server in (("front2", "back2"), (OTHER, "world"), ("world", OTHER), (OTHER, OTHER)):
            with Connection(lab, client, lab.address(server, family)) as connection:
                assert [connection.line(), connection.line(), connection.echo("ping")] == lines(lab, client, family)
                before = len(node.seen)
                assert connection.echo("offloaded") == "offloaded"
                assert len(node.seen) == before
                node.call(node.rules.set_epoch, 2)
                assert connection.echo("queued") == "queued"
                assert {one.way for one in node.seen[before:]} == {"to proxy", "from proxy"}
                node.call(node.rules.set_epoch, 1)


def test_nothing_remains(lab: Lab) -> None:
    before = everything(lab)
    with redirecting(lab, OTHER, snapshot(lab, OTHER, "back2")):
        assert everything(lab) != before

    assert everything(lab) == before


def everything(lab: Lab) -> list[str]:
    """Return the rules and routes of the node, without counters."""
    of_family = [("rule",), ("route", "show", "table", "28262")]
    commands = [("ip", family, *words) for family in ("-4", "-6") for words in of_family] + [("nft", "list", "tables")]
    saved = [run_in(lab, OTHER, command) for command in ("iptables-save", "ip6tables-save")]
    rules = [line for text in saved for line in text.splitlines() if "NFQE" in line]
    return [run_in(lab, OTHER, *command) for command in commands] + rules
