"""The house language: package, help texts and README stay below the targets, and so do the documents."""

import pytest

from tools.prose import Part, document_parts, main, package_parts, table, targeted

DOCUMENTS = [part for part in document_parts() if part.name == "CHANGELOG.md" or part.name.startswith("docs")]


def test_the_package_its_help_texts_and_the_readme_are_on_target() -> None:
    parts = [*package_parts(), *document_parts()]

    assert targeted(parts).on_target, f"see tools/prose.py --list FILE ...\n{table(parts)}"


@pytest.mark.parametrize("part", DOCUMENTS, ids=lambda part: part.name)
def test_the_documents_are_on_target(part: Part) -> None:
    assert part.counted.on_target, f"see tools/prose.py --list {part.name}\n{table([part])}"


def test_the_exit_status_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "total" in capsys.readouterr().out
