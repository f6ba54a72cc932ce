"""``nfq-enforcer policy``: policy documents, in files (without root and agent) and in the agent."""

import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from nfq_enforcer import input_file
from nfq_enforcer.agent import client, config, defaults
from nfq_enforcer.cli import output, rollout, tables
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, Socket
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, TlsHello
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors, NfqError
from nfq_enforcer.input_file import DOCUMENTS_SIZE
from nfq_enforcer.policy import loader, yaml_source
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.explain import trace as explain
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER, Address, address, cluster_name
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.policy.loader import Documents, endpoint_labels
from nfq_enforcer.policy.matrix import default_traffic
from nfq_enforcer.policy.matrix import diff as diff_policies
from nfq_enforcer.policy.matrix import matrix as policy_matrix
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.probes import ProbeFile
from nfq_enforcer.policy.simulation import ECHO_REQUEST, ConnectionResult, EndPair, Simulation
from nfq_enforcer.policy.warnings import ClusterFacts, endpoint_warnings, warnings

app = typer.Typer(help="Policy documents.", no_args_is_help=True)


_MANY_DOCUMENTS = 60.0  # s for all documents of a large cluster
_CHARACTERS = 100_000  # of documents, that an agent on a busy machine brings into force in a second


class Localhost(StrEnum):
    """Access of the host to its endpoints: always, or as policy allows."""

    ALWAYS = "always"
    POLICY = "policy"


PolicyOutput = Annotated[
    Format | None, typer.Option("--output", "-o", help="table (default on a terminal), json (default elsewhere), yaml.")
]
EnforcementMode = Annotated[Enforcement, typer.Option("--enforcement", help="As in the configuration of the agent.")]
AllowLocalhost = Annotated[Localhost, typer.Option("--allow-localhost", help="As in the configuration of the agent.")]
Endpoints = Annotated[
    list[Path], typer.Option("--endpoints", help="File or folder of Endpoint and Namespace documents; repeatable.")
]
Wait = Annotated[bool, typer.Option(help="Wait until every live node of the cluster enforces the change.")]
Timeout = Annotated[int, typer.Option(min=1, help="With --wait: the longest wait in seconds.")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", help="Name of the cluster, as in the configuration of the agent.")
]
KubeApiserver = Annotated[
    list[str] | None,
    typer.Option("--kube-apiserver", help="Address of the entity kube-apiserver, as in the configuration; repeatable."),
]
IgnoreOtherKinds = Annotated[
    bool,
    typer.Option("--ignore-other-kinds", help="Leave out documents that have nothing to do with network policy."),
]
DocumentPaths = Annotated[list[Path], typer.Argument(help="Files and folders of documents; - for standard input.")]


@app.callback()
def policy() -> None:
    """Policy documents."""


@app.command()
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
    inspection = loader.inspect(paths, ignore_other_kinds=ignore_other_kinds)
    valid = [item.document for item in inspection.parsed]
    documents = loader.group_documents(valid)
    _warn(warnings(documents.policies, _facts(documents, cluster, kube_apiserver)))
    _warn(endpoint_warnings(documents.endpoints))
    _tell_ignored(inspection.ignored)
    if inspection.errors:
        refused = f"{inspection.refused} of {inspection.total} documents refused"
        raise BadInput(f"{DocumentErrors(inspection.errors)}\n{refused}")
    output.line(
        f"valid: {sum(one.has_rules for one in documents.policies)} policies, {len(documents.endpoints)} endpoints"
    )


def _facts(documents: Documents, cluster: str | None, kube_apiserver: list[str] | None) -> ClusterFacts:
    endpoints = (endpoint_labels(endpoint, documents.namespaces) for endpoint in documents.endpoints)
    sources = frozenset(label.source for labels in endpoints for label in labels)
    return ClusterFacts(_cluster(cluster), bool(_addresses(kube_apiserver)), sources)


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        output.note(f"warning: {sentence}")


def _tell_ignored(number: int) -> None:
    if number:
        output.note(f"documents of other kinds ignored: {number}")


def _cluster(name: str | None) -> str:
    try:
        return cluster_name(name or DEFAULT_CLUSTER)
    except ValueError as error:
        raise BadInput(f"--cluster: {error}") from None


def _addresses(written: list[str] | None) -> tuple[Address, ...]:
    try:
        return tuple(map(address, written or ()))
    except ValueError as error:
        raise BadInput(f"--kube-apiserver: {error}") from None


@app.command()
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
    files = loader.read(paths)
    params: dict[str, Any] = {"files": files, "wait": timeout if wait else None}
    if ignore_other_kinds:
        params["ignore_other_kinds"] = True
    work = sum(len(file.text) for file in files) / _CHARACTERS
    applied = client.call(socket, "apply", _request_timeout(timeout, wait=wait) + work, **params)
    _warn(applied.get("warnings", ()))
    for name in applied["documents"]:
        output.line(f"{name} applied")
    rollout.report(applied, timeout)


@app.command("list")
def list_policies(form: PolicyOutput = None, socket: Socket = DEFAULT) -> None:
    """List the policies that the agent enforces, with their origin."""
    policies = client.call(socket, "policies")
    if (form := _format(form)) is Format.TABLE:
        output.display(tables.policies(policies))
    else:
        output.print_data(policies, form)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME; NAME alone for a clusterwide policy.")],
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


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME; NAME alone for a clusterwide policy.")],
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
    deleted = client.call(socket, "delete", _request_timeout(timeout, wait=wait), **params)
    output.line(f"{name} deleted")
    rollout.report(deleted, timeout)


def _request_timeout(timeout: int, *, wait: bool) -> float:
    return client.TIMEOUT + (timeout if wait else 0)


def _split(name: str) -> tuple[str, str]:
    namespace, _, plain = name.rpartition("/")
    return namespace, plain


@app.command()
def trace(
    source: Annotated[str, typer.Option("--from", help="NAMESPACE/NAME of an endpoint, ip:ADDRESS or reserved:NAME.")],
    target: Annotated[
        str, typer.Option("--to", help="The other end, which accepts the connection; also fqdn:NAME, outside.")
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
    options = (enforcement, allow_localhost, cluster, kube_apiserver, ignore_other_kinds)
    simulation, origin = _traced(files, socket, *options)
    pair = _pair(simulation, source, target)
    result = explain(simulation, pair, _question(port, http, dns, sni, pair))
    if form is Format.TABLE:
        output.display(tables.trace(result, all_documents=all_documents))
        if not files:
            output.line(f"(by the documents of {origin})")
    else:
        output.print_data({**result.as_data(), "documents_of": origin}, form)
    raise typer.Exit(0 if result.result.allowed else 1)


@app.command()
def matrix(
    endpoints: Endpoints,
    policies: Annotated[list[Path], typer.Option("--policies", help="File or folder of policies; repeatable.")],
    probes: Annotated[Path | None, typer.Option("--probes", help="JSON list of connections to evaluate.")] = None,
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
) -> None:
    """Evaluate every pair of endpoints, or a file of probes; exit status 1 if a verdict differs from its ``expect``."""
    options = (enforcement, allow_localhost, cluster, kube_apiserver, ignore_other_kinds)
    simulation = _simulation([*endpoints, *policies], *options)
    form = _format(form)
    if probes:
        gc.disable()  # thousands of answers, which all live until the end: a collection would find no garbage
        try:
            raise typer.Exit(_evaluate_probes(simulation, probes, form))
        finally:
            gc.enable()
    questions = [_parse_port(port, "IPv4") for port in ports] if ports else default_traffic(simulation)
    cells = list(policy_matrix(simulation, questions))
    if form is Format.TABLE:
        output.display(tables.matrix(simulation.endpoints, cells))
    else:
        output.print_list((cell.as_data() for cell in cells), form)


@app.command()
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
) -> None:
    """Show the connections to which a change of policies gives another verdict; exit status 0 if none, 1 if some."""
    options = (enforcement, allow_localhost, cluster, kube_apiserver, ignore_other_kinds)
    simulations = [_simulation([*endpoints, path], *options) for path in (old, new)]
    changes = list(diff_policies(*simulations))
    if (form := _format(form)) is Format.TABLE:
        output.display(tables.diff(changes) if changes else Text("no connection changes its verdict"))
    else:
        output.print_list((change.as_data() for change in changes), form)
    raise typer.Exit(1 if changes else 0)


def _simulation(
    paths: Iterable[Path],
    enforcement: Enforcement,
    allow_localhost: Localhost,
    cluster: str | None,
    kube_apiserver: list[str] | None,
    ignore_other_kinds: bool,
    node_labels: Mapping[str, str] | None = None,
) -> Simulation:
    return Simulation(
        loader.load(paths, ignore_other_kinds=ignore_other_kinds),
        enforcement,
        allow_localhost=allow_localhost is Localhost.ALWAYS,
        cluster=_cluster(cluster),
        kube_apiserver=_addresses(kube_apiserver),
        node_labels=Labels.parse(node_labels or {}),
    )


def _traced(
    files: list[Path] | None,
    socket: Path,
    enforcement: Enforcement | None,
    allow_localhost: Localhost | None,
    cluster: str | None,
    kube_apiserver: list[str] | None,
    ignore_other_kinds: bool,
) -> tuple[Simulation, str]:
    """Return the simulation of files, else of the running agent, else of the configured documents; and its origin."""
    mode, localhost = enforcement or Enforcement.AUTO, allow_localhost or Localhost.ALWAYS
    if files:
        return _simulation(files, mode, localhost, cluster, kube_apiserver, ignore_other_kinds), "the given files"
    try:
        running = client.call(socket, "documents", _MANY_DOCUMENTS)
    except client.NoAgent:
        simulation = _configured_simulation(mode, localhost, cluster, kube_apiserver, ignore_other_kinds)
        return simulation, "the configuration; no agent is running"
    simulation = Simulation(
        loader.from_data(running["documents"]),
        enforcement or Enforcement(running["enforcement"]),
        allow_localhost=(allow_localhost or Localhost(running["allow_localhost"])) is Localhost.ALWAYS,
        cluster=_cluster(cluster or running["cluster"]),
        kube_apiserver=_addresses(kube_apiserver or running["kube_apiserver"]),
        relevant=LabelFilter(running["identity_labels"]),
        node_labels=Labels.parse(running.get("node_labels", {})),
    )
    return simulation, f"the running agent of node {running['node']}, revision {running['revision']}"


def _configured_simulation(
    enforcement: Enforcement,
    allow_localhost: Localhost,
    cluster: str | None,
    kube_apiserver: list[str] | None,
    ignore_other_kinds: bool,
) -> Simulation:
    """Return the simulation of the documents in the agent's configuration, with its cluster, API server and labels."""
    configured = config.load(None, os.environ)
    if not configured.documents:
        raise BadInput(f"which documents? name them with -f, or as 'documents' in {defaults.DEFAULT_PATH}")
    addresses = kube_apiserver or list(map(str, configured.kube_apiserver))
    paths = map(Path, configured.documents)
    options = (cluster or configured.cluster, addresses, ignore_other_kinds, configured.node.labels)
    return _simulation(paths, enforcement, allow_localhost, *options)


def _pair(simulation: Simulation, source: str, target: str) -> EndPair:
    for option, reference in (("--from", source), ("--to", target)):
        try:
            simulation.end(reference)
        except ValueError as error:
            raise BadInput(f"{option}: {error}") from None
    return simulation.pair(source, target)


def _question(port: str | None, http: str | None, dns: str | None, sni: str | None, pair: EndPair) -> TrafficSpec:
    asked = {option: text for option, text in {"http": http, "dns": dns, "sni": sni}.items() if text is not None}
    if port is None and not asked:
        raise BadInput("what is asked? give --port, as in --port 80/TCP or --port ICMP")
    default = "53/UDP" if dns is not None else "443/TCP" if sni is not None else "80/TCP"
    question = _parse_port(port or default, pair.family)
    if len(asked) > 1:
        raise BadInput(f"--{' and --'.join(asked)}: one question at a time; allowed: one of them")
    if dns is not None:
        if question.protocol not in {"TCP", "UDP"}:
            raise BadInput(f"--dns: '{dns}' on {question}; allowed: on a UDP or TCP port")
        return question._replace(request=DnsQuestion(dns))
    if sni is not None:
        if question.protocol != "TCP":
            raise BadInput(f"--sni: '{sni}' on {question}; allowed: on a TCP port")
        return question._replace(request=TlsHello(sni))
    return question if http is None else question._replace(request=_http_request(http, question))


def _http_request(http: str, question: TrafficSpec) -> HttpRequest:
    method, _, path = http.partition(" ")
    if question.protocol != "TCP" or not path.startswith(("/", "http://", "https://")) or not method:
        raise BadInput(
            f"--http: '{http}' on {question}; allowed: a method and a path or URL, as in 'GET /path', on a TCP port"
        )
    return HttpRequest(method, path)


def _parse_port(text: str, family: str) -> TrafficSpec:
    number, _, protocol = text.partition("/")
    if number.upper() == "ICMP" and (not protocol or (protocol.isdecimal() and int(protocol) <= 255)):
        proto, echo = ECHO_REQUEST[family]
        return TrafficSpec(proto, int(protocol) if protocol else echo)
    ip_protocol = PROTOCOLS.get(protocol.upper() or "TCP")
    if ip_protocol is None or not number.isdecimal() or not 1 <= int(number) <= 65535:
        allowed = "allowed: 1 to 65535 with /TCP (the default), /UDP or /SCTP; ICMP, or ICMP/ and a type from 0 to 255"
        raise BadInput(f"--port: '{text}' is not a port; {allowed}")
    return TrafficSpec(ip_protocol, int(number))


def _evaluate_probes(simulation: Simulation, path: Path, form: Format) -> int:
    """Print the verdicts on the probes; return the exit status."""
    probes = ProbeFile(yaml_source.decode(input_file.read(path, DOCUMENTS_SIZE), str(path)), str(path))
    answers = _answers(simulation, probes)
    if form is Format.TABLE:
        output.display(tables.probes(probes.probes, answers))
    else:
        output.print_list((answer.as_data() for answer in answers), form)
    unexpected = tuple(_unexpected(probes, answers))
    for difference in unexpected:
        output.error(str(difference))
    return 1 if unexpected else 0


def _answers(simulation: Simulation, file: ProbeFile) -> list[ConnectionResult]:
    answers: list[ConnectionResult] = []
    errors: list[DocumentError] = []
    for number, probe in enumerate(file.probes):
        try:
            answers.append(simulation.evaluate_probe(probe))
        except ValueError:
            errors += _bad_references(simulation, file, number)
    if errors:
        raise DocumentErrors(errors)
    return answers


def _bad_references(simulation: Simulation, file: ProbeFile, number: int) -> Iterable[DocumentError]:
    probe = file.probes[number]
    for field, reference in (("from", probe.source), ("to", probe.target)):
        try:
            simulation.end(reference)
        except ValueError as error:
            yield file.error(number, field, str(error))


def _unexpected(file: ProbeFile, answers: Sequence[ConnectionResult]) -> Iterable[DocumentError]:
    for number, (probe, answer) in enumerate(zip(file.probes, answers, strict=True)):
        if probe.expect not in {None, answer.verdict}:
            message = (
                f"{probe.source} to {probe.target}: expected {probe.expect}, found {answer.verdict}: {answer.reason}"
            )
            yield file.error(number, "expect", message)


def _format(option: Format | None) -> Format:
    if option is not None:
        return option
    return Format.TABLE if sys.stdout.isatty() else Format.JSON
