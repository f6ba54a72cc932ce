"""Errors: their sentences and exit statuses."""

from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors, NfqError, OutcomeUnknown


def test_a_problem_in_a_document_reads_from_the_place_to_the_reason() -> None:
    error = DocumentError("a.yaml", "must be a list", line=3, column=5, field="spec.ips")

    assert str(error) == "a.yaml:3:5: spec.ips: must be a list"
    assert error.errors == (error,)


def test_a_place_that_is_not_known_is_left_out() -> None:
    assert str(DocumentError("a.yaml", "cannot be read")) == "a.yaml: cannot be read"


def test_several_problems_are_a_line_each() -> None:
    errors = DocumentErrors([DocumentError("a.yaml", "one"), DocumentError("b.yaml", "two")])

    assert str(errors) == "a.yaml: one\nb.yaml: two"
    assert [error.file for error in errors.errors] == ["a.yaml", "b.yaml"]


def test_bad_input_ends_a_command_with_2_an_unknown_outcome_with_3_and_everything_else_with_1() -> None:
    assert NfqError.exit_code == 1
    assert OutcomeUnknown.exit_code == 3
    assert {error.exit_code for error in (BadInput, DocumentError, DocumentErrors)} == {2}
