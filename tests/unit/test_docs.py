"""The documents name files that exist, and the glossary has each term once, in order."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:json|lua|md|py|service|sh|svg|yaml))?)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = set(FILE.findall(document.read_text()))

    assert {
        path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "nfq_enforcer"))
    } == set()


def test_the_glossary_has_each_term_once_in_alphabetical_order() -> None:
    text = (ROOT / "docs/glossary.md").read_text()

    terms = [term.lower().replace(",", "") for term in re.findall(r"^- \*\*(.+?)\*\*", text, re.MULTILINE)]

    assert terms == sorted(set(terms))
    assert len(terms) > 100
