"""``nfq-enforcer agent``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nfq_enforcer.agent.defaults import CONFIG_VARIABLE, DEFAULT_PATH


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
    import asyncio

    from nfq_enforcer.agent import config, handover, program_log
    from nfq_enforcer.agent.agent import Agent

    predecessor = handover.take(os.environ)

    def load() -> config.Config:
        return config.load(configuration, os.environ)

    settings = load()
    program_log.set_up(settings.log.level, settings.log.format)
    asyncio.run(Agent(settings, keep_rules=keep_rules, predecessor=predecessor, check_config=load).run())
