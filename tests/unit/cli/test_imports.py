"""Start of a command: one that only asks the agent imports neither the agent, nor Redis, nor pydantic."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from nfq_enforcer.cli.commands import COMMANDS
from tests.unit.cli.conftest import Answering

SLOW = {  # the modules, with all below them, that take most of the time of a start where they are imported
    *("aiohttp", "asyncio", "envoy", "prometheus_client", "pydantic", "re2", "redis", "scapy"),
    *("rich.console", "rich.progress", "rich.table", "yaml"),
    *("nfq_enforcer.agent.agent", "nfq_enforcer.agent.config", "nfq_enforcer.cluster", "nfq_enforcer.dataplane"),
    *("nfq_enforcer.lab", "nfq_enforcer.policy.loader", "nfq_enforcer.policy.documents", "nfq_enforcer.proxy"),
    *("nfq_enforcer.policy.selectors", "nfq_enforcer.store"),
}
RUN = """
import json, sys
from nfq_enforcer.cli.entry import main
try:
    main()
finally:
    print(json.dumps(list(sys.modules)), file=sys.stderr)
"""
END = {"address": "10.0.0.1", "port": 80, "identity": 300}
FLOW = {
    **{"source": END, "destination": END, "protocol": "TCP", "state": "open", "offload": "", "revision": 1},
    **{"expires_in": 1, "queue": 100},
}
ENDPOINT = {
    **{"namespace": "default", "name": "web", "node": "n1", "identity": 300, "labels": ["k8s:role=web"]},
    **{"addresses": ["10.1.0.1"], "document": {}},
}
NODE = {
    **{"name": "n1", "addresses": [], "live": True, "last_seen": None, "revision": 1, "version": "0"},
    **{"endpoints": 0, "datapath": "per-packet"},
}
POLICY = {"namespace": "", "name": "x", "kind": "NetworkPolicy", "origin": "f:1", "document": {}}
SEEN = {
    **{"time": "2026-11-26T03:22:18.000000Z", "verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED"},
    **{"source": {"identity": 1}, "destination": {"identity": 2}, "node_name": "n1", "is_reply": False},
    **{"traffic_direction": "INGRESS", "Summary": "TCP Flags: SYN"},
}
ASKING = [
    (["observe"], "observe", (SEEN,)),
    (["observe", "-o", "json"], "observe", (SEEN,)),
    (["endpoint", "list"], "endpoints", [ENDPOINT]),
    (["endpoint", "list", "-o", "json"], "endpoints", [ENDPOINT]),
    (["identity", "list"], "identities", [{"identity": 300, "labels": [], "endpoints": 1}]),
    (["node", "list"], "nodes", [NODE]),
    (["ipcache", "list"], "ipcache", []),
    (["conntrack", "list"], "conntrack", {"flows": [FLOW], "searched": 1, "total": 1}),
    (["fqdn", "list"], "fqdn", []),
    (["policy", "list", "-o", "table"], "policies", [POLICY]),
    (["policy", "get", "x", "-o", "json"], "policies", [POLICY]),
]


def imported(*arguments: str) -> tuple[int, set[str]]:
    """Run the program in a process of its own; return its exit status and the modules that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, set(json.loads(done.stderr.splitlines()[-1]))


def slow(modules: set[str]) -> set[str]:
    return {module for module in modules for name in SLOW if f"{module}.".startswith(f"{name}.")}


@pytest.mark.parametrize(("arguments", "method", "answer"), ASKING, ids=[" ".join(one[0]) for one in ASKING])
def test_a_command_that_only_asks_imports_nothing_slow(
    arguments: list[str], method: str, answer: object, answering: Answering
) -> None:
    status, modules = imported(*arguments, "--socket", str(answering(**{method: answer}).socket))

    assert (status, slow(modules)) == (0, set())


def test_the_status_imports_nothing_slow(tmp_path: Path) -> None:
    status, modules = imported("status", "--socket", str(tmp_path / "none"))

    assert (status, slow(modules)) == (1, set())
    assert "nfq_enforcer.observe.status" in modules


def test_a_command_imports_the_module_of_no_other_command() -> None:
    _, modules = imported("node", "list", "--help")

    others = {f"nfq_enforcer.cli.{entry.place.partition(':')[0]}" for entry in COMMANDS.values()}
    assert others & modules == {"nfq_enforcer.cli.node"}


def test_help_imports_nothing_slow() -> None:
    for group in ([], ["policy"], ["endpoint"], ["store"], ["lab"]):
        status, modules = imported(*group, "--help")
        assert (status, slow(modules)) == (0, set())


def test_run_imports_no_other_command_and_not_typer() -> None:
    _, modules = imported("run", "--help")

    assert not {"typer", "nfq_enforcer.cli.tree"} & modules


@pytest.mark.parametrize("path", COMMANDS)
def test_each_command_is_a_function_of_its_module(path: str) -> None:
    module, _, function = COMMANDS[path].place.partition(":")

    assert callable(getattr(import_module(f"nfq_enforcer.cli.{module}"), function))
