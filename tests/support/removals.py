"""Removals of the agent's rules and sets by other programs, as shell commands, and the fault that each one causes."""

import re
import struct
import sys
from typing import NamedTuple

from nfq_enforcer.dataplane.rules.filter_table import TABLE
from nfq_enforcer.lab.lab import Lab
from tests.support.labs import run_in

_FLUSH_RULESET = """
import socket, sys

with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as connection:
    connection.bind((0, 0))
    connection.send(bytes.fromhex(sys.argv[1]))
"""
_BOTH = "for t in iptables ip6tables; do {}; done"


class Removal(NamedTuple):
    """Removal: a shell command, and a part of the fault that it causes in either family."""

    name: str
    command: str
    fault: str


def _flush_ruleset() -> str:
    """Return the command that does what ``nft flush ruleset`` does: NFT_MSG_DELTABLE without a name, in a batch."""

    def message(kind: int, resource: int, number: int) -> bytes:
        return struct.pack("=IHHII", 20, kind, 1, number, 0) + struct.pack("!BBH", 0, 0, resource)

    batch = message(0x10, 10, 1) + message(10 << 8 | 2, 0, 2) + message(0x11, 10, 3)
    return f"{sys.executable} -c '{_FLUSH_RULESET}' {batch.hex()}"


def _each(commands: str) -> str:
    """Return the shell commands for both families; ``$t`` is the iptables command."""
    return _BOTH.format(commands)


_NO_JUMP = "jump from FORWARD to NFQE-FORWARD is missing"
FLUSHED_RULESET = Removal("nft flush ruleset", _flush_ruleset(), _NO_JUMP)
REMOVALS = (
    Removal("flush", _each("$t -t security -F"), _NO_JUMP),
    Removal(
        "flush and delete",
        _each("$t -t security -F; $t -t security -X"),
        _NO_JUMP,
    ),
    *(
        Removal(f"flush {chain}", _each(f"$t -t security -F {chain}"), f"chain {chain} lacks")
        for chain in ("NFQE-FORWARD", "NFQE-KNOWN", "NFQE-QUEUE")
    ),
    Removal(
        "delete the jump",
        _each("$t -t security -D FORWARD -j NFQE-FORWARD"),
        _NO_JUMP,
    ),
    Removal(
        "accept before the jump",
        _each("$t -t security -I FORWARD -j ACCEPT"),
        "jump from FORWARD to NFQE-FORWARD comes after '-j ACCEPT'",
    ),
    Removal(
        "go to a chain of others before the jump",
        _each("$t -t security -N OTHERS; $t -t security -I FORWARD -g OTHERS"),
        "jump from FORWARD to NFQE-FORWARD comes after '-g OTHERS'",
    ),
    Removal(
        "clear the mark before the jump",
        _each("$t -t security -I FORWARD -j MARK --set-mark 0"),
        "jump from FORWARD to NFQE-FORWARD comes after '-j MARK --set-xmark 0x0/0xffffffff'",
    ),
    Removal(
        "restore the mark of the connection before the jump",
        _each("$t -t security -I FORWARD -j CONNMARK --restore-mark"),
        "jump from FORWARD to NFQE-FORWARD comes after '-j CONNMARK --restore-mark --nfmask 0xffffffff",
    ),
    Removal(
        "accept in a chain of ours", _each("$t -t security -I NFQE-FORWARD -j ACCEPT"), "chain NFQE-FORWARD has 1 other"
    ),
    Removal("delete one rule", _each("$t -t security -D NFQE-QUEUE 2"), "chain NFQE-QUEUE lacks 1 of"),
    Removal("replace one rule", _each("$t -t security -R NFQE-QUEUE 1 -j ACCEPT"), "chain NFQE-QUEUE lacks 1 of"),
    *(
        # one transaction: the agent may repair one set before another command changes the next
        Removal(f"{name} the sets", f"nft '{'; '.join(commands)}'", "set ends4 ")
        for name, commands in (
            ("flush", [f"flush set {TABLE} ends{version}" for version in (4, 6)]),
            (
                "replace the members of",
                [
                    *(f"flush set {TABLE} ends{version}" for version in (4, 6)),
                    f"add element {TABLE} ends4 {{ 192.0.2.1 }}",
                ],
            ),
        )
    ),
    Removal("delete the table of nftables", f"nft delete table {TABLE}", f"table {TABLE}: is missing"),
    Removal("switch the table of nftables off", f"nft add table {TABLE} '{{ flags dormant; }}'", "is switched off"),
    Removal(
        "accept in a chain of nftables",
        f"nft insert rule {TABLE} mark_forward accept",
        "chain mark_forward has other rules",
    ),
    Removal(
        "restore a file of others",
        r"printf '*security\n-A FORWARD -j ACCEPT\nCOMMIT\n*mangle\n-A PREROUTING -j ACCEPT\nCOMMIT\n' > /tmp/$$; "
        + _each("$t-restore < /tmp/$$")
        + "; rm /tmp/$$",
        "security: jump from INPUT to NFQE-INPUT is missing",
    ),
    Removal("flush mangle", _each("$t -t mangle -F"), "mangle: jump from PREROUTING to NFQE-MSS-IN is missing"),
    Removal(
        "accept before the jump in mangle",
        _each("$t -t mangle -I PREROUTING -j ACCEPT"),
        "jump from PREROUTING to NFQE-MSS-IN comes after '-j ACCEPT'",
    ),
)
LOSING = (
    *("nft flush ruleset", "flush and delete", "restore a file of others"),
    *("delete the table of nftables", "switch the table of nftables off"),
)
"""Names of the removals that remove base chains, by which the kernel drops all packets that wait in a queue."""


def remove_foreign(lab: Lab, node: str) -> None:
    """Remove the rules that a removal has added on a node."""
    for command in ("iptables", "ip6tables"):
        for table in ("security", "mangle"):
            for line in run_in(lab, node, f"{command}-save", "-t", table).splitlines():
                if re.fullmatch(r"-A (FORWARD|PREROUTING) -[jg] (ACCEPT|OTHERS|(CONN)?MARK .*)", line):
                    run_in(lab, node, command, "-t", table, *line.replace("-A ", "-D ").split())
