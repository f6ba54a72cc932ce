"""Files of the state folder that are written whole or not at all."""

import os
from pathlib import Path


def replace_text(file: Path, text: str) -> None:
    """Write a file for root alone, and its folder if that is missing; raise OSError, with the content before intact."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
        written.write(text)
        written.flush()
        os.fsync(written.fileno())
    draft.replace(file)
