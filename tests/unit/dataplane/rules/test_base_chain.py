"""Position of our jumps: before each rule of others that can accept, and after those that cannot."""

import pytest

from nfq_enforcer.dataplane.rules.base_chain import can_accept, changes_mark, place_jump, target

JUMP = "-j NFQE-FORWARD"
ACCEPT, LOG, DROP = "-j ACCEPT", "-p tcp -j LOG --log-prefix x", "-s 10.0.0.0/8 -j DROP"


@pytest.mark.parametrize(
    "rule",
    [
        "-j ACCEPT",
        "-p tcp -m tcp --dport 22 -j ACCEPT",
        "-j RETURN",
        "-j DOCKER-USER",
        "-g OTHERS",
        "-j NFQUEUE --queue-num 5",
        "-j TPROXY --on-port 1",
        '-m comment --comment "x -j DROP" -j ACCEPT',
        '-m comment --comment "no end -j DROP',
    ],
)
def test_rules_that_can_accept(rule: str) -> None:
    assert can_accept(rule)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "-p tcp",
        LOG,
        DROP,
        "-j REJECT --reject-with icmp-port-unreachable",
        "-j SECMARK --selctx system_u:object_r:x_t",
        "-j CONNSECMARK --save",
        '-m comment --comment "-j ACCEPT" -j DROP',
    ],
)
def test_rules_that_cannot_accept(rule: str) -> None:
    assert not can_accept(rule)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("-j MARK --set-xmark 0x0/0xffffffff", True),
        ("-j MARK --set-xmark 0x5/0xff", False),
        ("-j MARK --set-xmark 0x80000000/0x80000000", True),
        ("-j MARK --set-xmark 0x10000000/0x0", True),
        ("-m mark --mark 0x10000000/0xf0000000 -j MARK --set-xmark 0x1/0xfff", False),
        ("-j MARK --set-xmark what", True),
        ("-j MARK", True),
        ("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", True),
        ("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", False),
        ("-j CONNMARK --restore-mark", True),
        ("-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", False),
        ("-p tcp -j HMARK --hmark-src-prefix 32 --hmark-rnd 0x00000001 --hmark-mod 5 --hmark-offset 1", True),
        ("-j SET --map-set marks src --map-mark", True),
        ("-j SET --add-set seen src", False),
        ("-j LOG", False),
        ("-m mark --mark 0x10000000/0xf0000000", False),
        ('-m comment --comment "no end -j MARK', True),
    ],
)
def test_rules_that_change_our_bits_of_the_mark(rule: str, changes: bool) -> None:
    assert changes_mark(rule) is changes


def test_a_jump_whose_chain_matches_marks_precedes_rules_that_change_them() -> None:
    mark = "-j MARK --set-xmark 0x0/0xffffffff"
    assert place_jump("FORWARD", "NFQE-FORWARD", [LOG, mark, JUMP], first=False) == [
        f"-D FORWARD {JUMP}",
        f"-I FORWARD 2 {JUMP}",
    ]
    assert place_jump("FORWARD", "NFQE-FORWARD", [mark, JUMP], first=True) == []


def test_the_target_is_the_last_one_outside_of_quotes() -> None:
    assert target('-m comment --comment "a -j b" -g OTHERS') == "OTHERS"
    assert target('-m comment --comment "a -j b"') is None


@pytest.mark.parametrize(
    "rules", [[JUMP], [JUMP, ACCEPT], [LOG, DROP, JUMP, ACCEPT], [JUMP, LOG, JUMP], [JUMP, ACCEPT, JUMP]]
)
@pytest.mark.parametrize("first", [False, True])
def test_a_jump_in_its_place_stays(rules: list[str], first: bool) -> None:
    assert place_jump("FORWARD", "NFQE-FORWARD", rules, first=first) == []


@pytest.mark.parametrize(
    ("rules", "lines"),
    [
        ([], [f"-A FORWARD {JUMP}"]),
        ([LOG, DROP], [f"-A FORWARD {JUMP}"]),
        ([LOG, ACCEPT, DROP], [f"-I FORWARD 2 {JUMP}"]),
        ([ACCEPT, JUMP], [f"-D FORWARD {JUMP}", f"-I FORWARD 1 {JUMP}"]),
        ([LOG, "-j OTHERS", JUMP, DROP, JUMP], [*[f"-D FORWARD {JUMP}"] * 2, f"-I FORWARD 2 {JUMP}"]),
    ],
)
def test_a_jump_out_of_its_place_is_moved_before_the_first_rule_that_can_accept(
    rules: list[str], lines: list[str]
) -> None:
    assert place_jump("FORWARD", "NFQE-FORWARD", rules, first=False) == lines


def test_a_jump_that_comes_first_is_inserted_at_the_first_place() -> None:
    assert place_jump("OUTPUT", "NFQE-UNMARK", [LOG], first=True) == ["-I OUTPUT 1 -j NFQE-UNMARK"]
    assert place_jump("OUTPUT", "NFQE-UNMARK", [ACCEPT, "-j NFQE-UNMARK"], first=True) == [
        "-D OUTPUT -j NFQE-UNMARK",
        "-I OUTPUT 1 -j NFQE-UNMARK",
    ]
