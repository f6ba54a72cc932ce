"""``nfq-enforcer endpoint``: workloads, added and taken away without a file or by one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, Output, Socket
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors, NfqError
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.loader import File, ParsedDocument

app = typer.Typer(help="Endpoints.", no_args_is_help=True)

_DEFAULT_NAMESPACE = "default"
_COLUMNS = ("ENDPOINT", "IDENTITY", "NODE", "ADDRESSES", "LABELS")
_PORT = re.compile(r"(?P<name>[^=]*)=(?P<number>[0-9]{1,9})(?:/(?P<protocol>[A-Za-z]+))?")
_SAID_BY = {  # which option says what a field of the document says
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
    name: Annotated[str | None, typer.Argument(help="The endpoint's name; or give documents with -f.")] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="File or folder of Endpoint documents; repeatable.")
    ] = None,
    ips: Annotated[list[str] | None, typer.Option("--ip", help="An address of it; repeatable.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE, part of what makes its identity; repeatable.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace (default: default).")
    ] = None,
    node: Annotated[str | None, typer.Option("--node", help="The node it lives on (default: the agent's own).")] = None,
    interface: Annotated[
        str | None,
        typer.Option("--interface", help="Behind which interface of the node; left out for the node itself."),
    ] = None,
    ports: Annotated[
        list[str] | None, typer.Option("--port", help="A named port, as in http=80/TCP; repeatable.")
    ] = None,
    service_account: Annotated[str | None, typer.Option("--service-account", help="Its service account.")] = None,
    socket: Socket = DEFAULT,
) -> None:
    """Add endpoints, or change those that are there."""
    spec = {"node": node, "interface": interface, "serviceAccount": service_account}
    described = any((ips, labels, namespace, ports, *spec.values()))
    if name is not None and not files:
        metadata = {"name": name, "namespace": namespace or _DEFAULT_NAMESPACE, "labels": _labels(labels or [])}
        lists = {"ips": ips or [], "ports": [_port(port) for port in ports or []]}
        given = [_described(metadata, lists | spec)]
    elif files and name is None and not described:
        given = _read(files)
    else:
        raise BadInput("give an endpoint's NAME and options that describe it, or documents with -f and nothing else")
    for line in _added(client.call(socket, "apply", files=given)):
        print(line)


@app.command("list")
def list_endpoints(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """List the endpoints of the cluster, as this node knows them."""
    output.show(client.call(socket, "endpoints"), form, lambda seen: output.table(_COLUMNS, map(_row, seen)))


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME; NAME alone is of the namespace default.")],
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print an endpoint's document, with its identity as its status."""
    wanted = _full(name)
    for one in client.call(socket, "endpoints"):
        if _called(one) == wanted:
            status = {"identity": {"id": one["identity"], "labels": one["labels"]}}
            output.print_data({**one["document"], "status": status}, form)
            return
    raise _missing([wanted])


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(help="NAMESPACE/NAME; NAME alone is of the namespace default.")],
    socket: Socket = DEFAULT,
) -> None:
    """Take endpoints away; exit status 1 if one was not there."""
    done = client.call(socket, "delete_endpoints", names=list(dict.fromkeys(map(_full, names))))
    for name in done["deleted"]:
        print(f"{name} deleted")
    if done["missing"]:
        raise _missing(done["missing"])


def _row(one: Mapping[str, Any]) -> list[object]:
    return [_called(one), one["identity"], one["node"], one["addresses"], one["labels"]]


def _called(one: Mapping[str, Any]) -> str:
    return f"{one['namespace']}/{one['name']}"


def _full(name: str) -> str:
    return name if "/" in name else f"{_DEFAULT_NAMESPACE}/{name}"


def _missing(names: Iterable[str]) -> NfqError:
    return NfqError(f"there is no endpoint {', '.join(names)}; 'nfq-enforcer endpoint list' shows those there are")


def _added(answer: Mapping[str, Any]) -> Iterator[str]:
    for one in answer["endpoints"]:
        new = "new identity" if one["new_identity"] else "identity"
        yield f"{one['endpoint']} added: {new} {one['identity']} ({', '.join(one['labels'])})"


def _labels(given: Iterable[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise BadInput(f"--label: '{one}' is not a label; allowed: KEY=VALUE, as in role=frontend")
        if labels.setdefault(key, value) != value:
            raise BadInput(f"--label: '{key}' is given two values, '{labels[key]}' and '{value}'; one is allowed")
    return labels


def _port(given: str) -> dict[str, object]:
    found = _PORT.fullmatch(given)
    if found is None:
        allowed = "allowed: NAME=NUMBER with /TCP (the default), /UDP or /SCTP, as in http=80/TCP"
        raise BadInput(f"--port: '{given}' is not a named port; {allowed}")
    return {"name": found["name"], "port": int(found["number"]), "protocol": (found["protocol"] or "TCP").upper()}


def _described(metadata: Mapping[str, object], spec: Mapping[str, object]) -> File:
    """Return the document that says so, as a file; what is wrong with it is told of the option that said it."""
    said = {key: value for key, value in spec.items() if value or key == "ips"}
    document = {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": said}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    try:
        loader.parse(text, "")
    except DocumentErrors as wrong:
        raise BadInput("\n".join(dict.fromkeys(map(_of_option, wrong.errors)))) from None
    return File("nfq-enforcer endpoint add", text)


def _of_option(error: DocumentError) -> str:
    for field, option in _SAID_BY.items():
        if error.field == field or error.field.startswith((f"{field}.", f"{field}[")):
            return f"{option}: {error.message}"
    return error.message


def _read(paths: Iterable[Path]) -> list[File]:
    """Return the files, if all they hold is endpoints."""
    files = loader.read(paths)
    parsed = loader.parse_all(files)
    others = [_no_endpoint(one) for one in parsed if not isinstance(one.document, Endpoint)]
    if others:
        raise DocumentErrors(others)
    if not parsed:
        raise BadInput("there is no Endpoint document in what -f names")
    return files


def _no_endpoint(one: ParsedDocument) -> DocumentError:
    kind = one.document.kind
    return one.error(("kind",), f"{kind} is not allowed here; allowed: Endpoint ('policy load' takes the other kinds)")
