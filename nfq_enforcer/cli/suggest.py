"""``nfq-enforcer policy suggest``: the documents that allow recorded flows."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.filter_options import Filters, with_filters
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Socket
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.text import utc_time

if TYPE_CHECKING:
    from nfq_enforcer.observe.recording import Recording
    from nfq_enforcer.policy.suggestion import SuggestedPolicy
    from nfq_enforcer.policy.suggestion_check import NotAllowed

_MAX_NOTED = 20  # flows that the suggestion does not allow; -o json has all

SavedFlows = Annotated[
    list[str] | None,
    typer.Option(
        "--input-file", help="Flows of a file, as 'observe -o json' prints them; repeatable, a file for each node."
    ),
]
Since = Annotated[str | None, typer.Option(help="Flows since a time, or an age: 5m, 2026-11-28T09:30:00Z.")]
Until = Annotated[str | None, typer.Option(help="Flows until a time, or an age.")]


class SuggestedDirection(StrEnum):
    """Direction that suggested documents close."""

    BOTH = "both"
    INGRESS = "ingress"
    EGRESS = "egress"


class Outside(StrEnum):
    """Peers that stand for addresses outside."""

    CIDR = "cidr"
    WORLD = "world"


@with_filters()
def suggest(
    filters: Filters,
    saved_flows: SavedFlows = None,
    duration: Annotated[
        str | None, typer.Option("--for", help="Record new flows for so long (60s, 10m), in place of the agent's log.")
    ] = None,
    since: Since = None,
    until: Until = None,
    direction: Annotated[
        SuggestedDirection, typer.Option(help="Directions to close: of each endpoint, those in which it was seen.")
    ] = SuggestedDirection.BOTH,
    outside: Annotated[
        Outside, typer.Option(help="Addresses outside: each by itself (cidr), or all of them (world).")
    ] = Outside.CIDR,
    http: Annotated[
        bool, typer.Option("--http", help="Only the HTTP methods and paths, and TLS server names, that were seen.")
    ] = False,
    dropped: Annotated[
        bool, typer.Option("--include-dropped", help="Also allow what policy has dropped for want of a rule.")
    ] = False,
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Suggest the CiliumNetworkPolicy documents that allow the recorded flows, and nothing that was not seen.

    Flows that were forwarded count, and those that audit mode let pass. Documents select by labels; addresses appear
    for ends outside only. A comment above each rule names the flows that it is for.
    """
    from nfq_enforcer.cli.recorded_flows import Source, record
    from nfq_enforcer.policy import suggestion, suggestion_check

    recording = record(Source(socket, filters, saved_flows, duration, since, until), dropped=dropped)
    flows = recording.flows()
    both = direction is SuggestedDirection.BOTH
    directions = suggestion.BOTH if both else (Direction(direction.value),)
    options = suggestion.SuggestionOptions(directions, http, outside is Outside.WORLD)
    policies, not_allowed = suggestion_check.suggest_checked(flows, options)
    _note(recording, not_allowed)
    if not saved_flows:
        _note_other_nodes(recording.nodes, client.call(socket, "nodes"))
    _print(policies, not_allowed, recording, form)


def _print(
    policies: "Sequence[SuggestedPolicy]", not_allowed: "Sequence[NotAllowed]", recording: "Recording", form: DataFormat
) -> None:
    from nfq_enforcer.policy import suggestion_text

    text = suggestion_text.render(policies)
    if form is DataFormat.JSON:
        output.print_data(_data(policies, not_allowed, recording), form)
    elif policies:
        output.lines([_header(policies, recording), *text.rstrip("\n").split("\n")])


def _header(policies: "Sequence[SuggestedPolicy]", recording: "Recording") -> str:
    last = max(rule.evidence.last for policy in policies for rule in policy.rules)
    return f"# Suggested for the flows that {', '.join(sorted(recording.nodes))} had recorded until {utc_time(last)}."


def _note(recording: "Recording", not_allowed: "Sequence[NotAllowed]") -> None:
    if not recording.nodes:
        output.note("no flow that needs a rule was recorded")
    for one in not_allowed[:_MAX_NOTED]:
        output.note(f"not allowed by the suggestion: {one}")
    if len(not_allowed) > _MAX_NOTED:
        output.note(f"not allowed by the suggestion: {len(not_allowed) - _MAX_NOTED} more flows; -o json has all")


def _note_other_nodes(seen: set[str], nodes: Sequence[dict[str, Any]]) -> None:
    """Note the nodes with flows of their own: the documents apply to their endpoints as well."""
    others = sorted(node["name"] for node in nodes if node["name"] not in seen and node.get("endpoints") != 0)
    if others:
        output.note(
            f"warning: flows of {', '.join(others)} are not among the recorded ones, but the documents would apply "
            "there, too: save them there by 'observe --all -o json', and give all files by --input-file"
        )


def _data(
    policies: "Sequence[SuggestedPolicy]", not_allowed: "Sequence[NotAllowed]", recording: "Recording"
) -> dict[str, Any]:
    return {
        "nodes": sorted(recording.nodes),
        "documents": [policy.document for policy in policies],
        "rules": [
            {
                "document": f"{policy.namespace}/{policy.name}",
                "direction": str(rule.direction),
                "entry": rule.entry,
                "seen": {**rule.evidence._asdict(), "last": utc_time(rule.evidence.last)},
            }
            for policy in policies
            for rule in policy.rules
        ],
        "not_allowed": list(map(str, not_allowed)),
        "left_out": dict(recording.left_out),
    }
