"""Prometheus of the host: promtool, and a server of a test's own, with its data in a folder of the test."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import yaml

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import run_in

MONITORING = Path(__file__).parents[2] / "nfq_enforcer" / "monitoring"
PORT = 9090
_FETCH = """
import json, sys, urllib.request
print(json.dumps([json.load(urllib.request.urlopen(url, timeout=9)) for url in json.load(sys.stdin)]))
"""
_START = 20.0  # s


def promtool(*arguments: str | Path, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run promtool; skip the test where it is not installed (make test installs it)."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: make test installs the package prometheus")
    return subprocess.run(
        [program, *map(str, arguments)], input=text, capture_output=True, text=True, check=False, timeout=60
    )


class Query(NamedTuple):
    """Query of the dashboard."""

    panel: str
    expression: str

    def filled(self, interval: str) -> str:
        """Return the expression with Grafana's variables replaced: all nodes, and this interval for rates."""
        return self.expression.replace("$__rate_interval", interval).replace("$instance", ".*")


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    read: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return read


def queries() -> list[Query]:
    """Return every query of the dashboard's panels."""
    return [Query(panel["title"], one["expr"]) for panel in dashboard()["panels"] for one in panel.get("targets", ())]


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in an expression; of a histogram that of the family."""
    return {re.sub(r"_bucket$", "", name) for name in re.findall(r"nfq_enforcer_[a-z_]+", expression)}


class Prometheus:
    """Prometheus server in the namespace of a machine of the lab."""

    def __init__(self, lab: Lab, machine: str) -> None:
        self._lab, self._machine = lab, machine

    def ask(self, path: str, *each: dict[str, str]) -> list[Any]:
        """Return the data of the answers of the HTTP API to these parameters, in their order."""
        urls = [f"http://127.0.0.1:{PORT}/api/v1/{path}?{urlencode(parameters)}" for parameters in each]
        answers = json.loads(run_in(self._lab, self._machine, sys.executable, "-c", _FETCH, text=json.dumps(urls)))
        assert {answer["status"] for answer in answers} == {"success"}, answers
        return [answer["data"] for answer in answers]

    def query(self, *expressions: str) -> list[list[dict[str, Any]]]:
        """Return the present samples of each expression."""
        return [found["result"] for found in self.ask("query", *({"query": one} for one in expressions))]


@contextmanager
def running(lab: Lab, machine: str, folder: Path, targets: list[str], interval: str) -> Iterator[Prometheus]:
    """Run a server with the alert rules that scrapes these targets; it ends with the context."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: make test installs it")
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": [{"job_name": "nfq_enforcer", "static_configs": [{"targets": targets}]}],
        "rule_files": [str(MONITORING / "alerts.yaml")],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    argv = [
        *(program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{PORT}", "--log.level=warn"),
    ]
    with (
        (folder / "prometheus.log").open("w") as log,
        lab.network.in_namespace(machine, argv, stdout=log, stderr=log) as process,
    ):
        try:
            server = Prometheus(lab, machine)
            deadline = time.monotonic() + _START
            while not _is_ready(server):
                assert process.poll() is None, (folder / "prometheus.log").read_text()
                assert time.monotonic() < deadline, "Prometheus does not start"
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(_START)


def _is_ready(server: Prometheus) -> bool:
    try:
        server.ask("status/buildinfo", {})
    except (subprocess.CalledProcessError, json.JSONDecodeError):
        return False
    return True
