"""Removals of the agent's rules and sets by other programs, as shell commands, and the fault that each one causes."""

import struct
import sys
from typing import NamedTuple

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
        for chain in ("NFQE-FORWARD", "NFQE-ENDS", "NFQE-QUEUE")
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
        "accept in a chain of ours", _each("$t -t security -I NFQE-FORWARD -j ACCEPT"), "chain NFQE-FORWARD has 1 other"
    ),
    Removal("delete one rule", _each("$t -t security -D NFQE-ENDS 2"), "chain NFQE-ENDS lacks 1 of 3 rules"),
    Removal("replace one rule", _each("$t -t security -R NFQE-QUEUE 1 -j ACCEPT"), "chain NFQE-QUEUE lacks 1 of"),
    Removal("flush the sets", "ipset flush", "set nfqe-local"),
    Removal(
        "replace the members of the sets",
        "for f in 4 6; do ipset flush nfqe-local$f; done; ipset add nfqe-local4 192.0.2.1",
        "set nfqe-local",
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
