"""Consistency of a decision: promises that hold for every packet, whatever the policy."""

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.verdict import DropReason, FlowVerdict, Verdict

ACCEPTED_EVENTS = (FlowVerdict.FORWARDED, FlowVerdict.AUDIT)


def check(decision: Decision, now: float) -> None:
    """Hold a decision against what its reader may rely on."""
    if decision.verdict is Verdict.DROP:
        assert decision.payload is None
        assert decision.event is not None
        assert decision.event.verdict is FlowVerdict.DROPPED
        assert decision.event.reason not in (None, DropReason.INTERNAL_ERROR)
    else:
        assert decision.answer is None or (decision.payload or b"\0")[0] >> 4 == 6  # the kernel may yet refuse it
        assert decision.event is None or decision.event.verdict in ACCEPTED_EVENTS
    assert decision.event is None or decision.event.time == now
