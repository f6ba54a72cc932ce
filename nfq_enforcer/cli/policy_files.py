"""``nfq-enforcer policy validate``, ``trace``, ``matrix`` and ``diff``: documents in files, without root and agent."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.cli import names, output, progress
from nfq_enforcer.cli.options import (
    DEFAULT,
    DocumentPaths,
    Format,
    IgnoreOtherKinds,
    Localhost,
    NoHeaders,
    PolicyOutput,
    Socket,
    for_output,
)
from nfq_enforcer.core.modes import Enforcement
from nfq_enforcer.errors import BadInput, DocumentErrors

EnforcementMode = Annotated[Enforcement, typer.Option("--enforcement", help="As in the configuration of the agent.")]
AllowLocalhost = Annotated[Localhost, typer.Option("--allow-localhost", help="As in the configuration of the agent.")]
Endpoints = Annotated[
    list[Path], typer.Option("--endpoints", help="File or folder of Endpoint and Namespace documents; repeatable.")
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", help="Name of the cluster, as in the configuration of the agent.")
]
KubeApiserver = Annotated[
    list[str] | None,
    typer.Option("--kube-apiserver", help="Address of the entity kube-apiserver, as in the configuration; repeatable."),
]


def validate(
    paths: DocumentPaths,
    ignore_other_kinds: IgnoreOtherKinds = False,
    syntax_only: Annotated[
        bool, typer.Option("--syntax-only", hidden=True, help="No effect: an agent accepts every valid document.")
    ] = False,
    cluster: Cluster = None,
    kube_apiserver: KubeApiserver = None,
) -> None:
    """Check documents as the agent does when it loads them; print every error with its place, and the refused number.

    A warning names each part of a document that can never match, and endpoints without an interface.
    """
    from nfq_enforcer.cli import simulation
    from nfq_enforcer.policy import loader, warnings

    inspection = loader.inspect(paths, ignore_other_kinds=ignore_other_kinds)
    valid = [item.document for item in inspection.parsed]
    documents = loader.group_documents(valid)
    output.warn(warnings.warnings(documents.policies, simulation.facts(documents, cluster, kube_apiserver)))
    output.warn(warnings.endpoint_warnings(documents.endpoints))
    if inspection.ignored:
        output.note(f"documents of other kinds ignored: {inspection.ignored}")
    if inspection.errors:
        refused = f"{inspection.refused} of {inspection.total} documents refused"
        raise BadInput(f"{DocumentErrors(inspection.errors)}\n{refused}")
    output.line(
        f"valid: {sum(one.has_rules for one in documents.policies)} policies, {len(documents.endpoints)} endpoints"
    )


def trace(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="NAMESPACE/NAME of an endpoint, ip:ADDRESS or reserved:NAME.",
            autocompletion=names.endpoints,
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            help="The other end, which accepts the connection; also fqdn:NAME, outside.",
            autocompletion=names.endpoints,
        ),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            help="File or folder of documents; repeatable. Default: all documents and settings of the running agent, "
            "or the configured documents if no agent runs.",
        ),
    ] = None,
    port: Annotated[str | None, typer.Option("--port", help="80/TCP, 53/UDP, ICMP or ICMP/TYPE.")] = None,
    http: Annotated[
        str | None, typer.Option("--http", help="HTTP request, as in 'GET /path' or 'GET http://host/path'.")
    ] = None,
    dns: Annotated[str | None, typer.Option("--dns", help="Name of a DNS query, on 53/UDP by default.")] = None,
    sni: Annotated[str | None, typer.Option("--sni", help="Server name of TLS, on 443/TCP by default.")] = None,
    enforcement: Annotated[
        Enforcement | None, typer.Option("--enforcement", help="Default: that of the running agent, else auto.")
    ] = None,
    allow_localhost: Annotated[
        Localhost | None, typer.Option("--allow-localhost", help="Default: that of the running agent, else always.")
    ] = None,
    cluster: Cluster = None,
    kube_apiserver: KubeApiserver = None,
    ignore_other_kinds: IgnoreOtherKinds = False,
    all_documents: Annotated[
        bool, typer.Option("--all", help="Also show the documents that do not select the endpoint (table).")
    ] = False,
    form: Annotated[Format, typer.Option("--output", "-o", help="table (words), json or yaml.")] = Format.TABLE,
    socket: Socket = DEFAULT,
) -> None:
    """Explain the verdict on a connection rule by rule; exit status 0 if it is allowed, 1 if it is denied."""
    from nfq_enforcer.cli import questions, simulation, tables
    from nfq_enforcer.policy import explain

    options = (enforcement, allow_localhost, cluster, kube_apiserver, ignore_other_kinds)
    simulated, origin = simulation.of_files_or_agent(files, socket, *options)
    pair = simulation.pair(simulated, source, target)
    result = explain.trace(simulated, pair, questions.question(port, http, dns, sni, pair))
    if form.is_table:
        output.display(tables.trace(result, all_documents=all_documents))
        if not files:
            output.line(f"(by the documents of {origin})")
    else:
        output.print_data({**result.as_data(), "documents_of": origin}, form)
    raise typer.Exit(0 if result.result.allowed else 1)


def matrix(
    endpoints: Endpoints,
    policies: Annotated[list[Path], typer.Option("--policies", help="File or folder of policies; repeatable.")],
    probe_file: Annotated[Path | None, typer.Option("--probes", help="JSON list of connections to evaluate.")] = None,
    ports: Annotated[
        list[str] | None,
        typer.Option("--port", help="80/TCP, ICMP …; repeatable. Default: every port that a policy names."),
    ] = None,
    enforcement: EnforcementMode = Enforcement.AUTO,
    allow_localhost: AllowLocalhost = Localhost.ALWAYS,
    cluster: Cluster = None,
    kube_apiserver: KubeApiserver = None,
    ignore_other_kinds: IgnoreOtherKinds = False,
    form: PolicyOutput = None,
    no_headers: NoHeaders = False,
) -> None:
    """Evaluate every pair of endpoints, or a file of probes; exit status 1 if a verdict differs from its 'expect'."""
    from nfq_enforcer.cli import probes, questions, simulation, tables
    from nfq_enforcer.policy import matrix as evaluation

    options = (enforcement, allow_localhost, cluster, kube_apiserver, ignore_other_kinds)
    simulated = simulation.of_files([*endpoints, *policies], *options)
    form = for_output(form)
    if probe_file:
        gc.disable()  # thousands of answers, which all live until the end: a collection would find no garbage
        try:
            raise typer.Exit(probes.evaluate(simulated, probe_file, form, headers=not no_headers))
        finally:
            gc.enable()
    asked = [questions.parse_port(port, "IPv4") for port in ports or ()] or evaluation.default_traffic(simulated)
    cells = []
    with progress.bar("evaluating connections", len(simulated.endpoints) ** 2 * len(asked)) as advance:
        for cell in evaluation.matrix(simulated, asked):
            cells.append(cell)
            advance(1)
    if form.is_table:
        output.display(tables.matrix(simulated.endpoints, cells), headers=not no_headers)
        if not no_headers:
            output.display(tables.legend(cells))
    else:
        output.print_list((cell.as_data() for cell in cells), form)


def diff(
    old: Annotated[Path, typer.Argument(help="File or folder of the current policies.")],
    new: Annotated[Path, typer.Argument(help="File or folder of the new policies.")],
    endpoints: Endpoints,
    enforcement: EnforcementMode = Enforcement.AUTO,
    allow_localhost: AllowLocalhost = Localhost.ALWAYS,
    cluster: Cluster = None,
    kube_apiserver: KubeApiserver = None,
    ignore_other_kinds: IgnoreOtherKinds = False,
    form: PolicyOutput = None,
    no_headers: NoHeaders = False,
) -> None:
    """Show the connections to which a change of policies gives another verdict; exit status 0 if none, 1 if some."""
    from nfq_enforcer.cli import simulation, tables
    from nfq_enforcer.policy import matrix as evaluation

    options = (enforcement, allow_localhost, cluster, kube_apiserver, ignore_other_kinds)
    with progress.waiting("comparing verdicts"):
        before, after = (simulation.of_files([*endpoints, path], *options) for path in (old, new))
        changes = list(evaluation.diff(before, after))
    if (form := for_output(form)).is_table and not changes:
        output.line("no connection changes its verdict")
    elif form.is_table:
        output.display(tables.diff(changes), headers=not no_headers)
    else:
        output.print_list((change.as_data() for change in changes), form)
    raise typer.Exit(1 if changes else 0)
