"""The rules, as text, in both families: queued packets, exempt packets, sets, removal."""

import re
from ipaddress import ip_address

import pytest

from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, allocate_queues
from nfq_enforcer.dataplane.rules import ruleset
from nfq_enforcer.dataplane.rules.offload_rules import PerFlowRules
from nfq_enforcer.dataplane.rules.ruleset import HOOKS, IPV4, IPV6, AddressFamily, Ruleset
from tests.support.packets import icmp

CLOSED = Ruleset([QueueNumbers(100, 100, 100)], fail_open=False, cluster_mtus={"eth1": 9000, "eth0": 1500})
OPEN = Ruleset([QueueNumbers(7, 8, 9)], fail_open=True, cluster_mtus={})
HOOKED = {(table, base): [f"-j {chain}"] for table, hooks in HOOKS.items() for base, chain in hooks.items()}
BASE_CHAINS = {base for _, base in HOOKED}
ALL_CHAINS = {(table, chain) for table, chains in ruleset.CHAINS.items() for chain in chains}

V4 = """\
*mangle
:NFQE-MSS-IN - [0:0]
:NFQE-MSS-OUT - [0:0]
:NFQE-UNMARK - [0:0]
-A NFQE-MSS-IN -i eth0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1452
-A NFQE-MSS-OUT -o eth0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1452
-A NFQE-MSS-IN -i eth1 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 8952
-A NFQE-MSS-OUT -o eth1 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 8952
-I PREROUTING 1 -j NFQE-MSS-IN
-I POSTROUTING 1 -j NFQE-MSS-OUT
COMMIT
*security
:NFQE-INPUT - [0:0]
:NFQE-FORWARD - [0:0]
:NFQE-OUTPUT - [0:0]
:NFQE-MARKED - [0:0]
:NFQE-SIGNED - [0:0]
:NFQE-TOLD - [0:0]
:NFQE-ICMPV6 - [0:0]
:NFQE-ENDS - [0:0]
:NFQE-SOURCE - [0:0]
:NFQE-QUEUE - [0:0]
:NFQE-ERRORS - [0:0]
-A NFQE-FORWARD -o eth0 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-FORWARD -o eth1 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-OUTPUT -o eth0 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-OUTPUT -o eth1 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-OUTPUT -p tcp -m set --match-set nfqe-store4 dst,dst -m conntrack --ctdir ORIGINAL -j RETURN
-A NFQE-INPUT -p tcp -m set --match-set nfqe-store4 src,src -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN
-A NFQE-INPUT -i lo -j RETURN
-A NFQE-INPUT -g NFQE-ENDS
-A NFQE-FORWARD -g NFQE-ENDS
-A NFQE-OUTPUT -g NFQE-ENDS
-A NFQE-ENDS -m set --match-set nfqe-local4 src -j NFQE-QUEUE
-A NFQE-ENDS -m set --match-set nfqe-local4 dst -j NFQE-QUEUE
-A NFQE-ENDS -g NFQE-SOURCE
-A NFQE-SOURCE -i veth-a -j NFQE-QUEUE
-A NFQE-SOURCE -i veth-b -j NFQE-QUEUE
-A NFQE-QUEUE -m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED -j NFQUEUE --queue-num 100
-A INPUT -j NFQE-INPUT
-A FORWARD -j NFQE-FORWARD
-A OUTPUT -j NFQE-OUTPUT
COMMIT
"""

V6 = """\
*mangle
:NFQE-MSS-IN - [0:0]
:NFQE-MSS-OUT - [0:0]
:NFQE-UNMARK - [0:0]
-I PREROUTING 1 -j NFQE-MSS-IN
-I POSTROUTING 1 -j NFQE-MSS-OUT
COMMIT
*security
:NFQE-INPUT - [0:0]
:NFQE-FORWARD - [0:0]
:NFQE-OUTPUT - [0:0]
:NFQE-MARKED - [0:0]
:NFQE-SIGNED - [0:0]
:NFQE-TOLD - [0:0]
:NFQE-ICMPV6 - [0:0]
:NFQE-ENDS - [0:0]
:NFQE-SOURCE - [0:0]
:NFQE-QUEUE - [0:0]
:NFQE-ERRORS - [0:0]
-A NFQE-OUTPUT -p tcp -m set --match-set nfqe-store6 dst,dst -m conntrack --ctdir ORIGINAL -j RETURN
-A NFQE-INPUT -p tcp -m set --match-set nfqe-store6 src,src -m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN
-A NFQE-INPUT -i lo -j RETURN
-A NFQE-INPUT -p ipv6-icmp -g NFQE-ICMPV6
-A NFQE-OUTPUT -p ipv6-icmp -g NFQE-ICMPV6
-A NFQE-INPUT -g NFQE-ENDS
-A NFQE-FORWARD -g NFQE-ENDS
-A NFQE-OUTPUT -g NFQE-ENDS
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 130 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 131 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 132 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 143 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -g NFQE-ENDS
-A NFQE-ENDS -m set --match-set nfqe-local6 src -j NFQE-QUEUE
-A NFQE-ENDS -m set --match-set nfqe-local6 dst -j NFQE-QUEUE
-A NFQE-ENDS -g NFQE-SOURCE
-A NFQE-QUEUE -m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED -j NFQUEUE --queue-num 7 --queue-bypass
-A INPUT -j NFQE-INPUT
-A FORWARD -j NFQE-FORWARD
-A OUTPUT -j NFQE-OUTPUT
COMMIT
"""


def test_rules_of_ipv4_that_fail_closed() -> None:
    assert ruleset.render(CLOSED, IPV4, ["veth-b", "veth-a", "veth-b"], {}) == V4


def test_rules_of_ipv6_that_fail_open_with_no_interface_to_guard_or_clamp() -> None:
    assert ruleset.render(OPEN, IPV6, [], {}) == V6


def test_only_hooks_that_are_missing_are_set() -> None:
    text = ruleset.render(
        CLOSED, IPV4, [], {key: rules for key, rules in HOOKED.items() if key != ("security", "FORWARD")}
    )

    assert [line for line in text.splitlines() if set(line.split()[1:2]) & BASE_CHAINS] == [
        "-A FORWARD -j NFQE-FORWARD"
    ]


@pytest.mark.parametrize(
    ("mtu", "family", "segmented", "unsegmented"),
    [(1500, IPV4, 1452, 1404), (1500, IPV6, 1424, 1376), (9000, IPV4, 8952, 8904), (9000, IPV6, 8924, 8876)],
)
def test_the_largest_segment_leaves_room_for_headers_and_stamp(
    mtu: int, family: AddressFamily, segmented: int, unsegmented: int
) -> None:
    assert ruleset.mss(mtu, family, unsegmented=False) == segmented
    assert ruleset.mss(mtu, family, unsegmented=True) == unsegmented


def test_what_leaves_by_a_cluster_interface_meets_a_queue_of_its_own_where_there_is_one() -> None:
    rules = Ruleset([QueueNumbers(100, 101, 102)], fail_open=True, cluster_mtus={"eth1": 9000, "eth0": 1500})

    lines = ruleset.render(rules, IPV4, [], HOOKED).splitlines()

    assert [line for line in lines if "NFQUEUE" in line] == [
        "-A NFQE-QUEUE -o eth0 -j NFQUEUE --queue-num 101 --queue-bypass",
        "-A NFQE-QUEUE -o eth1 -j NFQUEUE --queue-num 101 --queue-bypass",
        "-A NFQE-QUEUE -m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED "
        "-j NFQUEUE --queue-num 100 --queue-bypass",
    ]
    assert [line.split()[-1] for line in lines if "TCPMSS" in line] == ["1404", "1404", "8904", "8904"]


@pytest.mark.parametrize(
    ("fail_open", "bypass"),
    [(False, ""), (True, " --queue-bypass")],
)
def test_several_workers_have_their_queues_in_rows_and_the_first_gets_every_icmp_error(
    fail_open: bool, bypass: str
) -> None:
    rules = Ruleset(allocate_queues(100, 3), fail_open, cluster_mtus={"eth0": 1500})

    lines = {
        family: [line for line in ruleset.render(rules, family, [], HOOKED).splitlines() if "-A NFQE-QUEUE" in line]
        for family in (IPV4, IPV6)
    }
    errors = {
        family: [line for line in ruleset.render(rules, family, [], HOOKED).splitlines() if "-A NFQE-ERRO" in line]
        for family in (IPV4, IPV6)
    }

    assert lines == {
        family: [
            f"-A NFQE-QUEUE -p {proto} -j NFQE-ERRORS",
            f"-A NFQE-QUEUE -o eth0 -j NFQUEUE --queue-balance 103:105{bypass}",
            "-A NFQE-QUEUE -m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED "
            f"-j NFQUEUE --queue-balance 100:102{bypass}",
        ]
        for family, proto in ((IPV4, "icmp"), (IPV6, "ipv6-icmp"))
    }
    assert errors[IPV4] == [
        f"-A NFQE-ERRORS -p icmp -m icmp --icmp-type {kind} -j NFQUEUE --queue-num 100{bypass}" for kind in (3, 11, 12)
    ]
    assert errors[IPV6] == [
        f"-A NFQE-ERRORS -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j NFQUEUE --queue-num 100{bypass}"
        for kind in (1, 2, 3, 4)
    ]


def test_what_the_rules_take_for_an_icmp_error_is_one() -> None:
    """Any other ICMP message is decided by the worker of its addresses and need not go to the first."""
    rules = Ruleset(allocate_queues(100, 2), fail_open=False, cluster_mtus={})
    for family, source, target in ((IPV4, "10.0.0.1", "10.0.0.2"), (IPV6, "fd00::1", "fd00::2")):
        text = ruleset.render(rules, family, [], HOOKED)
        found = {int(kind) for kind in re.findall(r"-A NFQE-ERRORS .*-type (\d+) ", text)}

        assert found == {kind for kind in range(256) if parse(icmp(source, target, kind, 0, bytes(4))).error}


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_where_the_kernel_passes_flows_their_marks_come_before_all_else(family: AddressFamily) -> None:
    rules = Ruleset(
        [QueueNumbers(100, 101, 102)], fail_open=False, cluster_mtus={"eth0": 1500}, offload=PerFlowRules(2)
    )

    lines = ruleset.render(rules, family, [], {}).splitlines()

    assert "-I OUTPUT 1 -j NFQE-UNMARK" in lines
    options = {4: '-m u32 --u32 "0x0>>0x18&0xf=0x6:0xf"', 6: "-m ipv6header --header dst --soft"}[family.version]
    undecided = f"-o eth0 {options} -m mark ! --mark 0x40000000/0x40000000 -g NFQE-QUEUE"
    for chain, stamps in (("INPUT", []), ("FORWARD", [undecided]), ("OUTPUT", [undecided])):
        expected = [f"-A NFQE-{chain} {rule}" for rule in (*stamps, "-j NFQE-MARKED")]
        assert [line for line in lines if f"-A NFQE-{chain} " in line][: len(expected)] == expected
    assert [line for line in lines if "-A NFQE-QUEUE" in line][:2] == [
        "-A NFQE-QUEUE -j MARK --set-xmark 0x0/0x70000000",
        "-A NFQE-QUEUE -m connmark ! --mark 0x0/0xffffff00 -j NFQE-TOLD",
    ]
    told = "-A NFQE-TOLD -m conntrack --ctstate ESTABLISHED --ctdir"
    assert [line for line in lines if "-A NFQE-TOLD" in line] == [
        f"{told} ORIGINAL -j MARK --set-xmark 0x10000000/0x70000000",
        f"{told} REPLY -j MARK --set-xmark 0x20000000/0x70000000",
    ]
    for chain in ("MSS-IN", "MSS-OUT", "UNMARK"):
        unmark = f"-A NFQE-{chain} -m mark ! --mark 0x0/0x70000000 -j MARK --set-xmark 0x0/0x70000000"
        assert next(line for line in lines if f"-A NFQE-{chain} " in line) == unmark
    of_epoch = [line for line in ruleset.render_epoch(PerFlowRules(2)).splitlines() if line.startswith("-A")]
    assert [line for line in lines if re.match("-A NFQE-(MARKED|SIGNED) ", line)] == of_epoch


def test_an_epoch_is_replaced_alone_and_at_once() -> None:
    """The first two rules do not match a connmark of the last epoch, nor the last CONNMARK rules a request of it."""
    assert ruleset.render_epoch(PerFlowRules(2)) == (
        "*security\n"
        ":NFQE-MARKED - [0:0]\n"
        ":NFQE-SIGNED - [0:0]\n"
        "-A NFQE-MARKED -m connmark --mark 0x900/0xffffff00 -m conntrack --ctstate ESTABLISHED -j ACCEPT\n"
        "-A NFQE-MARKED -m connmark --mark 0x800/0xffffff00 -m conntrack --ctstate NEW,ESTABLISHED --ctdir ORIGINAL "
        "-j ACCEPT\n"
        "-A NFQE-MARKED -m mark --mark 0x40000000/0x40000000 -g NFQE-SIGNED\n"
        "-A NFQE-SIGNED -j CONNMARK --set-xmark 0x200/0xffffff00\n"
        "-A NFQE-SIGNED -m mark --mark 0x60000000/0x70000000 -j CONNMARK --set-xmark 0x900/0xffffff00\n"
        "-A NFQE-SIGNED -m mark --mark 0x40000000/0x70000000 -j CONNMARK --set-xmark 0x800/0xffffff00\n"
        "-A NFQE-SIGNED -j MARK --set-xmark 0x0/0x70000000\n"
        "-A NFQE-SIGNED -j ACCEPT\n"
        "COMMIT\n"
    )


def test_where_no_epoch_is_in_force_nothing_passes_unseen_and_no_packet_goes_round() -> None:
    lines = ruleset.render_epoch(PerFlowRules(None)).splitlines()

    assert [line for line in lines if line.startswith("-A")] == [
        "-A NFQE-MARKED -m mark --mark 0x40000000/0x40000000 -g NFQE-SIGNED",
        "-A NFQE-SIGNED -j CONNMARK --set-xmark 0x200/0xffffff00",
        "-A NFQE-SIGNED -j MARK --set-xmark 0x0/0x70000000",
        "-A NFQE-SIGNED -j ACCEPT",
    ]


def test_the_interfaces_of_endpoints_are_replaced_alone() -> None:
    assert ruleset.render_sources(["veth-b", "veth-a"]) == (
        "*security\n"
        ":NFQE-SOURCE - [0:0]\n"
        "-A NFQE-SOURCE -i veth-a -j NFQE-QUEUE\n"
        "-A NFQE-SOURCE -i veth-b -j NFQE-QUEUE\n"
        "COMMIT\n"
    )


def test_removal_unhooks_first_and_deletes_chains_when_all_are_empty() -> None:
    assert ruleset.render_removal([*HOOKED], ALL_CHAINS) == (
        "*security\n"
        "-D INPUT -j NFQE-INPUT\n"
        "-D FORWARD -j NFQE-FORWARD\n"
        "-D OUTPUT -j NFQE-OUTPUT\n"
        "-F NFQE-INPUT\n"
        "-F NFQE-FORWARD\n"
        "-F NFQE-OUTPUT\n"
        "-F NFQE-MARKED\n"
        "-F NFQE-SIGNED\n"
        "-F NFQE-TOLD\n"
        "-F NFQE-ICMPV6\n"
        "-F NFQE-ENDS\n"
        "-F NFQE-SOURCE\n"
        "-F NFQE-QUEUE\n"
        "-F NFQE-ERRORS\n"
        "-X NFQE-INPUT\n"
        "-X NFQE-FORWARD\n"
        "-X NFQE-OUTPUT\n"
        "-X NFQE-MARKED\n"
        "-X NFQE-SIGNED\n"
        "-X NFQE-TOLD\n"
        "-X NFQE-ICMPV6\n"
        "-X NFQE-ENDS\n"
        "-X NFQE-SOURCE\n"
        "-X NFQE-QUEUE\n"
        "-X NFQE-ERRORS\n"
        "COMMIT\n"
        "*mangle\n"
        "-D PREROUTING -j NFQE-MSS-IN\n"
        "-D POSTROUTING -j NFQE-MSS-OUT\n"
        "-D OUTPUT -j NFQE-UNMARK\n"
        "-F NFQE-MSS-IN\n"
        "-F NFQE-MSS-OUT\n"
        "-F NFQE-UNMARK\n"
        "-X NFQE-MSS-IN\n"
        "-X NFQE-MSS-OUT\n"
        "-X NFQE-UNMARK\n"
        "COMMIT\n"
    )


def test_removal_touches_only_what_is_there() -> None:
    text = ruleset.render_removal([("security", "INPUT")], {("security", "NFQE-QUEUE")})

    assert text == "*security\n-D INPUT -j NFQE-INPUT\n-F NFQE-QUEUE\n-X NFQE-QUEUE\nCOMMIT\n"


def test_where_nothing_is_there_nothing_is_removed() -> None:
    assert ruleset.render_removal([], set()) == ""


@pytest.mark.parametrize(
    ("family", "name", "kind", "addresses"),
    [
        (IPV4, "nfqe-local4", "inet", ["10.0.0.1", "10.0.0.2"]),
        (IPV6, "nfqe-local6", "inet6", ["fd00::1", "fd00::2"]),
    ],
)
def test_a_set_is_filled_aside_and_swapped_in(
    family: AddressFamily, name: str, kind: str, addresses: list[str]
) -> None:
    assert ruleset.render_set(family, addresses) == (
        f"create {name} hash:ip family {kind} maxelem 1048576 -exist\n"
        f"create {name}-new hash:ip family {kind} maxelem 1048576 -exist\n"
        f"flush {name}-new\n"
        f"add {name}-new {addresses[0]}\n"
        f"add {name}-new {addresses[1]}\n"
        f"swap {name}-new {name}\n"
        f"destroy {name}-new\n"
    )


STORE = [(ip_address("10.0.0.9"), 6379), (ip_address("fd00::9"), 6379), (ip_address("10.0.0.9"), 26379)]


@pytest.mark.parametrize(
    ("family", "name", "kind", "members"),
    [
        (IPV4, "nfqe-store4", "inet", ["10.0.0.9,tcp:6379", "10.0.0.9,tcp:26379"]),
        (IPV6, "nfqe-store6", "inet6", ["fd00::9,tcp:6379"]),
    ],
)
def test_the_set_of_the_store_has_what_is_of_its_family(
    family: AddressFamily, name: str, kind: str, members: list[str]
) -> None:
    assert ruleset.render_store(family, STORE).splitlines() == [
        f"create {name} hash:ip,port family {kind} -exist",
        f"create {name}-new hash:ip,port family {kind} -exist",
        f"flush {name}-new",
        *(f"add {name}-new {member}" for member in members),
        f"swap {name}-new {name}",
        f"destroy {name}-new",
    ]


def test_names_fit_into_what_the_kernel_has_room_for() -> None:
    chains = {chain for chains in ruleset.CHAINS.values() for chain in chains}

    assert all(len(chain) <= 28 for chain in chains)  # XT_EXTENSION_MAXNAMELEN - 1
    sets = {name for family in (IPV4, IPV6) for name in (family.ipset, family.store)}
    assert all(len(f"{name}-new") <= 31 for name in sets)  # IPSET_MAXNAMELEN - 1
