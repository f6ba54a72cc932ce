"""Offload rules, as text: by which the kernel passes established flows without a queue (``datapath: per-flow``).

The mode of the data path is one object here: ``PerPacket`` has no rules, ``PerFlow`` has those of one epoch. So the
ruleset contains no case for the mode.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.rules import connmark

MARKED = "NFQE-MARKED"  # accepts packets of flows with a connmark of the current epoch
SIGNED = "NFQE-SIGNED"  # sets the connmark that the packet mark requests, and accepts the packet
SENDER = "NFQE-TOLD"  # sets in the packet mark which end of a flow with another connmark sent the packet


class OffloadRules(Protocol):
    """Offload rules: those of a data path mode."""

    @property
    def uses_marks(self) -> bool:
        """Return whether packets and flows have marks of ours."""

    @property
    def undecided(self) -> str:
        """Return the match of packets without a verdict; empty: a packet with one never passes the rules again."""

    def entry_rules(self, chains: Iterable[str], queue: str) -> list[str]:
        """Return the rules of the offload: at the start of each entry chain, in chains of its own, before the queue."""

    def cleanup_rules(self, chains: Iterable[str]) -> list[str]:
        """Return the rules of these chains of table mangle that clear our bits of packet marks."""


class PerPacketRules:
    """Per-packet mode: every packet goes through a queue, nothing is offloaded."""

    uses_marks = False
    undecided = ""

    def entry_rules(self, chains: Iterable[str], queue: str) -> list[str]:
        """Return no rules."""
        return []

    def cleanup_rules(self, chains: Iterable[str]) -> list[str]:
        """Return no rules."""
        return []


PER_PACKET = PerPacketRules()


@dataclass(frozen=True)
class PerFlowRules:
    """Per-flow mode: the kernel accepts packets of flows with a connmark of the epoch in force."""

    epoch: int | None  # None: no epoch is in force, so every packet goes through a queue

    uses_marks = True
    undecided = f"-m mark ! --mark {connmark.REQUEST:#x}/{connmark.REQUEST:#x}"

    @property
    def reuses_marks(self) -> bool:
        """Return whether flows may have marks of this epoch from long ago."""
        return self.epoch is not None and connmark.reuses_marks(self.epoch)

    def entry_rules(self, chains: Iterable[str], queue: str) -> list[str]:
        """Return the rules that offload flows, and those that mark packets of once offloaded flows for the worker.

        Only packets of answered flows (ctstate ESTABLISHED) are marked: their direction cannot be forged.
        """
        sender = (
            f"-A {SENDER} -m conntrack --ctstate ESTABLISHED --ctdir {{}} "
            f"-j MARK --set-xmark {{:#x}}/{connmark.PACKET_MASK:#x}"
        )
        return [
            *(f"-A {chain} -j {MARKED}" for chain in chains),
            *self.epoch_rules(),
            f"-A {queue} -j MARK --set-xmark 0x0/{connmark.PACKET_MASK:#x}",
            f"-A {queue} -m connmark ! --mark 0x0/{connmark.MASK:#x} -j {SENDER}",
            sender.format("ORIGINAL", connmark.FROM_OPENER),
            sender.format("REPLY", connmark.FROM_REPLIER),
        ]

    def epoch_rules(self) -> list[str]:
        """Return the rules that depend on the epoch in force, the only ones that a change of epoch replaces.

        A packet whose verdict requests a connmark ends its way here, accepted. A request of another epoch sets RETIRED,
        which offloads nothing but records that the flow has been accepted.
        """
        accept, mark = [], []
        if self.epoch is not None:
            match = f"-A {MARKED} -m connmark --mark {{:#x}}/{connmark.MASK:#x} -m conntrack --ctstate {{}} -j ACCEPT"
            accept = [
                match.format(connmark.flow_mark(self.epoch), "ESTABLISHED"),
                match.format(connmark.opener_mark(self.epoch), "NEW,ESTABLISHED --ctdir ORIGINAL"),
            ]
            set_mark = f"-j CONNMARK --set-xmark {{:#x}}/{connmark.MASK:#x}"
            grant = f"-A {SIGNED} -m mark --mark {{:#x}}/{connmark.PACKET_MASK:#x} {set_mark}"
            mark = [
                grant.format(connmark.request(Verdict.OFFLOAD_FLOW, self.epoch), connmark.flow_mark(self.epoch)),
                grant.format(connmark.request(Verdict.OFFLOAD_OPENER, self.epoch), connmark.opener_mark(self.epoch)),
            ]
        return [
            *accept,
            f"-A {MARKED} -m mark --mark {connmark.REQUEST:#x}/{connmark.REQUEST:#x} -g {SIGNED}",
            f"-A {SIGNED} -j CONNMARK --set-xmark {connmark.RETIRED:#x}/{connmark.MASK:#x}",
            *mark,
            f"-A {SIGNED} -j MARK --set-xmark 0x0/{connmark.PACKET_MASK:#x}",
            f"-A {SIGNED} -j ACCEPT",
        ]

    def cleanup_rules(self, chains: Iterable[str]) -> list[str]:
        """Return the rules that keep our bits of packet marks inside this host's security table.

        A packet that arrives, or that a local program sends with SO_MARK, must not look like one with a verdict. A
        packet that leaves must not show the bits that our rules set.
        """
        field = f"0x0/{connmark.PACKET_MASK:#x}"
        return [f"-A {chain} -m mark ! --mark {field} -j MARK --set-xmark {field}" for chain in chains]


def offload_rules(epoch: int | None) -> OffloadRules:
    """Return the rules for a snapshot's epoch; a snapshot of per-packet mode has none."""
    return PER_PACKET if epoch is None else PerFlowRules(epoch)
