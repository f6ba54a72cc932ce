"""Options that several commands share."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.agent.defaults import DEFAULT_SOCKET, ENVIRONMENT


class Format(StrEnum):
    """Output format of a result."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_table(self) -> bool:
        """Return whether people read the format; programs read the others."""
        return self in {Format.TABLE, Format.WIDE}


class DataFormat(StrEnum):
    """Output format of a document."""

    YAML = "yaml"
    JSON = "json"


class Localhost(StrEnum):
    """Access of the host to its endpoints: always, or as policy allows."""

    ALWAYS = "always"
    POLICY = "policy"


Output = Annotated[Format, typer.Option("--output", "-o", help="table; wide: with all labels in full; json or yaml.")]
DataOutput = Annotated[DataFormat, typer.Option("--output", "-o", help="yaml or json.")]
PolicyOutput = Annotated[
    Format | None,
    typer.Option("--output", "-o", help="table (default on a terminal), wide, json (default elsewhere) or yaml."),
]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="Leave out the line with the names of the columns.")]
Socket = Annotated[Path, typer.Option("--socket", help="The agent's API socket.", envvar=f"{ENVIRONMENT}API__SOCKET")]
DEFAULT = Path(DEFAULT_SOCKET)
DocumentPaths = Annotated[list[Path], typer.Argument(help="Files and folders of documents; - for standard input.")]
IgnoreOtherKinds = Annotated[
    bool,
    typer.Option("--ignore-other-kinds", help="Leave out documents that have nothing to do with network policy."),
]


def for_output(option: Format | None) -> Format:
    """Return the format of a PolicyOutput: without the option, a table on a terminal and JSON elsewhere."""
    if option is not None:
        return option
    return Format.TABLE if sys.stdout.isatty() else Format.JSON
