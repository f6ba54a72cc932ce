"""Errors with a sentence for the user and the exit status of the command."""

from collections.abc import Iterable

from nfq_enforcer.text import printable


class NfqError(Exception):
    """Error: ends a command with one sentence for the user, which is its ``str``."""

    exit_code = 1


class OutcomeUnknown(NfqError):
    """Outcome unknown: a change was sent and may be in force, not at all, in part or later."""

    exit_code = 3


class BadInput(NfqError):
    """Invalid input from the user; nothing of it was applied."""

    exit_code = 2


class DocumentError(BadInput):
    """Document error: one error in a document, as ``file:line:column: field: the error and the allowed values``."""

    def __init__(self, file: str, message: str, *, line: int = 0, column: int = 0, field: str = "") -> None:
        """Set message and place; lines and columns count from 1, and 0 and ``""`` stand for unknown."""
        place = f"{file}:{line}:{column}" if line else file
        # a value that the message repeats may have a line break, and must not look like a second error
        super().__init__(printable(": ".join(filter(None, (place, field, message)))))
        self.file = file
        self.line = line
        self.column = column
        self.field = field
        self.message = message

    @property
    def errors(self) -> "tuple[DocumentError, ...]":
        """Return this error alone, for callers that accept DocumentErrors too."""
        return (self,)


class DocumentErrors(BadInput):
    """Document errors: every error of one load, with one line for each."""

    def __init__(self, errors: Iterable[DocumentError]) -> None:
        """Set the errors, in the order of their lines."""
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))
