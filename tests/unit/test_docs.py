"""The documents name files that exist, and the glossary has each term once, in order."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from nfq_enforcer.policy.cilium import Entity
from nfq_enforcer.policy.registry import KINDS, UNSUPPORTED_KINDS
from nfq_enforcer.policy.validation import Part

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:json|lua|md|py|service|sh|svg|yaml))?)`")

PLACED = re.compile(
    r"`((?:[\w.-]+/)+[\w-]+\.py)`: ((?:`[A-Za-z_.]+`(?:, )?)+)"
)  # `file.py`: `Class.method`, `function`
NAME = re.compile(r"`([A-Za-z_.]+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = set(FILE.findall(document.read_text()))

    assert {
        path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "nfq_enforcer"))
    } == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_that_a_document_places_in_a_file_are_defined_there(document: Path) -> None:
    placed = [(file, name) for file, names in PLACED.findall(document.read_text()) for name in NAME.findall(names)]

    undefined = []
    for file, name in placed:
        base = next((base for base in (ROOT, ROOT / "nfq_enforcer") if (base / file).exists()), ROOT)
        text = (base / file).read_text()
        undefined += [(file, name) for part in name.split(".") if not re.search(rf"\b(?:def|class) {part}\b", text)]
    assert undefined == []


def test_the_glossary_has_each_term_once_in_alphabetical_order() -> None:
    text = (ROOT / "docs/glossary.md").read_text()

    terms = [term.lower().replace(",", "") for term in re.findall(r"^- \*\*(.+?)\*\*", text, re.MULTILINE)]

    assert terms == sorted(set(terms))
    assert len(terms) > 100


def parts(model: type[Part]) -> Iterator[type[Part]]:
    """Yield a model and the models of its fields, at any depth."""
    yield model
    for field in model.model_fields.values():
        annotations = [field.annotation]
        while annotations:
            annotation = annotations.pop()
            if isinstance(annotation, type) and issubclass(annotation, Part):
                yield from parts(annotation)
            annotations += get_args(annotation)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("Policy")])
def test_every_field_of_a_policy_has_its_line(kind: str) -> None:
    documented = set(re.findall(r"[A-Za-z0-9-]+", (ROOT / "docs/policies.md").read_text()))

    models = set(parts(KINDS[kind][1]))
    names = {name for model in models for name in (*model.fields(), *model.unsupported, *model.removed)}
    assert (
        names - documented - {"key", "operator", "values", "value", "source", "apiVersion", "kind", "metadata"} == set()
    )
    assert kind in documented


def test_every_entity_and_every_unsupported_kind_has_its_line() -> None:
    documented = set(re.findall(r"`([^`]+)`", (ROOT / "docs/policies.md").read_text()))

    assert set(get_args(Entity)) - documented == set()
    assert {kind for kind in UNSUPPORTED_KINDS if kind.endswith(("AdminNetworkPolicy", "Group"))} - documented == set()
