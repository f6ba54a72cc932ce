"""``nfq-enforcer policy impact``: what new documents would change for recorded flows and open connections."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nfq_enforcer.cli import output
from nfq_enforcer.cli.filter_options import Filters, with_filters
from nfq_enforcer.cli.options import DEFAULT, Format, IgnoreOtherKinds, NoHeaders, Output, Socket
from nfq_enforcer.cli.suggest import SavedFlows, Since, Until

if TYPE_CHECKING:
    from nfq_enforcer.policy.impact import ImpactRow

_COLUMNS = ("FROM", "TO", "PORT", "SEEN", "OPEN", "NOW", "THEN", "BECAUSE")


@with_filters()
def impact(
    filters: Filters,
    new: Annotated[list[Path], typer.Argument(help="Files and folders of the new documents.")],
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", help="Current documents: a file or folder; repeatable. Default: those of the running agent."
        ),
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="The new policies alone, in place of all current ones.")] = False,
    saved_flows: SavedFlows = None,
    since: Since = None,
    until: Until = None,
    ignore_other_kinds: IgnoreOtherKinds = False,
    form: Output = Format.TABLE,
    no_headers: NoHeaders = False,
    socket: Socket = DEFAULT,
) -> None:
    """Replay recorded flows and all open connections against new documents; exit status 1 if a verdict would change.

    A new document replaces the current one of the same kind, namespace and name. Filters select the recorded flows,
    dropped ones included.
    """
    from nfq_enforcer.cli import simulation
    from nfq_enforcer.cli.recorded_flows import Source, open_connections, record
    from nfq_enforcer.policy import impact as evaluation
    from nfq_enforcer.policy import loader
    from nfq_enforcer.policy.recorded import with_ends
    from nfq_enforcer.policy.replay import Replay

    changed = loader.load(new, ignore_other_kinds=ignore_other_kinds)
    current = simulation.current(files, socket, ignore_other_kinds)
    recording = record(Source(socket, filters, saved_flows, None, since, until), dropped=True)
    seen = {flow: one.times for flow, one in recording.flows().items()}
    owners = {str(ip): (one.namespace, one.name) for one in current.documents.endpoints for ip in one.spec.ips}
    opened = {} if saved_flows else open_connections(socket, owners)
    ends = [end for flow in (*seen, *opened) for end in flow[:2]]
    replays = []
    for documents in (current.documents, evaluation.replaced(current.documents, changed, only=only)):
        cluster = with_ends(documents, ends)
        replays.append(Replay(current.simulate(cluster.documents), cluster.references))
    rows = evaluation.impact(seen, opened, *replays)
    unknown = sum(not all(replay.knows(flow) for replay in replays) for flow in (*seen, *opened))
    if unknown:
        output.note(f"{unknown} flows left out: no document can name one of their ends, or their protocol")
    _print(rows, form, headers=not no_headers)
    output.note(
        f"{sum(seen.values())} recorded and {sum(opened.values())} open connections evaluated, by the documents of "
        f"{current.origin}"
    )
    raise typer.Exit(1 if rows else 0)


def _print(rows: "list[ImpactRow]", form: Format, *, headers: bool) -> None:
    if not form.is_table:
        output.print_data([row.as_data() for row in rows], form)
    elif rows:
        output.display(output.table(_COLUMNS, rows), headers=headers)
    else:
        output.line("no connection changes its verdict")
