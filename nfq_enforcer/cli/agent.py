"""``nfq-enforcer agent``."""

import asyncio
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.agent import config
from nfq_enforcer.agent.agent import Agent


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level and message."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname.lower(), "message": record.getMessage()})


def agent(
    configuration: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=f"{config.ENVIRONMENT}CONFIG",
            help=f"Configuration file (default: {config.DEFAULT_PATH}, if it is there).",
        ),
    ] = None,
    keep_rules: Annotated[
        bool,
        typer.Option("--keep-rules", help="At the end leave the rules in place: what they queue is then dropped."),
    ] = False,
) -> None:
    """Run this node's agent until SIGTERM (root). Prints 'ready' once every packet is being judged."""
    settings = config.load(configuration, os.environ)
    _set_up_log(settings.log)
    asyncio.run(Agent(settings, keep_rules=keep_rules).run())


def _set_up_log(settings: config.Logging) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonFormatter() if settings.format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
