"""Probes: a file of connections, their verdicts, and those that differ from their ``expect``."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from nfq_enforcer import input_file
from nfq_enforcer.cli import output, progress, tables
from nfq_enforcer.cli.options import Format
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.input_file import DOCUMENTS_SIZE
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.probes import ProbeFile
from nfq_enforcer.policy.simulation import ConnectionResult, Simulation


def evaluate(simulation: Simulation, path: Path, form: Format, *, headers: bool) -> int:
    """Print the verdicts on the probes; return the exit status."""
    probes = ProbeFile(yaml_source.decode(input_file.read(path, DOCUMENTS_SIZE), str(path)), str(path))
    answers = _answers(simulation, probes)
    if form.is_table:
        output.display(tables.probes(probes.probes, answers), headers=headers)
    else:
        output.print_list((answer.as_data() for answer in answers), form)
    unexpected = tuple(_unexpected(probes, answers))
    for difference in unexpected:
        output.error(str(difference))
    return 1 if unexpected else 0


def _answers(simulation: Simulation, file: ProbeFile) -> list[ConnectionResult]:
    answers: list[ConnectionResult] = []
    errors: list[DocumentError] = []
    with progress.bar("evaluating probes", len(file.probes)) as advance:
        for number, probe in enumerate(file.probes):
            try:
                answers.append(simulation.evaluate_probe(probe))
            except ValueError:
                errors += _bad_references(simulation, file, number)
            advance(1)
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
