"""Live names for the completion of a shell, asked from the agent: endpoints, policies, nodes, identities.

Names come from documents and from the store, and may become part of a user's command line. So a name is offered only
if it is made of characters that mean nothing to a shell; without an agent, or without its answer in time, none is.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from nfq_enforcer.agent import client
from nfq_enforcer.agent.defaults import DEFAULT_SOCKET, ENVIRONMENT
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import Format
from nfq_enforcer.errors import NfqError
from nfq_enforcer.text import shorten

TIMEOUT = 1.0  # s for the agent's answer, while a user waits at the keyboard
_MOST = 1000  # names that are offered at a time
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}")
_DEFAULT = "default/"  # namespace that may be left out

Named = tuple[str, str]
"""A name and its description."""


def endpoints(context: typer.Context, incomplete: str) -> list[Named]:
    """Return NAMESPACE/NAME of each endpoint; NAME alone, if no namespace is begun, for those in ``default``."""

    def named(one: Any) -> Iterator[Named]:
        name, labels = f"{one['namespace']}/{one['name']}", ",".join(output.labels(one["labels"], Format.TABLE))
        yield name, labels
        if incomplete and not name.startswith(incomplete):
            yield name.removeprefix(_DEFAULT), labels

    return _offered(context, incomplete, "endpoints", named)


def policies(context: typer.Context, incomplete: str) -> list[Named]:
    """Return NAMESPACE/NAME of each policy, NAME of a clusterwide one."""
    return _offered(
        context, incomplete, "policies", lambda one: [(f"{one['namespace']}/{one['name']}".lstrip("/"), one["kind"])]
    )


def nodes(context: typer.Context, incomplete: str) -> list[Named]:
    """Return the name of each node."""
    return _offered(context, incomplete, "nodes", lambda one: [(one["name"], ",".join(one["addresses"]))])


def identities(context: typer.Context, incomplete: str) -> list[Named]:
    """Return the number of each identity."""
    return _offered(
        context,
        incomplete,
        "identities",
        lambda one: [(str(one["identity"]), ",".join(output.labels(one["labels"], Format.TABLE)))],
    )


def _offered(
    context: typer.Context, incomplete: str, method: str, named: Callable[[Any], Iterable[Named]]
) -> list[Named]:
    try:
        found = [pair for one in client.call(_socket(context), method, TIMEOUT) for pair in named(one)]
    except (NfqError, LookupError, TypeError, AttributeError):  # no agent, or one of another version
        return []
    fitting = dict(pair for pair in found if pair[0].startswith(incomplete) and _SAFE.fullmatch(pair[0]))
    return [(name, shorten(text)) for name, text in sorted(fitting.items())[:_MOST]]


def _socket(context: typer.Context) -> Path:
    return Path(context.params.get("socket") or os.environ.get(f"{ENVIRONMENT}API__SOCKET") or DEFAULT_SOCKET)
