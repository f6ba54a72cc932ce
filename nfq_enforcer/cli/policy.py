"""``nfq-enforcer policy``: documents, in files (which needs neither root nor an agent) and in the agent."""

import gc
import json
import os
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from nfq_enforcer.agent import client, config
from nfq_enforcer.cli import rollout, tables
from nfq_enforcer.cli.options import DEFAULT, DataFormat, DataOutput, Format, Socket
from nfq_enforcer.cli.output import print_data
from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors, NfqError
from nfq_enforcer.policy import loader, yaml_source
from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.explain import trace as explain
from nfq_enforcer.policy.matrix import default_traffic
from nfq_enforcer.policy.matrix import diff as diff_policies
from nfq_enforcer.policy.matrix import matrix as policy_matrix
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.probes import ProbeFile
from nfq_enforcer.policy.simulation import ECHO_REQUEST, ConnectionResult, EndPair, Simulation

app = typer.Typer(help="Policy documents.", no_args_is_help=True)


class Localhost(StrEnum):
    """Whether the host may open connections to its endpoints whatever policy says."""

    ALWAYS = "always"
    POLICY = "policy"


Output = Annotated[
    Format | None, typer.Option("--output", "-o", help="table (default on a terminal), json (default elsewhere), yaml.")
]
Mode = Annotated[Enforcement, typer.Option("--enforcement", help="As in the agent's configuration.")]
AllowLocalhost = Annotated[Localhost, typer.Option("--allow-localhost", help="As in the agent's configuration.")]
Endpoints = Annotated[
    list[Path], typer.Option("--endpoints", help="File or folder of Endpoint and Namespace documents; repeatable.")
]
Wait = Annotated[bool, typer.Option(help="Return when it is in force on every live node of the cluster.")]
Timeout = Annotated[int, typer.Option(min=1, help="With --wait: for so many seconds at most.")]
Documents = Annotated[list[Path], typer.Argument(help="Files and folders of documents; - for the standard input.")]


@app.callback()
def policy() -> None:
    """Policy documents."""


@app.command()
def validate(
    paths: Documents,
) -> None:
    """Say whether an agent would take these documents, all together; name every mistake with its place."""
    documents = loader.load(paths)
    print(f"valid: {len(documents.policies)} policies, {len(documents.endpoints)} endpoints")


@app.command()
def load(
    paths: Documents,
    wait: Wait = False,
    timeout: Timeout = 30,
    socket: Socket = DEFAULT,
) -> None:
    """Give documents to the agent, all or nothing; returns when they are in force on its node.

    Without a store they last as long as the agent; with one, all nodes enforce them.
    """
    patience = client.TIMEOUT + (timeout if wait else 0)
    files = loader.read(paths)
    taken = client.call(socket, "apply", timeout=patience, files=files, wait=timeout if wait else None)
    for name in taken["documents"]:
        print(f"{name} applied")
    rollout.report(taken, timeout)


@app.command("list")
def list_policies(output: Output = None, socket: Socket = DEFAULT) -> None:
    """List the policies that the agent enforces, and where each comes from."""
    policies = client.call(socket, "policies")
    form = _format(output)
    if form is Format.TABLE:
        Console().print(tables.policies(policies))
    else:
        print_data(policies, form)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME; NAME alone of one for the whole cluster.")],
    output: DataOutput = DataFormat.YAML,
    socket: Socket = DEFAULT,
) -> None:
    """Print a policy's document as the agent has it."""
    policies = client.call(socket, "policies")
    found = [one["document"] for one in policies if (one["namespace"], one["name"]) == _split(name)]
    if not found:
        known = ", ".join(sorted(f"{one['namespace']}/{one['name']}".lstrip("/") for one in policies))
        raise NfqError(f"there is no policy {name}; there are: {known or 'none'}")
    if output is DataFormat.JSON:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    else:
        print(yaml.safe_dump_all(found, sort_keys=False), end="")


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="NAMESPACE/NAME; NAME alone of one for the whole cluster.")],
    wait: Wait = False,
    timeout: Timeout = 30,
    socket: Socket = DEFAULT,
) -> None:
    """Take back a policy that 'policy load' gave; one that the agent has from a file is removed there."""
    namespace, plain = _split(name)
    patience = client.TIMEOUT + (timeout if wait else 0)
    parameters = {"namespace": namespace, "name": plain, "wait": timeout if wait else None}
    taken = client.call(socket, "delete", timeout=patience, **parameters)
    print(f"{name} deleted")
    rollout.report(taken, timeout)


def _split(name: str) -> tuple[str, str]:
    namespace, _, plain = name.rpartition("/")
    return namespace, plain


@app.command()
def trace(
    source: Annotated[str, typer.Option("--from", help="NAMESPACE/NAME of an endpoint, ip:ADDRESS or reserved:NAME.")],
    target: Annotated[str, typer.Option("--to", help="The same, of who accepts the connection.")],
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="File or folder of documents; repeatable. Default: the agent's documents."),
    ] = None,
    port: Annotated[str | None, typer.Option("--port", help="80/TCP, 53/UDP, ICMP or ICMP/TYPE.")] = None,
    http: Annotated[str | None, typer.Option("--http", help="A request, as in 'GET /path'.")] = None,
    enforcement: Mode = Enforcement.AUTO,
    allow_localhost: AllowLocalhost = Localhost.ALWAYS,
    output: Annotated[Format, typer.Option("--output", "-o", help="table (words), json or yaml.")] = Format.TABLE,
) -> None:
    """Explain rule by rule why a connection passes or not; exit status 0 if it passes, 1 if not."""
    simulation = _simulation(files or _configured(), enforcement, allow_localhost)
    pair = _pair(simulation, source, target)
    found = explain(simulation, pair, _question(port, http, pair))
    if output is Format.TABLE:
        Console().print(tables.trace(found), soft_wrap=True)
    else:
        print_data(found.as_data(), output)
    raise typer.Exit(0 if found.result.allowed else 1)


@app.command()
def matrix(
    endpoints: Endpoints,
    policies: Annotated[list[Path], typer.Option("--policies", help="File or folder of policies; repeatable.")],
    probes: Annotated[Path | None, typer.Option("--probes", help="JSON list of connections to judge.")] = None,
    ports: Annotated[
        list[str] | None, typer.Option("--port", help="80/TCP, ICMP …; repeatable. Default: all that a policy names.")
    ] = None,
    enforcement: Mode = Enforcement.AUTO,
    allow_localhost: AllowLocalhost = Localhost.ALWAYS,
    output: Output = None,
) -> None:
    """Judge every pair of endpoints, or the probes of a file; exit status 1 if a probe's ``expect`` is not met."""
    simulation = _simulation([*endpoints, *policies], enforcement, allow_localhost)
    form = _format(output)
    if probes:
        gc.disable()  # answers by the thousand, all of which live until the end: there is nothing to collect
        try:
            raise typer.Exit(_judge_probes(simulation, probes, form))
        finally:
            gc.enable()
    asked = [_parse_port(port, "IPv4") for port in ports] if ports else default_traffic(simulation)
    cells = list(policy_matrix(simulation, asked))
    if form is Format.TABLE:
        Console().print(tables.matrix(simulation.endpoints, cells))
    else:
        _print_list((cell.as_data() for cell in cells), form)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="File or folder of the policies as they are.")],
    new: Annotated[Path, typer.Argument(help="File or folder of the policies as they are to be.")],
    endpoints: Endpoints,
    enforcement: Mode = Enforcement.AUTO,
    allow_localhost: AllowLocalhost = Localhost.ALWAYS,
    output: Output = None,
) -> None:
    """Show which connections a change of policies allows or denies; exit status 0 if none, 1 if some."""
    both = [_simulation([*endpoints, path], enforcement, allow_localhost) for path in (old, new)]
    changes = list(diff_policies(*both))
    form = _format(output)
    if form is Format.TABLE:
        Console().print(tables.diff(changes) if changes else "no connection changes its verdict")
    else:
        _print_list((change.as_data() for change in changes), form)
    raise typer.Exit(1 if changes else 0)


def _simulation(paths: Iterable[Path], enforcement: Enforcement, allow_localhost: Localhost) -> Simulation:
    return Simulation(loader.load(paths), enforcement, allow_localhost=allow_localhost is Localhost.ALWAYS)


def _configured() -> list[Path]:
    documents = config.load(None, os.environ).documents
    if not documents:
        raise BadInput(f"which documents? name them with -f, or as 'documents' in {config.DEFAULT_PATH}")
    return [Path(path) for path in documents]


def _pair(simulation: Simulation, source: str, target: str) -> EndPair:
    for option, reference in (("--from", source), ("--to", target)):
        try:
            simulation.end(reference)
        except ValueError as error:
            raise BadInput(f"{option}: {error}") from None
    return simulation.pair(source, target)


def _question(port: str | None, http: str | None, pair: EndPair) -> TrafficSpec:
    if port is None and http is None:
        raise BadInput("what is asked? give --port, as in --port 80/TCP or --port ICMP")
    question = _parse_port(port or "80/TCP", pair.family)
    if http is None:
        return question
    method, _, path = http.partition(" ")
    if question.proto != PROTOCOLS["TCP"] or not path.startswith("/") or not method:
        raise BadInput(
            f"--http: '{http}' on {question}; allowed: a method and a path, as in 'GET /path', on a TCP port"
        )
    return question._replace(request=HttpRequest(method, path))


def _parse_port(text: str, family: str) -> TrafficSpec:
    number, _, protocol = text.partition("/")
    if number.upper() == "ICMP" and (not protocol or (protocol.isdecimal() and int(protocol) <= 255)):
        proto, echo = ECHO_REQUEST[family]
        return TrafficSpec(proto, int(protocol) if protocol else echo)
    known = PROTOCOLS.get(protocol.upper() or "TCP")
    if known is None or not number.isdecimal() or not 1 <= int(number) <= 65535:
        allowed = "allowed: 1 to 65535 with /TCP (the default), /UDP or /SCTP; ICMP, or ICMP/ and a type from 0 to 255"
        raise BadInput(f"--port: '{text}' is not a port; {allowed}")
    return TrafficSpec(known, int(number))


def _judge_probes(simulation: Simulation, path: Path, form: Format) -> int:
    """Print the answers; return the exit status."""
    try:
        probes = ProbeFile(yaml_source.decode(path.read_bytes(), str(path)), str(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    answers = _answers(simulation, probes)
    if form is Format.TABLE:
        Console().print(tables.probes(probes.probes, answers))
    else:
        _print_list((answer.as_data() for answer in answers), form)
    missed = tuple(_missed(probes, answers))
    for problem in missed:
        print(f"nfq-enforcer: {problem}", file=sys.stderr)
    return 1 if missed else 0


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


def _missed(file: ProbeFile, answers: Sequence[ConnectionResult]) -> Iterable[DocumentError]:
    for number, (probe, answer) in enumerate(zip(file.probes, answers, strict=True)):
        if probe.expect not in {None, answer.verdict}:
            found = (
                f"{probe.source} to {probe.target}: expected {probe.expect}, found {answer.verdict}: {answer.reason}"
            )
            yield file.error(number, "expect", found)


def _format(asked: Format | None) -> Format:
    if asked is not None:
        return asked
    return Format.TABLE if sys.stdout.isatty() else Format.JSON


def _print_list(items: Iterable[dict[str, object]], form: Format) -> None:
    """Print as YAML, or as JSON with an item a line, so that thousands are quick and can be read."""
    if form is Format.YAML:
        print_data(list(items), form)
        return
    before = "["
    for item in items:
        print(f"{before}\n{json.dumps(item, ensure_ascii=False)}", end="")
        before = ","
    print("[]" if before == "[" else "\n]")
