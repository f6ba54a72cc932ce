"""Marks by which the kernel passes flows without us, and tells us of those that it passed (``datapath: per-flow``).

A flow's mark (connmark, ``MASK`` of it) says how much of the flow may pass, and in which *epoch* that was decided. A
rule knows the epoch in force. Whenever flows have to be judged again, that rule is replaced by one with the next epoch,
and all marks that there are mean nothing any more, without a walk over the flows.

Only a rule can give a flow its mark, so a verdict asks for it: the packet goes through the rules once more (NF_REPEAT)
with a sign on it (``FIELD`` of its own mark), which a rule takes off again. The sign has the last bit of the epoch that
its worker judges by. When the rule is replaced first and the workers get their snapshot then, a worker is one epoch
behind, and what it asks for meanwhile is given a mark that is never in force. Until one that is further behind has
caught up, no mark is in force.

The same bits tell of a packet on its way to us that its flow has had a mark of another epoch, and from which end it is.
"""

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER

MASK = 0xFFFFFF00  # of a flow's mark, from the top: 23 bits of the epoch, one for how much; the rest is others'
_EPOCH_BIT, _WHOLE = 9, 1 << 8
EARLIER = 1 << _EPOCH_BIT  # never in force; what all get, too, when epochs are counted from the start again
_FIRST, _EPOCHS = 2, (1 << 23) - 2

FIELD = 0x70000000  # of a packet's mark
SIGNED = 0x40000000  # what a verdict sets; with it:
_SIGNED_WHOLE, _SIGNED_ODD = 0x20000000, 0x10000000
FROM_OPENER, FROM_REPLIER = 0x10000000, 0x20000000  # what a rule sets
_TOLD = {FROM_OPENER: FLOW_OPENER, FROM_REPLIER: FLOW_REPLIER}


def of_opener(epoch: int) -> int:
    """Return the mark of a flow whose opener's packets may pass."""
    return _FIRST + epoch % _EPOCHS << _EPOCH_BIT


def of_flow(epoch: int) -> int:
    """Return the mark of a flow of which all may pass."""
    return of_opener(epoch) | _WHOLE


def begins_anew(epoch: int) -> bool:
    """Say whether marks of this epoch may be there from long ago."""
    return epoch % _EPOCHS == 0


def sign(verdict: Verdict, epoch: int) -> int:
    """Return the sign of a packet by which its flow is to be marked, as the verdict says."""
    return SIGNED | (_SIGNED_WHOLE if verdict is Verdict.OFFLOAD_FLOW else 0) | (_SIGNED_ODD if epoch & 1 else 0)


def signed(mark: int, verdict: Verdict, epoch: int) -> int:
    """Return the mark with which a packet goes through the rules again; all bits but ours stay."""
    return mark & ~FIELD | sign(verdict, epoch)


def told(mark: int) -> int:
    """Return what a packet's mark says of its flow, as a bit of ``core.arrival``, or 0."""
    return _TOLD.get(mark & FIELD, 0)
