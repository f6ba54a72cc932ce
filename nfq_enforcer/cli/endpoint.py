"""``nfq-enforcer endpoint``: endpoints, added from options or files, listed and deleted."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, Output, Socket
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors, NfqError
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.inspection import ParsedDocument
from nfq_enforcer.policy.loader import File
from nfq_enforcer.text import printable

app = typer.Typer(help="Endpoints.", no_args_is_help=True)

_DEFAULT_NAMESPACE = "default"
_COLUMNS = ("ENDPOINT", "IDENTITY", "NODE", "ADDRESSES", "LABELS", "STATE")
_MAX_PIDS = 5  # in a table
_PORT = re.compile(r"(?P<name>[^=]*)=(?P<number>[0-9]{1,9})(?:/(?P<protocol>[A-Za-z]+))?")
_OPTIONS = {  # the option that sets a field of the document
    "metadata.name": "NAME",
    "metadata.namespace": "--namespace",
    "metadata.labels": "--label",
    "spec.ips": "--ip",
    "spec.node": "--node",
    "spec.interface": "--interface",
    "spec.serviceAccount": "--service-account",
    "spec.ports": "--port",
}


@app.callback()
def endpoint() -> None:
    """Endpoints."""


@app.command()
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
    node: Annotated[str | None, typer.Option("--node", help="Node of the endpoint (default: the agent's own).")] = None,
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
    spec = {"node": node, "interface": interface, "serviceAccount": service_account}
    described = any((ips, labels, namespace, ports, *spec.values()))
    if name is not None and not files:
        metadata = {"name": name, "namespace": namespace or _DEFAULT_NAMESPACE, "labels": _labels(labels or [])}
        lists = {"ips": ips or [], "ports": [_port(port) for port in ports or []]}
        documents = [_document(metadata, lists | spec)]
    elif files and name is None and not described:
        documents = _read(files)
    else:
        raise BadInput("give an endpoint's NAME and options that describe it, or documents with -f and nothing else")
    for line in _added(client.call(socket, "apply", files=documents)):
        output.line(line)


@app.command("list")
def list_endpoints(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the cluster's endpoints that this node has."""
    output.show(client.call(socket, "endpoints"), form, lambda result: output.table(_COLUMNS, map(_row, result)))


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME; NAME alone means default/NAME.")],
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


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(help="NAMESPACE/NAME; NAME alone means default/NAME.")],
    socket: Socket = DEFAULT,
) -> None:
    """Delete endpoints; exit status 1 if one does not exist."""
    result = client.call(socket, "delete_endpoints", names=list(dict.fromkeys(map(_full, names))))
    for name in result["deleted"]:
        output.line(f"{name} deleted")
    if result["missing"]:
        raise _missing(result["missing"])


def _row(endpoint: Mapping[str, Any]) -> list[object]:
    problem = endpoint.get("problem")
    state = Text(printable(problem), "red") if problem else "ok"
    columns = [_name(endpoint), endpoint["identity"], endpoint["node"], _ends(endpoint), endpoint["labels"]]
    return [*columns, state]


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


def _labels(options: Iterable[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise BadInput(f"--label: '{option}' is not a label; allowed: KEY=VALUE, as in role=frontend")
        if labels.setdefault(key, value) != value:
            raise BadInput(f"--label: '{key}' is given two values, '{labels[key]}' and '{value}'; one is allowed")
    return labels


def _port(option: str) -> dict[str, object]:
    match = _PORT.fullmatch(option)
    if match is None:
        allowed = "allowed: NAME=NUMBER with /TCP (the default), /UDP or /SCTP, as in http=80/TCP"
        raise BadInput(f"--port: '{option}' is not a named port; {allowed}")
    return {"name": match["name"], "port": int(match["number"]), "protocol": (match["protocol"] or "TCP").upper()}


def _document(metadata: Mapping[str, object], spec: Mapping[str, object]) -> File:
    """Return an Endpoint document as a file; raise BadInput with the option that set an invalid field."""
    spec = {key: value for key, value in spec.items() if value or key == "ips"}
    document = {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    try:
        loader.parse(text, "")
    except DocumentErrors as invalid:
        raise BadInput("\n".join(dict.fromkeys(map(_option_error, invalid.errors)))) from None
    return File("nfq-enforcer endpoint add", text)


def _option_error(error: DocumentError) -> str:
    for field, option in _OPTIONS.items():
        if error.field == field or error.field.startswith((f"{field}.", f"{field}[")):
            return f"{option}: {error.message}"
    return error.message


def _read(paths: Iterable[Path]) -> list[File]:
    """Read the files; raise BadInput unless they contain Endpoint documents only."""
    files = loader.read(paths)
    parsed = loader.parse_all(files)
    others = [_not_an_endpoint(one) for one in parsed if not isinstance(one.document, Endpoint)]
    if others:
        raise DocumentErrors(others)
    if not parsed:
        raise BadInput("there is no Endpoint document in what -f names")
    return files


def _not_an_endpoint(parsed: ParsedDocument) -> DocumentError:
    kind = parsed.document.kind
    return parsed.error(
        ("kind",), f"{kind} is not allowed here; allowed: Endpoint ('policy load' takes the other kinds)"
    )
