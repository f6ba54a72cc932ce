"""``nfq-enforcer endpoint``: endpoints, added from options or files, listed and deleted; their compiled policy."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import names as live
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, NoHeaders, Output, Socket
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.text import printable

EndpointName = typer.Argument(help="NAMESPACE/NAME; NAME alone means default/NAME.", autocompletion=live.endpoints)
_DEFAULT_NAMESPACE = "default"
_COLUMNS = ("ENDPOINT", "IDENTITY", "NODE", "ADDRESSES", "LABELS", "STATE")
_POLICY_COLUMNS = ("DIRECTION", "ACTION", "PEERS", "PORTS", "REQUESTS", "RULE")
_MAX_PIDS = 5  # in a table


def add(
    name: Annotated[str | None, typer.Argument(help="Name of the endpoint; or give documents with -f.")] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="File or folder of Endpoint documents; repeatable.")
    ] = None,
    ips: Annotated[list[str] | None, typer.Option("--ip", help="Address of the endpoint; repeatable.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE, a label that enters its identity; repeatable.")
    ] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace (default: default).")] = None,
    node: Annotated[
        str | None,
        typer.Option("--node", help="Node of the endpoint (default: the agent's own).", autocompletion=live.nodes),
    ] = None,
    interface: Annotated[
        str | None,
        typer.Option("--interface", help="Interface of the node that leads to the endpoint; none for the node itself."),
    ] = None,
    ports: Annotated[
        list[str] | None, typer.Option("--port", help="Named port, as in http=80/TCP; repeatable.")
    ] = None,
    service_account: Annotated[str | None, typer.Option("--service-account", help="Service account.")] = None,
    socket: Socket = DEFAULT,
) -> None:
    """Add endpoints, or change existing ones."""
    from nfq_enforcer.cli import endpoint_documents as documents_of

    spec = {"node": node, "interface": interface, "serviceAccount": service_account}
    described = any((ips, labels, namespace, ports, *spec.values()))
    if name is not None and not files:
        metadata = {
            "name": name,
            "namespace": namespace or _DEFAULT_NAMESPACE,
            "labels": documents_of.labels(labels or []),
        }
        lists = {"ips": ips or [], "ports": [documents_of.port(port) for port in ports or []]}
        documents = [documents_of.document(metadata, lists | spec)]
    elif files and name is None and not described:
        documents = documents_of.read(files)
    else:
        raise BadInput("give an endpoint's NAME and options that describe it, or documents with -f and nothing else")
    for line in _added(client.call(socket, "apply", files=documents)):
        output.line(line)


def list_endpoints(form: Output = Format.TABLE, no_headers: NoHeaders = False, socket: Socket = DEFAULT) -> None:
    """List the cluster's endpoints that this node has."""
    output.show(
        client.call(socket, "endpoints"),
        form,
        lambda result: output.table(_COLUMNS, (_row(one, form) for one in result)),
        headers=not no_headers,
    )


def get(
    name: Annotated[str, EndpointName],
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print the document of an endpoint, with the identity as its status."""
    full_name = _full(name)
    for one in client.call(socket, "endpoints"):
        if _name(one) == full_name:
            status = {"identity": {"id": one["identity"], "labels": one["labels"]}}
            output.print_data({**one["document"], "status": status}, form)
            return
    raise _missing([full_name])


def policy(
    name: Annotated[str, EndpointName],
    form: Output = Format.TABLE,
    no_headers: NoHeaders = False,
    socket: Socket = DEFAULT,
) -> None:
    """Show the compiled policy of an endpoint in both directions: a row for each rule, the default last."""
    result = client.call(socket, "endpoint_policy", name=_full(name))
    output.show(
        result,
        form,
        lambda shown: output.table(_POLICY_COLUMNS, _policy_rows(shown, form)),
        headers=not no_headers,
    )


def delete(
    names: Annotated[list[str], EndpointName],
    socket: Socket = DEFAULT,
) -> None:
    """Delete endpoints; exit status 1 if one does not exist."""
    result = client.call(socket, "delete_endpoints", names=list(dict.fromkeys(map(_full, names))))
    for name in result["deleted"]:
        output.line(f"{name} deleted")
    if result["missing"]:
        raise _missing(result["missing"])


def _policy_rows(policy: Mapping[str, Any], form: Format) -> Iterator[list[object]]:
    for direction in ("ingress", "egress"):
        side = policy[direction]
        for row in side["rows"]:
            peers = (
                ["any"] if row["any_peer"] else [" ".join(output.labels(one["labels"], form)) for one in row["peers"]]
            )
            more = _more(row["peers_total"], row["peers"]) if not row["any_peer"] else []
            requests = [*row["requests"], *_more(row["requests_total"], row["requests"])]
            yield [direction, row["action"], peers + more, row["ports"], requests, row["rule"]["text"]]
        if hidden := _more(side["rows_total"], side["rows"]):
            yield [direction, "…", [], [], [], hidden]
        rules = [rule["text"] for rule in side["enforced_by"]]
        yield [direction, "deny" if side["enforced"] else "allow", ["any"], ["everything else"], [], rules]


def _more(total: int, shown: Iterable[object]) -> list[str]:
    rest = total - len(list(shown))
    return [f"{rest} more"] if rest > 0 else []


def _row(endpoint: Mapping[str, Any], form: Format) -> list[object]:
    problem = endpoint.get("problem")
    state = Text(printable(problem), "red") if problem else "ok"
    labels = output.labels(endpoint["labels"], form)
    return [_name(endpoint), endpoint["identity"], endpoint["node"], _ends(endpoint), labels, state]


def _ends(endpoint: Mapping[str, Any]) -> list[str]:
    """Return the addresses of an endpoint; of a process endpoint, its cgroup and its processes."""
    if endpoint.get("cgroup") is None:
        return list(endpoint["addresses"])
    pids = endpoint["pids"]
    shown = [*map(str, pids[:_MAX_PIDS]), *(["…"] if len(pids) > _MAX_PIDS else [])]
    return [f"cgroup {endpoint['cgroup']}", *([f"process {' '.join(shown)}"] if pids else [])]


def _name(endpoint: Mapping[str, Any]) -> str:
    return f"{endpoint['namespace']}/{endpoint['name']}"


def _full(name: str) -> str:
    return name if "/" in name else f"{_DEFAULT_NAMESPACE}/{name}"


def _missing(names: Iterable[str]) -> NfqError:
    return NfqError(f"there is no endpoint {', '.join(names)}; 'nfq-enforcer endpoint list' shows those there are")


def _added(applied: Mapping[str, Any]) -> Iterator[str]:
    for one in applied["endpoints"]:
        new = "new identity" if one["new_identity"] else "identity"
        yield f"{one['endpoint']} added: {new} {one['identity']} ({', '.join(one['labels'])})"
