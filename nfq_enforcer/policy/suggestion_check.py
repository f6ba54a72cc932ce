"""Check of suggested policies: each recorded flow is evaluated against them, as the nodes would."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from nfq_enforcer.policy.loader import Documents, from_data
from nfq_enforcer.policy.ports import FIRST
from nfq_enforcer.policy.recorded import RecordedFlow, Seen, with_ends
from nfq_enforcer.policy.replay import Replay
from nfq_enforcer.policy.simulation import Simulation
from nfq_enforcer.policy.suggestion import SuggestedPolicy, SuggestionOptions, is_writable, suggest
from nfq_enforcer.text import printable


class NotAllowed(NamedTuple):
    """NotAllowed: a recorded flow that the suggestion does not allow, or does not know, with the reason."""

    flow: RecordedFlow
    reason: str

    def __str__(self) -> str:
        """Render as a sentence."""
        return printable(f"{self.flow.source} to {self.flow.target}, {render_traffic(self.flow)}: {self.reason}")


def suggest_checked(
    flows: Mapping[RecordedFlow, Seen], options: SuggestionOptions | None = None
) -> tuple[tuple[SuggestedPolicy, ...], list[NotAllowed]]:
    """Return the documents that allow the flows, and the flows that these do not allow.

    The latter include flows with names that no document can have, such as labels of a saved stream that are none.
    """
    policies, refused = suggest(flows, options), list[NotAllowed]()
    if _refusal(policies) is not None:
        alone = ((flow, _refusal(suggest({flow: seen}, options))) for flow, seen in flows.items())
        refused = [NotAllowed(flow, reason) for flow, reason in alone if reason is not None]
        left_out = {one.flow for one in refused}
        flows = {flow: seen for flow, seen in flows.items() if flow not in left_out}
        policies = suggest(flows, options)
    return policies, [*refused, *check(policies, flows)]


def _refusal(policies: Iterable[SuggestedPolicy]) -> str | None:
    try:
        from_data(one.document for one in policies)
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return None


def check(policies: Iterable[SuggestedPolicy], flows: Iterable[RecordedFlow]) -> Iterator[NotAllowed]:
    """Yield the flows that the policies alone do not allow."""
    every_flow = list(flows)
    written = [flow for flow in every_flow if is_writable(flow)]
    for flow in every_flow:
        if not is_writable(flow):
            yield NotAllowed(flow, _unwritable(flow))
    documents = Documents(policies=from_data(one.document for one in policies).policies)
    cluster = with_ends(documents, (end for flow in written for end in flow[:2]))
    replay = Replay(Simulation(cluster.documents), cluster.references)
    for flow in written:
        unknown = [end for end in flow[:2] if end not in cluster.references]
        if unknown:
            yield NotAllowed(flow, f"{unknown[0]} has a name or labels that no document can have")
            continue
        verdict = replay.evaluate(flow)
        if not verdict.allowed:
            yield NotAllowed(flow, verdict.reason)


def _unwritable(flow: RecordedFlow) -> str:
    unknown = [str(end.address) for end in flow[:2] if end.labels is None]
    if unknown:
        return f"the identity of {' and '.join(unknown)} was not known to the node that recorded it"
    return f"no rule can name IP protocol {flow.traffic.proto}"


def render_traffic(flow: RecordedFlow) -> str:
    """Return the traffic of a flow as text, also that of a protocol that no rule can name."""
    proto = flow.traffic.proto
    return str(flow.traffic) if proto in FIRST else f"IP protocol {proto}"
