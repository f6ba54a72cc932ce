"""``nfq-enforcer agent``."""

import asyncio
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nfq_enforcer.agent.defaults import CONFIG_VARIABLE, DEFAULT_PATH

if TYPE_CHECKING:
    from nfq_enforcer.agent.config import LogSection


class _JsonFormatter(logging.Formatter):
    """Log formatter: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level and message."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "level": record.levelname.lower(), "message": record.getMessage()})


def agent(
    configuration: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=CONFIG_VARIABLE,
            help=f"Configuration file (default: {DEFAULT_PATH}, if it exists).",
        ),
    ] = None,
    keep_rules: Annotated[
        bool,
        typer.Option("--keep-rules", help="Keep the rules at the end: packets that they queue are then dropped."),
    ] = False,
) -> None:
    """Run this node's agent until SIGTERM (root). Prints 'ready' once every packet receives a verdict."""
    from nfq_enforcer.agent import config, handover
    from nfq_enforcer.agent.agent import Agent

    predecessor = handover.take(os.environ)

    def load() -> config.Config:
        return config.load(configuration, os.environ)

    settings = load()
    _set_up_log(settings.log)
    asyncio.run(Agent(settings, keep_rules=keep_rules, predecessor=predecessor, check_config=load).run())


def _set_up_log(settings: "LogSection") -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonFormatter() if settings.format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
