"""Entry point of the program: ``run`` by itself, because it delays a command of the user; all others together."""

import sys


def main() -> None:
    """Run a command; or answer a shell that completes one (``completion``)."""
    if sys.argv[1:2] == ["run"]:
        from nfq_enforcer.cli import run

        run.main(sys.argv[2:])
    if sys.argv[1:2] == ["__complete"]:
        from nfq_enforcer.cli import completion

        completion.answer(sys.argv[2:])
        return
    from nfq_enforcer.cli.main import main as run_any

    run_any()
