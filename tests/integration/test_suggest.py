"""``policy suggest`` and ``policy impact`` on real traffic: learn in audit mode, suggest, enforce."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.support.labs import (
    BACKENDS,
    FRONTENDS,
    dropped,
    from_role,
    outcomes,
    passes,
    policy,
    start_all,
    stop_agents,
)

CLOSED_TO_ALL = policy("closed", "backend", ingress=[from_role("none")])
LEARNED = {
    **passes(FRONTENDS, BACKENDS, ("80/TCP", "ping")),
    **passes(BACKENDS, ("db3",), ("443/TCP", "53/UDP")),
}
OTHERS = {
    **dropped(FRONTENDS, BACKENDS, ("443/TCP", "53/UDP")),
    **dropped(FRONTENDS, ("db3",), ("443/TCP", "ping")),
    **dropped(BACKENDS, FRONTENDS, ("80/TCP", "ping")),
    **dropped(("db3",), BACKENDS, ("80/TCP", "ping")),
}


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    words = [sys.executable, "-m", "nfq_enforcer.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def agents(lab: Lab, documents: str, **settings: Any) -> Iterator[None]:
    """Run the agents of all nodes with these documents."""
    start_all(lab, documents, **settings)
    try:
        yield
    finally:
        stop_agents(lab)


def saved(nodes: dict[str, LabNode], folder: Path) -> list[object]:
    """Save the flows of every node, and return the options that name the files."""
    options: list[object] = []
    for name, node in nodes.items():
        done = command("observe", "--all", "-o", "json", "--socket", node.socket)
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.json").write_text(done.stdout)
        options += ["--input-file", folder / f"{name}.json"]
    return options


async def test_traffic_learned_in_audit_mode_passes_and_other_traffic_is_refused(
    make_served: Any, tmp_path: Path
) -> None:
    lab = make_served(memory=True)
    with agents(lab, CLOSED_TO_ALL, audit=True):
        assert await outcomes(lab, LEARNED) == LEARNED
        files = saved(lab.nodes, tmp_path)
    done = command("policy", "suggest", *files)
    assert (done.returncode, done.stderr) == (0, "")
    names = [document["metadata"]["name"] for document in yaml.safe_load_all(done.stdout)]
    assert names == ["suggested-role-backend", "suggested-role-db", "suggested-role-frontend"]
    assert "not allowed at that time" in done.stdout

    with agents(lab, done.stdout):
        assert await outcomes(lab, LEARNED | OTHERS) == LEARNED | OTHERS
