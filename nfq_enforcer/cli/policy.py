"""``nfq-enforcer policy``: documents, before an agent has them."""

from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.policy import loader

app = typer.Typer(help="Policy documents.", no_args_is_help=True)


@app.callback()
def policy() -> None:
    """Policy documents."""


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders of documents.")],
) -> None:
    """Say whether an agent would take these documents, all together; name every mistake with its place."""
    documents = loader.load(paths)
    print(f"valid: {len(documents.policies)} policies, {len(documents.endpoints)} endpoints")
