"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.agent.defaults import DEFAULT_SOCKET, ENVIRONMENT


class Format(StrEnum):
    """Output format of a result."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class DataFormat(StrEnum):
    """Output format of a document."""

    YAML = "yaml"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="table, json or yaml.")]
DataOutput = Annotated[DataFormat, typer.Option("--output", "-o", help="yaml or json.")]
Socket = Annotated[Path, typer.Option("--socket", help="The agent's API socket.", envvar=f"{ENVIRONMENT}API__SOCKET")]
DEFAULT = Path(DEFAULT_SOCKET)
