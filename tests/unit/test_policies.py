"""The examples in ``policies/``: each is valid, alone and with all others, and fulfils its probe file."""

from pathlib import Path

import pytest

from nfq_enforcer.policy.compiler import Enforcement
from nfq_enforcer.policy.loader import load
from nfq_enforcer.policy.probes import ProbeFile
from nfq_enforcer.policy.simulation import Simulation

FOLDER = Path(__file__).parents[2] / "policies"
ENDPOINTS = FOLDER / "endpoints.yaml"
EXAMPLES = sorted(set(FOLDER.glob("*.yaml")) - {ENDPOINTS})


def mode(example: Path) -> Enforcement:
    """Return the enforcement mode of an example: NetworkPolicies isolate endpoints one by one, as in Kubernetes."""
    return Enforcement.PER_ENDPOINT if example.name.startswith("k8s-") else Enforcement.AUTO


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_does_what_its_probes_expect(example: Path) -> None:
    simulation = Simulation(load([ENDPOINTS, example]), mode(example))
    file = example.with_suffix(".probes.json")

    probes = ProbeFile(file.read_text(), str(file)).probes

    assert {probe.expect for probe in probes} == {"allow", "deny"} or example.stem == "k8s-allow-all"
    results = [simulation.evaluate_probe(probe) for probe in probes]
    assert [
        f"{probe.source} to {probe.target}, {probe}: {result.reason}"
        for probe, result in zip(probes, results, strict=True)
        if result.verdict != probe.expect
    ] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_one_policy_named_as_its_file_and_says_what_it_does(example: Path) -> None:
    (policy,) = (document for document in load([example]).policies if document.has_rules)

    assert policy.name == example.stem
    assert example.read_text().startswith("# ")


def test_all_examples_can_be_loaded_together_and_probe_files_are_no_documents() -> None:
    policies = [document for document in load([FOLDER]).policies if document.has_rules]
    assert len(policies) == len(EXAMPLES) >= 25
