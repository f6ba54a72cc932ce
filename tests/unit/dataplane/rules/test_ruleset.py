"""The rules, as text, in both families: queued packets, exempt packets, sets, removal."""

import re

import pytest

from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers, allocate_queues
from nfq_enforcer.dataplane.rules import ruleset
from nfq_enforcer.dataplane.rules.offload_rules import PerFlowRules
from nfq_enforcer.dataplane.rules.opening_rules import Budgets
from nfq_enforcer.dataplane.rules.ruleset import HOOKS, IPV4, IPV6, AddressFamily, Ruleset
from tests.support.packets import icmp

CLOSED = Ruleset([QueueNumbers(100, 100, 100, 148, 149)], fail_open=False, cluster_mtus={"eth1": 9000, "eth0": 1500})
OPEN = Ruleset([QueueNumbers(7, 23, 39, 55, 56)], fail_open=True, cluster_mtus={})
HOOKED = {(table, base): [f"-j {chain}"] for table, hooks in HOOKS.items() for base, chain in hooks.items()}
BASE_CHAINS = {base for _, base in HOOKED}

V4 = """\
*mangle
:NFQE-MSS-IN - [0:0]
:NFQE-MSS-OUT - [0:0]
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
:NFQE-IGMP - [0:0]
:NFQE-QUEUE - [0:0]
:NFQE-KNOWN - [0:0]
:NFQE-OPENINGS - [0:0]
:NFQE-EXCESS - [0:0]
-A NFQE-FORWARD -o eth0 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-FORWARD -o eth1 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-OUTPUT -o eth0 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-OUTPUT -o eth1 -m u32 --u32 "0x0>>0x18&0xf=0x6:0xf" -g NFQE-QUEUE
-A NFQE-INPUT -p igmp -g NFQE-IGMP
-A NFQE-OUTPUT -p igmp -g NFQE-IGMP
-A NFQE-IGMP -d 224.0.0.0/4 -p igmp -m ttl --ttl-eq 1 -m u32 --u32 "0x0>>0x16&0x3c@0x0>>0x18=0x12,0x16:0x17,0x22" \
-j RETURN
-A NFQE-IGMP -d 224.0.0.0/4 -p igmp -m ttl --ttl-eq 1 -m addrtype --src-type LOCAL -j RETURN
-A NFQE-IGMP -d 224.0.0.0/4 -p igmp -m ttl --ttl-eq 1 -m mark ! --mark 0x10000000/0xf0000000 -j RETURN
-A NFQE-IGMP -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-INPUT -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-FORWARD -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-OUTPUT -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-QUEUE -m conntrack --ctstate ESTABLISHED -g NFQE-KNOWN
-A NFQE-QUEUE ! -p tcp -m conntrack --ctstate NEW --ctstatus CONFIRMED -g NFQE-KNOWN
-A NFQE-QUEUE -g NFQE-OPENINGS
-A NFQE-KNOWN -j NFQUEUE --queue-balance 100:115
-A NFQE-OPENINGS -j NFQUEUE --queue-num 148
-A NFQE-EXCESS -j NFQUEUE --queue-num 149
-A INPUT -j NFQE-INPUT
-A FORWARD -j NFQE-FORWARD
-A OUTPUT -j NFQE-OUTPUT
COMMIT
"""

V6 = """\
*mangle
:NFQE-MSS-IN - [0:0]
:NFQE-MSS-OUT - [0:0]
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
:NFQE-IGMP - [0:0]
:NFQE-QUEUE - [0:0]
:NFQE-KNOWN - [0:0]
:NFQE-OPENINGS - [0:0]
:NFQE-EXCESS - [0:0]
-A NFQE-INPUT -p ipv6-icmp -g NFQE-ICMPV6
-A NFQE-FORWARD -p ipv6-icmp -m hl --hl-eq 255 -g NFQE-ICMPV6
-A NFQE-OUTPUT -p ipv6-icmp -g NFQE-ICMPV6
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 133 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 136 -m hl --hl-eq 255 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 131 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 132 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 143 -m hl --hl-eq 1 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 -m addrtype --src-type LOCAL -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 -m addrtype --src-type LOCAL -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 130 -m hl --hl-eq 1 -m addrtype --src-type LOCAL -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 134 -m hl --hl-eq 255 \
-m mark ! --mark 0x10000000/0xf0000000 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 137 -m hl --hl-eq 255 \
-m mark ! --mark 0x10000000/0xf0000000 -j RETURN
-A NFQE-ICMPV6 -p ipv6-icmp -m icmp6 --icmpv6-type 130 -m hl --hl-eq 1 \
-m mark ! --mark 0x10000000/0xf0000000 -j RETURN
-A NFQE-ICMPV6 -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-INPUT -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-FORWARD -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-OUTPUT -m mark ! --mark 0x0/0xf0000000 -g NFQE-QUEUE
-A NFQE-QUEUE -m conntrack --ctstate ESTABLISHED -g NFQE-KNOWN
-A NFQE-QUEUE ! -p tcp -m conntrack --ctstate NEW --ctstatus CONFIRMED -g NFQE-KNOWN
-A NFQE-QUEUE -g NFQE-OPENINGS
-A NFQE-KNOWN -j NFQUEUE --queue-balance 7:22 --queue-bypass
-A NFQE-OPENINGS -j NFQUEUE --queue-num 55 --queue-bypass
-A NFQE-EXCESS -j NFQUEUE --queue-num 56 --queue-bypass
-A INPUT -j NFQE-INPUT
-A FORWARD -j NFQE-FORWARD
-A OUTPUT -j NFQE-OUTPUT
COMMIT
"""


def test_rules_of_ipv4_that_fail_closed() -> None:
    assert ruleset.render(CLOSED, IPV4, {}) == V4


def test_rules_of_ipv6_that_fail_open_with_no_interface_to_clamp() -> None:
    assert ruleset.render(OPEN, IPV6, {}) == V6


def test_only_hooks_that_are_missing_are_set() -> None:
    text = ruleset.render(CLOSED, IPV4, {key: rules for key, rules in HOOKED.items() if key != ("security", "FORWARD")})

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
    rules = Ruleset([QueueNumbers(100, 116, 132, 148, 149)], fail_open=True, cluster_mtus={"eth1": 9000, "eth0": 1500})

    lines = ruleset.render(rules, IPV4, HOOKED).splitlines()

    assert [line for line in lines if "NFQUEUE" in line] == [
        "-A NFQE-KNOWN -o eth0 -j NFQUEUE --queue-balance 116:131 --queue-bypass",
        "-A NFQE-KNOWN -o eth1 -j NFQUEUE --queue-balance 116:131 --queue-bypass",
        "-A NFQE-KNOWN -j NFQUEUE --queue-balance 100:115 --queue-bypass",
        "-A NFQE-OPENINGS -j NFQUEUE --queue-num 148 --queue-bypass",
        "-A NFQE-EXCESS -j NFQUEUE --queue-num 149 --queue-bypass",
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

    lines = {family: ruleset.render(rules, family, HOOKED).splitlines() for family in (IPV4, IPV6)}

    assert [line for line in lines[IPV4] if "NFQUEUE" in line] == [
        f"-A NFQE-KNOWN -o eth0 -j NFQUEUE --queue-balance 148:195{bypass}",
        f"-A NFQE-KNOWN -j NFQUEUE --queue-balance 100:147{bypass}",
        *(
            f"-A NFQE-OPENINGS -p icmp -m icmp --icmp-type {kind} -j NFQUEUE --queue-num 244{bypass}"
            for kind in (3, 11, 12)
        ),
        f"-A NFQE-OPENINGS -j NFQUEUE --queue-balance 244:246{bypass}",
        *(
            f"-A NFQE-EXCESS -p icmp -m icmp --icmp-type {kind} -j NFQUEUE --queue-num 247{bypass}"
            for kind in (3, 11, 12)
        ),
        f"-A NFQE-EXCESS -j NFQUEUE --queue-balance 247:249{bypass}",
    ]
    assert [line for line in lines[IPV6] if "icmp6" in line and "NFQE-OPENINGS" in line] == [
        f"-A NFQE-OPENINGS -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j NFQUEUE --queue-num 244{bypass}"
        for kind in (1, 2, 3, 4)
    ]


def test_what_the_rules_take_for_an_icmp_error_is_one() -> None:
    """Any other ICMP message is decided by the worker of its addresses and need not go to the first."""
    rules = Ruleset(allocate_queues(100, 2), fail_open=False, cluster_mtus={})
    for family, source, target in ((IPV4, "10.0.0.1", "10.0.0.2"), (IPV6, "fd00::1", "fd00::2")):
        text = ruleset.render(rules, family, HOOKED)
        found = {int(kind) for kind in re.findall(r"-A NFQE-OPENINGS .*-type (\d+) ", text)}

        assert found == {kind for kind in range(256) if parse(icmp(source, target, kind, 0, bytes(4))).error}


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_where_the_kernel_passes_flows_their_marks_come_before_all_else(family: AddressFamily) -> None:
    rules = Ruleset(
        [QueueNumbers(100, 116, 132, 148, 149)], fail_open=False, cluster_mtus={"eth0": 1500}, offload=PerFlowRules(2)
    )

    lines = ruleset.render(rules, family, {}).splitlines()

    options = {4: '-m u32 --u32 "0x0>>0x18&0xf=0x6:0xf"', 6: "-m ipv6header --header dst --soft"}[family.version]
    undecided = f"-o eth0 {options} -m mark ! --mark 0x40000000/0x40000000 -g NFQE-QUEUE"
    for chain, stamps in (("INPUT", []), ("FORWARD", [undecided]), ("OUTPUT", [undecided])):
        expected = [f"-A NFQE-{chain} {rule}" for rule in (*stamps, "-j NFQE-MARKED")]
        assert [line for line in lines if f"-A NFQE-{chain} " in line][: len(expected)] == expected
    retired = "-A NFQE-KNOWN -m connmark ! --mark 0x0/0x1fffff00 -j NFQE-TOLD"
    assert next(line for line in lines if "-A NFQE-KNOWN" in line) == retired
    told = "-A NFQE-TOLD -m conntrack --ctstate ESTABLISHED --ctdir"
    assert [line for line in lines if "-A NFQE-TOLD" in line] == [
        f"{told} ORIGINAL -j MARK --set-xmark 0x90000000/0xf0000000",
        f"{told} REPLY -j MARK --set-xmark 0x30000000/0xf0000000",
    ]
    of_epoch = [line for line in ruleset.render_epoch(PerFlowRules(2), family).splitlines() if line.startswith("-A")]
    assert [line for line in lines if re.match("-A NFQE-(MARKED|SIGNED) ", line)] == of_epoch


def test_an_epoch_is_replaced_alone_and_at_once() -> None:
    """The first two rules do not match a connmark of the last epoch, nor the last CONNMARK rules a request of it."""
    plain = '-m u32 ! --u32 "0x0>>0x18&0xf=0x6:0xf"'
    stamped = '-m u32 --u32 "0x0>>0x18&0xf=0x7&&0x14=0x9e081000&&0x18=0x100:0xffffff"'
    flow = "-A NFQE-MARKED -m connmark --mark 0x900/0x1fffff00 -m conntrack --ctstate NEW,ESTABLISHED"
    opener = (
        "-A NFQE-MARKED -m connmark --mark 0x800/0x1fffff00 -m conntrack --ctstate NEW,ESTABLISHED --ctdir ORIGINAL"
    )
    assert ruleset.render_epoch(PerFlowRules(2), IPV4) == (
        "*security\n"
        ":NFQE-MARKED - [0:0]\n"
        ":NFQE-SIGNED - [0:0]\n"
        f"{flow} {plain} -j ACCEPT\n"
        f"{opener} {plain} -j ACCEPT\n"
        f"{flow} {stamped} -j ACCEPT\n"
        f"{opener} {stamped} -j ACCEPT\n"
        "-A NFQE-MARKED -m mark --mark 0x40000000/0x40000000 -g NFQE-SIGNED\n"
        "-A NFQE-SIGNED -j CONNMARK --set-xmark 0x200/0x1fffff00\n"
        "-A NFQE-SIGNED -m mark --mark 0x60000000/0xf0000000 -j CONNMARK --set-xmark 0x900/0x1fffff00\n"
        "-A NFQE-SIGNED -m mark --mark 0x40000000/0xf0000000 -j CONNMARK --set-xmark 0x800/0x1fffff00\n"
        "-A NFQE-SIGNED -j ACCEPT\n"
        "COMMIT\n"
    )


def test_where_no_epoch_is_in_force_nothing_passes_unseen_and_no_packet_goes_round() -> None:
    lines = ruleset.render_epoch(PerFlowRules(None), IPV4).splitlines()

    assert [line for line in lines if line.startswith("-A")] == [
        "-A NFQE-MARKED -m mark --mark 0x40000000/0x40000000 -g NFQE-SIGNED",
        "-A NFQE-SIGNED -j CONNMARK --set-xmark 0x200/0x1fffff00",
        "-A NFQE-SIGNED -j ACCEPT",
    ]


def test_removal_unhooks_first_and_deletes_chains_when_all_are_empty() -> None:
    jumps = [("security", "INPUT", "-j NFQE-INPUT"), ("mangle", "PREROUTING", "-m mark --mark 0x1 -g NFQE-OLD")]
    chains = {("security", "NFQE-QUEUE"), ("security", "NFQE-INPUT"), ("mangle", "NFQE-OLD")}

    assert ruleset.render_removal(jumps, chains) == (
        "*security\n"
        "-D INPUT -j NFQE-INPUT\n"
        "-F NFQE-INPUT\n"
        "-F NFQE-QUEUE\n"
        "-X NFQE-INPUT\n"
        "-X NFQE-QUEUE\n"
        "COMMIT\n"
        "*mangle\n"
        "-D PREROUTING -m mark --mark 0x1 -g NFQE-OLD\n"
        "-F NFQE-OLD\n"
        "-X NFQE-OLD\n"
        "COMMIT\n"
    )


def test_where_nothing_is_there_nothing_is_removed() -> None:
    assert ruleset.render_removal([], set()) == ""


def test_chain_names_fit_into_the_kernels_limit_and_have_the_prefix() -> None:
    chains = {chain for chains in ruleset.CHAINS.values() for chain in chains}

    assert all(chain.startswith(ruleset.PREFIX) for chain in chains)
    assert all(len(chain) <= 28 for chain in chains)  # XT_EXTENSION_MAXNAMELEN - 1


def test_no_rule_names_a_set() -> None:
    """A saved file with the name of a set cannot be restored before the set exists."""
    for rules in (CLOSED, OPEN, Ruleset(allocate_queues(1, 3), True, {"eth0": 1500}, PerFlowRules(2), Budgets())):
        for family in (IPV4, IPV6):
            assert not re.search(r"-m set|--match-set|-j SET", ruleset.render(rules, family, {}))
