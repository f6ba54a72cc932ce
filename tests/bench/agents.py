"""Whole agents in a lab, for measurements."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import start, stop_agents


@contextmanager
def running(documents: str, *nodes: str, **settings: Any) -> Iterator[Lab]:
    """Run a lab with agents on these nodes, which have these documents and settings."""
    lab = Lab(memory=True)
    try:
        lab.up()
        for node in nodes:
            start(lab, node, documents=documents, **settings)
        yield lab
        stop_agents(lab)
    finally:
        asyncio.run(lab.down())
