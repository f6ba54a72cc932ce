"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.agent.config import DEFAULT_SOCKET, ENVIRONMENT


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class DataFormat(StrEnum):
    """How a document is printed."""

    YAML = "yaml"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="table, json or yaml.")]
DataOutput = Annotated[DataFormat, typer.Option("--output", "-o", help="yaml or json.")]
Socket = Annotated[Path, typer.Option("--socket", help="The agent's API socket.", envvar=f"{ENVIRONMENT}API__SOCKET")]
DEFAULT = Path(DEFAULT_SOCKET)
