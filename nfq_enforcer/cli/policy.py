"""``nfq-enforcer policy load``, ``list``, ``get`` and ``delete``: the policies of the agent."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.cli import names, output, progress, rollout
from nfq_enforcer.cli.options import (
    DEFAULT,
    DataFormat,
    DataOutput,
    DocumentPaths,
    IgnoreOtherKinds,
    NoHeaders,
    PolicyOutput,
    Socket,
    for_output,
)
from nfq_enforcer.errors import NfqError

_CHARACTERS = 100_000  # of documents, that an agent on a busy machine brings into force in a second
_WAITING = "waiting until the change is in force"
_COLUMNS = ("NAMESPACE", "NAME", "KIND", "FROM")

PolicyName = Annotated[
    str,
    typer.Argument(help="NAMESPACE/NAME; NAME alone for a clusterwide policy.", autocompletion=names.policies),
]
Wait = Annotated[bool, typer.Option(help="Wait until every live node of the cluster enforces the change.")]
Timeout = Annotated[int, typer.Option(min=1, help="With --wait: the longest wait in seconds.")]


def load(
    paths: DocumentPaths,
    wait: Wait = False,
    timeout: Timeout = 30,
    ignore_other_kinds: IgnoreOtherKinds = False,
    socket: Socket = DEFAULT,
) -> None:
    """Load documents into the agent, all or none; return once its node enforces them.

    Without a store they last until the agent ends; with a store all nodes enforce them.
    """
    from nfq_enforcer.policy import loader

    files = loader.read(paths)
    params: dict[str, Any] = {"files": files, "wait": timeout if wait else None}
    if ignore_other_kinds:
        params["ignore_other_kinds"] = True
    work = sum(len(file.text) for file in files) / _CHARACTERS
    with progress.waiting(_WAITING):
        applied = client.call(socket, "apply", _request_timeout(timeout, wait=wait) + work, **params)
    output.warn(applied.get("warnings", ()))
    for name in applied["documents"]:
        output.line(f"{name} applied")
    rollout.report(applied, timeout)


def list_policies(form: PolicyOutput = None, no_headers: NoHeaders = False, socket: Socket = DEFAULT) -> None:
    """List the policies that the agent enforces, with their origin."""
    output.show(
        client.call(socket, "policies"),
        for_output(form),
        lambda result: output.table(_COLUMNS, map(_row, result)),
        headers=not no_headers,
    )


def get(
    name: PolicyName,
    form: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print the document of a policy that the agent enforces."""
    policies = client.call(socket, "policies")
    documents = [one["document"] for one in policies if (one["namespace"], one["name"]) == _split(name)]
    if not documents:
        names = ", ".join(sorted(f"{one['namespace']}/{one['name']}".lstrip("/") for one in policies))
        raise NfqError(f"there is no policy {name}; there are: {names or 'none'}")
    if form is DataFormat.JSON:
        output.print_data(documents[0] if len(documents) == 1 else documents, form)
    else:
        output.print_yaml(documents)


def delete(
    name: PolicyName,
    wait: Wait = False,
    timeout: Timeout = 30,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also a policy that comes from Kubernetes, after Kubernetes was switched off."),
    ] = False,
    socket: Socket = DEFAULT,
) -> None:
    """Delete a policy loaded with 'policy load'; a policy from a file of the agent is deleted in the file."""
    namespace, plain = _split(name)
    params = {"namespace": namespace, "name": plain, "wait": timeout if wait else None, "force": force}
    with progress.waiting(_WAITING):
        deleted = client.call(socket, "delete", _request_timeout(timeout, wait=wait), **params)
    output.line(f"{name} deleted")
    rollout.report(deleted, timeout)


def _request_timeout(timeout: int, *, wait: bool) -> float:
    return client.TIMEOUT + (timeout if wait else 0)


def _split(name: str) -> tuple[str, str]:
    namespace, _, plain = name.rpartition("/")
    return namespace, plain


def _row(policy: Mapping[str, Any]) -> list[object]:
    return [policy["namespace"], policy["name"], _kind(policy), policy["origin"]]


def _kind(policy: Mapping[str, Any]) -> str:
    """Return the kind of a policy, that of an ordered one with its tier and priority."""
    if policy["kind"] != "ClusterNetworkPolicy":
        return str(policy["kind"])
    spec = policy["document"]["spec"]
    return f"{policy['kind']} ({spec['tier']} {spec['priority']})"
