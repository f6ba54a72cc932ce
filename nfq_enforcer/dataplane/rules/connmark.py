"""Connmarks of offloaded flows, and the packet marks by which verdicts request them (``datapath: per-flow``).

A flow's mark (connmark, the bits of ``MASK``) holds how much of the flow is offloaded and the *epoch* of that verdict.
The rules accept a packet without a queue if its flow has a mark of the current epoch. Whenever flows have to be
evaluated again, one rule is replaced by one with the next epoch. From then on no earlier mark matches, without a walk
over the flows.

Only a rule can set a connmark, so a verdict requests one: the packet traverses the rules again (NF_REPEAT) with a
request in its packet mark (the bits of ``packet_mark.MASK``). The request holds the last bit of the epoch by which its
worker decides. When the rule is replaced first and the workers receive their snapshot afterwards, a worker is one epoch
behind, and a flow whose mark it requests meanwhile gets RETIRED, a mark that no epoch ever has. While a worker is
further behind, no epoch is in force. While the rule cannot be replaced, workers are an odd number of epochs ahead.

Before the verdict, the same bits of the packet mark tell the worker which end of a flow with a mark of another epoch
sent the packet (see ``packet_mark``).
"""

from nfq_enforcer.core.verdict import Verdict
from nfq_enforcer.dataplane.rules import packet_mark
from nfq_enforcer.dataplane.rules.packet_mark import REQUEST

MASK = 0x1FFFFF00  # of a connmark, from the top: 20 bits of the epoch, one bit of extent; the low 8 bits are others'
_EPOCH_BITS, _EPOCH_SHIFT, _WHOLE_FLOW = 20, 9, 1 << 8
RETIRED = 1 << _EPOCH_SHIFT  # never in force: requested in an earlier epoch, or left from before epochs repeated
_FIRST, _EPOCHS = 2, (1 << _EPOCH_BITS) - 2

# Bits of a connmark that no verdict changes (see ``redirect_rules``).
REDIRECTED = 0x40000000  # the connection of a client, redirected to the proxy
FROM_PROXY = 0x80000000  # a connection of the proxy, to a server
OF_PROCESS = 0x20000000  # a connection of a process endpoint (see ``process_rules``)

_REQUEST_WHOLE_FLOW, _REQUEST_ODD_EPOCH = 0x20000000, 0x10000000  # with REQUEST


def opener_mark(epoch: int) -> int:
    """Return the connmark of a flow whose opener's packets are offloaded."""
    return _FIRST + epoch % _EPOCHS << _EPOCH_SHIFT


def flow_mark(epoch: int) -> int:
    """Return the connmark of a flow that is offloaded in both directions."""
    return opener_mark(epoch) | _WHOLE_FLOW


def reuses_marks(epoch: int) -> bool:
    """Return whether epochs repeat from this one on, so that flows may have its marks from long ago."""
    return epoch % _EPOCHS == 0


def request(verdict: Verdict, epoch: int) -> int:
    """Return the bits of a packet mark that request a connmark for the packet's flow, by the verdict OFFLOAD_*."""
    whole_flow = _REQUEST_WHOLE_FLOW if verdict is Verdict.OFFLOAD_FLOW else 0
    return REQUEST | whole_flow | (_REQUEST_ODD_EPOCH if epoch & 1 else 0)


def add_request(mark: int, verdict: Verdict, epoch: int) -> int:
    """Return the packet mark with a request; bits of others stay."""
    return mark & ~packet_mark.MASK | request(verdict, epoch)
