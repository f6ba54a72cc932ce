"""``nfq-enforcer version``."""

from nfq_enforcer import __version__
from nfq_enforcer.cli import output


def version() -> None:
    """Print the version."""
    output.line(__version__)
