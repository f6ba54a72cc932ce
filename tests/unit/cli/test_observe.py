"""``nfq-enforcer observe``: flows from the agent, one a line, in the chosen format."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from nfq_enforcer.observe.flow import compact
from tests.unit.cli.conftest import Answering, RunProgram

PASSED: dict[str, Any] = {
    "time": "2026-01-01T00:00:00.125000Z",
    "verdict": "FORWARDED",
    "IP": {"source": "fd01::10", "destination": "fd02::10", "ipVersion": "IPv6"},
    "l4": {"TCP": {"source_port": 40_000, "destination_port": 80, "flags": {"SYN": True}}},
    "source": {"identity": 300, "labels": ["k8s:role=frontend"], "namespace": "shop", "pod_name": "front1"},
    "destination": {"identity": 2, "labels": ["reserved:world"]},
    "Type": "L3_L4",
    "node_name": "n1",
    "traffic_direction": "EGRESS",
    "is_reply": False,
    "Summary": "TCP Flags: SYN",
}
DROPPED = PASSED | {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED"}


def test_a_flow_is_a_line(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(PASSED, DROPPED))

    done = run("observe", "--socket", agent.socket)

    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [compact(PASSED), compact(DROPPED)]
    assert "[n1]: shop/front1:40000 (ID:300) -> [fd02::10]:80 (world) EGRESS DROPPED POLICY_DENIED" in done.out


def test_a_flow_is_a_json_object_a_line_if_asked_for(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(PASSED, DROPPED))

    done = run("observe", "-o", "json", "--socket", agent.socket)

    assert [json.loads(line) for line in done.out.splitlines()] == [PASSED, DROPPED]


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ([], {"follow": False}),
        (["--follow"], {"follow": True}),
        (["-f", "--last", "0"], {"follow": True, "last": 0}),
        (["--verdict", "DROPPED"], {"follow": False, "verdict": "DROPPED"}),
        (["--verdict", "dropped", "--last", "20"], {"follow": False, "verdict": "DROPPED", "last": 20}),
    ],
)
def test_the_agent_is_asked_for_what_the_options_say(
    arguments: list[str], params: dict[str, Any], run: RunProgram, answering: Answering
) -> None:
    agent = answering(observe=())

    assert run("observe", *arguments, "--socket", agent.socket) == (0, "", "")
    assert agent.calls == [params]


def test_a_reader_that_has_seen_enough_is_no_error(answering: Answering) -> None:
    agent = answering(observe=(PASSED,) * 1000)
    reader, writer = os.pipe()
    os.close(reader)

    run = subprocess.run(
        [sys.executable, "-m", "nfq_enforcer.cli", "observe", "--socket", agent.socket],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)

    assert (run.returncode, run.stderr) == (0, "")
