"""``nfq-enforcer observe``: flows from the agent, one a line, in the chosen format."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.observe.hubble import to_response
from nfq_enforcer.observe.text import compact
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


ROLE, AT, LATER = "role=frontend", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ([], {"last": 20}),
        (["--follow"], {"follow": True, "last": 0}),
        (["-f", "--last", "5"], {"follow": True, "last": 5}),
        (["--all"], {}),
        (["--all-nodes"], {"last": 20, "all_nodes": True}),
        (["--all-nodes", "-f"], {"last": 0, "all_nodes": True, "follow": True}),
        (["--first", "3"], {"first": 3}),
        (["--verdict", "DROPPED"], {"last": 20, "allow": {"verdict": ["DROPPED"]}}),
        (["--verdict", "dropped", "--last", "7"], {"allow": {"verdict": ["dropped"]}, "last": 7}),
        (["--since", AT], {"since": 1_767_225_600.0}),
        (["--since", AT, "--until", LATER], {"since": 1_767_225_600.0, "until": 1_767_225_601.0}),
        (["-f", "--until", LATER], {"follow": True, "last": 0}),
        (
            ["--from-label", ROLE, "--from-label", "a=b", "--to-port=80", "--all"],
            {"allow": {"from-label": [ROLE, "a=b"], "to-port": ["80"]}},
        ),
        (["--all", "-l", ROLE, "-4", "-n", "s"], {"allow": {"label": [ROLE], "ipv4": ["v4"], "namespace": ["s"]}}),
        (
            ["--all", "--not", "--to-port", "53", "--protocol", "udp", "--not", "-l", ROLE, "--not", "--from-port=1"],
            {"allow": {"protocol": ["udp"]}, "deny": {"label": [ROLE], "from-port": ["1"], "to-port": ["53"]}},
        ),
        (["--all", "--not", "-6"], {"deny": {"ipv6": ["v6"]}}),
        (["--all", "--not", "--verdict=DROPPED"], {"deny": {"verdict": ["DROPPED"]}}),
    ],
)
def test_the_agent_is_asked_for_what_the_options_say(
    arguments: list[str], params: dict[str, Any], run: RunProgram, answering: Answering
) -> None:
    agent = answering(observe=())

    assert run("observe", *arguments, "--socket", agent.socket) == (0, "", "")
    assert agent.calls == [{"follow": False} | params]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--not"], "--not is followed by nothing; allowed: a filter (--label, "),
        (["--not", "--follow"], "--not is followed by --follow; allowed: a filter (--label, "),
        (["--not", "-f"], "--not is followed by -f; allowed: a filter (--label, "),
        (["--not", "--not", "--port", "1"], "--not is followed by --not; allowed: a filter (--label, "),
        (["--port", "x"], "--port 'x': allowed: 0 to 65535"),
        (["--http-path", "("], "--http-path '(': missing ): ("),
        (["--first", "1", "--last", "1"], "--first and --last exclude each other"),
        (["--last", "1", "--all"], "--last and --all exclude each other"),
        (["--first", "1", "-f"], "--first and --follow exclude each other"),
        (["-f", "-o", "tab"], "a table has no end with --follow; allowed: -o compact, dict, json, jsonpb"),
        (["--since", "x"], "'x' is no time; allowed: an age"),
        (["--input-file", "none.json"], "none.json cannot be read: No such file or directory"),
        (["--input-file", "x", "--all-nodes"], "--input-file and --all-nodes exclude each other"),
        (["--input-file", "x", "--follow"], "--input-file and --follow exclude each other"),
    ],
)
def test_a_mistake_is_told_without_an_agent(arguments: list[str], reason: str, run: RunProgram) -> None:
    done = run("observe", "--socket", "/no/agent", *arguments)

    assert (done.status, done.out) == (2, "")
    assert done.err.replace(": cannot", " cannot").startswith(f"nfq-enforcer: {reason}")


@pytest.mark.parametrize("form", ["compact", "dict", "tab", "json", "jsonpb"])
def test_a_missing_node_is_in_the_output_and_a_notice_beside_it(
    form: str, run: RunProgram, answering: Answering
) -> None:
    status = {"state_change": "NODE_UNAVAILABLE", "node_names": ["n2"], "message": "it is away\x1b[2J"}
    agent = answering(observe=({"notice": "read by\x1b[2J all"}, {"node_status": status, "node_name": "n2"}, PASSED))

    done = run("observe", "--all-nodes", "-o", form, "--socket", agent.socket)

    assert done.err == "nfq-enforcer: read by\\x1b[2J all\n"
    assert "NODE_UNAVAILABLE" in done.out
    assert "it is away" in done.out
    assert "\x1b" not in done.out
    assert "FORWARDED" in done.out


def test_the_other_forms_are_those_of_hubble(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(PASSED, DROPPED))

    fields = run("observe", "-o", "dict", "--socket", agent.socket).out.splitlines()
    table = run("observe", "-o", "tab", "--numeric", "--socket", agent.socket).lines
    strict = [json.loads(line) for line in run("observe", "-o", "jsonpb", "--socket", agent.socket).out.splitlines()]

    assert [line.strip() for line in fields if "VERDICT" in line] == [
        *("VERDICT: FORWARDED", "VERDICT: DROPPED POLICY_DENIED"),
    ]
    assert fields.count("------------") == 1
    assert table[0] == "TIMESTAMP NODE SOURCE DESTINATION TYPE VERDICT SUMMARY"
    assert "n1 [fd01::10]:40000 (ID:300) [fd02::10]:80 (ID:2) drop EGRESS DROPPED POLICY_DENIED" in table[2]
    assert [set(item) for item in strict] == [{"flow", "node_name", "time"}] * 2
    assert strict[1]["flow"]["drop_reason"] == 133


def test_a_saved_stream_is_read_without_an_agent(tmp_path: Path, run: RunProgram) -> None:
    saved = tmp_path / "flows.json"
    saved.write_text("\n".join([json.dumps(PASSED), "no flow", json.dumps(to_response(DROPPED)), ""]))

    done = run("observe", "--input-file", saved, "--verdict", "DROPPED")

    assert (done.status, done.out) == (0, f"{compact(DROPPED)}\n")
    assert done.err == "nfq-enforcer: line 2 is no flow: it is not JSON\n"


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
