"""The program ``nfq-enforcer``: runs a command; the error message and exit status of a command that fails."""

import os
import sys

from nfq_enforcer.cli import output, tree
from nfq_enforcer.errors import NfqError


def main() -> None:
    """Run a command; an error becomes one sentence on standard error, and the exit status."""
    try:
        try:
            tree.program()(prog_name=tree.PROGRAM)
        finally:
            sys.stdout.flush()
    except NfqError as error:
        _end(str(error), error.exit_code)
    except (output.OutputClosed, BrokenPipeError):  # the reader of the output has closed it
        _leave_output_unwritten()
    except OSError as error:  # for example a full disk
        _leave_output_unwritten()
        _end(error.strerror or str(error), 1)


def _end(sentence: str, status: int) -> None:
    output.error(sentence)
    sys.exit(status)


def _leave_output_unwritten() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
