"""Offload rules, as text: by which the kernel passes established flows without a queue (``datapath: per-flow``).

The mode of the data path is one object here: ``PerPacket`` has no rules, ``PerFlow`` has those of one epoch. So the
ruleset contains no case for the mode.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.rules import connmark, packet_mark
from nfq_enforcer.dataplane.rules.option_matches import ONLY_STAMP, WITHOUT_OPTIONS
from nfq_enforcer.dataplane.rules.packet_mark import REQUEST

MARKED = "NFQE-MARKED"  # accepts packets of flows with a connmark of the current epoch
SIGNED = "NFQE-SIGNED"  # sets the connmark that the packet mark requests, and accepts the packet
SENDER = "NFQE-TOLD"  # sets in the packet mark which end of a flow with another connmark sent the packet


class OffloadRules(Protocol):
    """Offload rules: those of a data path mode."""

    @property
    def uses_marks(self) -> bool:
        """Return whether flows have marks of ours."""

    @property
    def undecided(self) -> str:
        """Return the match of packets without a verdict; empty: a packet with one never passes the rules again."""

    def entry_rules(self, chains: Iterable[str], known: str, version: int) -> list[str]:
        """Return the rules of the offload: at the start of each entry chain, in chains of its own, in ``known``.

        ``known``: the chain of packets of known flows.
        """


class PerPacketRules:
    """Per-packet mode: every packet goes through a queue, nothing is offloaded."""

    uses_marks = False
    undecided = ""

    def entry_rules(self, chains: Iterable[str], known: str, version: int) -> list[str]:
        """Return no rules."""
        return []


PER_PACKET = PerPacketRules()


@dataclass(frozen=True)
class PerFlowRules:
    """Per-flow mode: the kernel accepts packets of flows with a connmark of the epoch in force."""

    epoch: int | None  # None: no epoch is in force, so every packet goes through a queue

    uses_marks = True
    undecided = f"-m mark ! --mark {REQUEST:#x}/{REQUEST:#x}"

    @property
    def reuses_marks(self) -> bool:
        """Return whether flows may have marks of this epoch from long ago."""
        return self.epoch is not None and connmark.reuses_marks(self.epoch)

    def entry_rules(self, chains: Iterable[str], known: str, version: int) -> list[str]:
        """Return the rules that offload flows, and those that mark packets of once offloaded flows for the worker.

        Only packets of answered flows (ctstate ESTABLISHED) are marked: their direction cannot be forged.
        """
        sender = (
            f"-A {SENDER} -m conntrack --ctstate ESTABLISHED --ctdir {{}} "
            f"-j MARK --set-xmark {{:#x}}/{packet_mark.MASK:#x}"
        )
        return [
            *(f"-A {chain} -j {MARKED}" for chain in chains),
            *self.epoch_rules(version),
            f"-A {known} -m connmark ! --mark 0x0/{connmark.MASK:#x} -j {SENDER}",
            sender.format("ORIGINAL", packet_mark.FROM_OPENER),
            sender.format("REPLY", packet_mark.FROM_REPLIER),
        ]

    def epoch_rules(self, version: int) -> list[str]:
        """Return the rules that depend on the epoch in force, the only ones that a change of epoch replaces.

        A packet with other options than a valid stamp is queued although its flow is offloaded. ``version``: of IP.
        A packet whose verdict requests a connmark ends its way here, accepted. A request of another epoch sets RETIRED,
        which offloads nothing but records that the flow has been accepted.
        """
        accept, mark = [], []
        if self.epoch is not None:
            match = (
                f"-A {MARKED} -m connmark --mark {{:#x}}/{connmark.MASK:#x} -m conntrack --ctstate {{}} {{}} -j ACCEPT"
            )
            accept = [
                rule
                for valid in (WITHOUT_OPTIONS[version], ONLY_STAMP[version])
                for rule in (
                    match.format(connmark.flow_mark(self.epoch), "NEW,ESTABLISHED", valid),
                    match.format(connmark.opener_mark(self.epoch), "NEW,ESTABLISHED --ctdir ORIGINAL", valid),
                )
            ]
            set_mark = f"-j CONNMARK --set-xmark {{:#x}}/{connmark.MASK:#x}"
            mark = [
                f"-A {SIGNED} {packet_mark.match(connmark.request(verdict, self.epoch))} {set_mark.format(granted)}"
                for verdict, granted in (
                    (Verdict.OFFLOAD_FLOW, connmark.flow_mark(self.epoch)),
                    (Verdict.OFFLOAD_OPENER, connmark.opener_mark(self.epoch)),
                )
            ]
        return [
            *accept,
            f"-A {MARKED} -m mark --mark {REQUEST:#x}/{REQUEST:#x} -g {SIGNED}",
            f"-A {SIGNED} -j CONNMARK --set-xmark {connmark.RETIRED:#x}/{connmark.MASK:#x}",
            *mark,
            f"-A {SIGNED} -j ACCEPT",
        ]


def offload_rules(epoch: int | None) -> OffloadRules:
    """Return the rules for a snapshot's epoch; a snapshot of per-packet mode has none."""
    return PER_PACKET if epoch is None else PerFlowRules(epoch)
