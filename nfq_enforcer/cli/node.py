"""``nfq-enforcer node``: the nodes of the cluster."""

from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, NoHeaders, Output, Socket
from nfq_enforcer.observe.status import NodeReport

_COLUMNS = ("NODE", "LIVE", "LAST SEEN", "REVISION", "ENDPOINTS", "ADDRESSES", "VERSION", "DATAPATH")
_LIVE = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("unknown", "yellow")}


def list_nodes(form: Output = Format.TABLE, no_headers: NoHeaders = False, socket: Socket = DEFAULT) -> None:
    """List the nodes of the cluster with their liveness and the policy revision that each enforces."""
    output.show(
        client.call(socket, "nodes"),
        form,
        lambda result: output.table(_COLUMNS, map(_row, map(NodeReport.from_json, result))),
        headers=not no_headers,
    )


def _row(node: NodeReport) -> list[object]:
    columns = [node.name, _LIVE[node.live], node.last_seen, node.revision, node.endpoints, node.addresses]
    return [*columns, node.version, node.datapath]
