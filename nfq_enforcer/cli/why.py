"""``nfq-enforcer why``: why a connection is allowed or refused, and what would have to change."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfq_enforcer import input_file
from nfq_enforcer.agent import client
from nfq_enforcer.cli import names, output
from nfq_enforcer.cli.filter_options import Filters, with_filters
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.observe.query import Query, parameters
from nfq_enforcer.observe.text import compact

if TYPE_CHECKING:
    from nfq_enforcer.observe.saved import Saved
    from nfq_enforcer.policy.simulation import Simulation
    from nfq_enforcer.policy.why import Explanation

_REFUSED = ["DROPPED", "AUDIT"]


@with_filters(without=("port", "uuid"))
def why(
    filters: Filters,
    uuid: Annotated[str | None, typer.Argument(help="The uuid of a flow; default: the last refused one.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help="Ask for a connection from this end, as in 'policy trace'.", autocompletion=names.endpoints
        ),
    ] = None,
    target: Annotated[str | None, typer.Option("--to", help="The other end.", autocompletion=names.endpoints)] = None,
    port: Annotated[str | None, typer.Option("--port", help="80/TCP, 53/UDP, ICMP or ICMP/TYPE.")] = None,
    http: Annotated[str | None, typer.Option("--http", help="HTTP request, as in 'GET /path'.")] = None,
    dns: Annotated[str | None, typer.Option("--dns", help="Name of a DNS query, on 53/UDP by default.")] = None,
    sni: Annotated[str | None, typer.Option("--sni", help="Server name of TLS, on 443/TCP by default.")] = None,
    saved_flows: Annotated[
        str | None, typer.Option("--input-file", help="Search the flows of a file instead of the agent's log.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="File or folder of documents; repeatable. Default: those of the agent."),
    ] = None,
    form: Output = Format.TABLE,
    socket: Socket = DEFAULT,
) -> None:
    """Explain a refused flow, or a connection: which rule decided, on which line, and what would have to change.

    Without --from and --to, the last refused flow that matches the filters is explained. The change is the smallest one
    that lets the connection pass; all else that it would open is listed. Exit status 0 if the connection passes by
    the present documents, 1 if it is refused.
    """
    from nfq_enforcer.cli import simulation

    if (source is None) is not (target is None):
        raise BadInput("--from and --to name both ends of a connection; give both, or neither")
    flow = None if source is not None else _flow(_filtered(filters, uuid), saved_flows, socket)
    simulated, origin = simulation.of_files_or_agent(files, socket, None, None, None, None, ignore_other_kinds=False)
    if flow is None:
        assert source is not None
        assert target is not None
        explained: Explanation | None = _connection(simulated, source, target, port, http, dns, sni)
    else:
        explained = _explained(simulated, flow)
    if form.is_table:
        _print(explained, flow, simulated, origin)
    else:
        output.print_data(_data(explained, flow, origin), form)
    raise typer.Exit(0 if explained is not None and explained.trace.result.allowed else 1)


def _filtered(filters: Filters, uuid: str | None) -> dict[str, Any]:
    allow = dict(filters.allow)
    if uuid is not None:
        allow["uuid"] = [uuid]
    elif "verdict" not in allow:
        allow["verdict"] = _REFUSED
    params = parameters(allow, filters.deny, last=1)
    Query(**params)
    return params


def _flow(params: dict[str, Any], saved_flows: str | None, socket: Path) -> "Saved":
    """Return the last flow that the filters select; raise NfqError without one."""
    from nfq_enforcer.observe import saved

    flows: Iterator[saved.Saved]
    if saved_flows is None:
        items = client.stream(socket, "observe", client.TIMEOUT, **params)
        flows = (saved.Saved(dict(item), saved.parse(item)) for item in items)
    else:
        lines = input_file.lines(Path(saved_flows), input_file.FLOW_SIZE)
        flows = saved.select(lines, Query(**params), output.note)
    for flow in flows:
        return flow
    raise NfqError(
        "the log has no refused flow that matches; 'nfq-enforcer observe' shows the flows, and --from, --to and --port "
        "ask for a connection that nobody has tried"
    )


def _connection(
    simulated: "Simulation",
    source: str,
    target: str,
    port: str | None,
    http: str | None,
    dns: str | None,
    sni: str | None,
) -> "Explanation":
    from nfq_enforcer.cli import questions, simulation
    from nfq_enforcer.policy.why import Connection, explain

    pair = simulation.pair(simulated, source, target)
    return explain(simulated, Connection(source, target, questions.question(port, http, dns, sni, pair)))


def _explained(simulated: "Simulation", flow: "Saved") -> "Explanation | None":
    """Return the explanation of a flow, None if no document decides about it."""
    from nfq_enforcer.observe.advice import ADVICE
    from nfq_enforcer.observe.question import ask

    return None if flow.logged.event.reason in ADVICE else ask(simulated, flow.logged)


def _print(explained: "Explanation | None", flow: "Saved | None", simulated: "Simulation", origin: str) -> None:
    from nfq_enforcer.cli.explanation import render
    from nfq_enforcer.cli.rule_places import RulePlaces
    from nfq_enforcer.observe.advice import ADVICE

    if flow is not None:
        output.line(compact(flow.item))
    if explained is None:
        assert flow is not None
        assert flow.logged.event.reason is not None
        output.line(f"No policy decides about it: {flow.logged.event.reason.description}.")
        output.line(ADVICE[flow.logged.event.reason])
        return
    if flow is None:
        trace = explained.trace
        output.line(f"{trace.egress.side.subject.name} → {trace.ingress.side.subject.name}, {trace.traffic}")
    elif explained.trace.result.allowed and str(flow.logged.event.verdict) in _REFUSED:
        output.line("Policy has changed since: it would pass now.")
    for line in render(explained, RulePlaces(simulated.documents.policies).of):
        output.display(line)
    output.line(f"(by the documents of {origin})")


def _data(explained: "Explanation | None", flow: "Saved | None", origin: str) -> dict[str, Any]:
    from nfq_enforcer.observe.advice import ADVICE

    reason = flow.logged.event.reason if flow is not None and explained is None else None
    return {
        "flow": None if flow is None else flow.item,
        "advice": None if reason is None else ADVICE[reason],
        "connection": None if explained is None else explained.as_data(),
        "documents_of": origin,
    }
