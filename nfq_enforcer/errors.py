"""What a user is told: one sentence an error, and the exit status that goes with it."""

from collections.abc import Iterable


class NfqError(Exception):
    """Anything that ends a command with one sentence for its user; ``str`` is that sentence."""

    exit_code = 1


class BadInput(NfqError):
    """What the user gave cannot be used; nothing of it was applied."""

    exit_code = 2


class DocumentError(BadInput):
    """One problem in a document: ``file:line:column: field: what is wrong and what is allowed``."""

    def __init__(self, file: str, message: str, *, line: int = 0, column: int = 0, field: str = "") -> None:
        """Take what is known of the place: lines and columns count from 1, 0 and ``""`` mean not known."""
        place = f"{file}:{line}:{column}" if line else file
        super().__init__(": ".join(filter(None, (place, field, message))))
        self.file = file
        self.line = line
        self.column = column
        self.field = field
        self.message = message

    @property
    def errors(self) -> "tuple[DocumentError, ...]":
        """Return itself, as DocumentErrors returns its own."""
        return (self,)


class DocumentErrors(BadInput):
    """Every problem of one load, a line each."""

    def __init__(self, errors: Iterable[DocumentError]) -> None:
        """Take the problems in the order in which they are to be read."""
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))
