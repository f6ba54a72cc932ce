"""``policy suggest`` and ``policy impact``: from the agent's log, from files, and as flows come."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.observe.recording import Recording
from tests.unit.cli.conftest import Answering, RunProgram

HOSTILE = "\x1b]0;pwned\x07\r\n- {}"
FRONT = {
    **{"identity": 300, "labels": ["k8s:io.kubernetes.pod.namespace=default", "k8s:role=frontend"]},
    **{"namespace": "default", "pod_name": "front1"},
}
BACK = {
    **{"identity": 301, "labels": ["k8s:io.kubernetes.pod.namespace=default", "k8s:role=backend"]},
    **{"namespace": "default", "pod_name": "back1"},
}
SEEN: dict[str, Any] = {
    "time": "2026-01-01T00:00:00Z",
    "verdict": "FORWARDED",
    "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"},
    "l4": {"TCP": {"source_port": 40_000, "destination_port": 80}},
    "source": FRONT,
    "destination": BACK,
    "node_name": "n1",
    "traffic_direction": "INGRESS",
    "is_reply": False,
}
DROPPED = SEEN | {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "l4": {"UDP": {"destination_port": 53}}}
DENIED = SEEN | {"verdict": "AUDIT", "drop_reason_desc": "POLICY_DENY"}
NODES = [{"name": "n1", "endpoints": 1}, {"name": "n2", "endpoints": 1}, {"name": "empty", "endpoints": 0}]
ENDPOINTS = [
    {
        **{"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint"},
        **{"metadata": {"name": name, "labels": {"role": role}}, "spec": {"ips": [ip]}},
    }
    for name, role, ip in (("front1", "frontend", "10.0.0.1"), ("back1", "backend", "10.0.0.2"))
]
RUNNING = {
    **{"node": "n1", "revision": 7, "enforcement": "auto", "allow_localhost": "always", "cluster": "default"},
    **{"kube_apiserver": [], "node_labels": {}, "identity_labels": [], "documents": ENDPOINTS},
}
IDENTITIES = [{"identity": one["identity"], "labels": one["labels"]} for one in (FRONT, BACK)]
IDENTITIES.append({"identity": 1, "labels": ["reserved:host"]})
CLOSING = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closing}
spec:
  endpointSelector: {matchLabels: {role: backend}}
  ingress: [{fromEndpoints: [{matchLabels: {role: none}}]}]
"""
BECAUSE = "ingress of default/back1 is closed by default/closing, and no rule opens"


def connection(protocol: str, source: int, port: int | None) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "source": {"address": "10.0.0.1", "port": 1, "identity": source},
        "destination": {"address": "10.0.0.2", "port": port, "identity": 301},
    }


OPEN = [connection("TCP", 300, 80), connection("TCP", 300, 80), connection("ICMPv4", 300, None)]
OPEN += [connection("47", 300, None), connection("UDP", 1, 53)]


def save(path: Path, *flows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(flow)}\n" for flow in flows))
    return path


def test_the_suggestion_for_the_log_is_documents_with_comments(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(SEEN, DROPPED, {"lost_events": {"num_events_lost": 3}}, DENIED), nodes=NODES)

    done = run("policy", "suggest", "--direction", "ingress", "--protocol", "tcp", "--socket", agent.socket)

    (document,) = yaml.safe_load_all(done.out)
    assert document["metadata"]["name"] == "suggested-role-backend"
    assert done.lines[:3] == [
        "# Suggested for the flows that n1 had recorded until 2026-01-01T00:00:00Z.",
        *("---", "# for default/back1"),
    ]
    assert "# seen: 1 connection from default/front1, last 2026-01-01T00:00:00Z" in done.out
    assert agent.calls[0] == {"allow": {"protocol": ["tcp"]}}
    assert done.err.splitlines() == [
        "nfq-enforcer: EVENTS LOST: 3 came faster than they were read",
        "nfq-enforcer: 1 events left out: denied by a deny rule, which no rule that allows can change",
        "nfq-enforcer: warning: flows of n2 are not among the recorded ones, but the documents would apply there, too: "
        "save them there by 'observe --all -o json', and give all files by --input-file",
    ]


def test_the_suggestion_for_files_needs_no_agent(run: RunProgram, tmp_path: Path) -> None:
    there = SEEN | {"node_name": "n2", "traffic_direction": "EGRESS"}
    files = save(tmp_path / "n1.json", SEEN), save(tmp_path / "n2.json", there, DROPPED)

    done = run(
        "policy", "suggest", "--input-file", files[0], "--input-file", files[1], "--include-dropped", "-o", "json"
    )

    result = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert [one["metadata"]["name"] for one in result["documents"]] == [
        *("suggested-role-backend", "suggested-role-frontend")
    ]
    assert result["nodes"] == ["n1", "n2"]
    assert result["rules"][0]["document"] == "default/suggested-role-backend"
    assert result["rules"][0]["seen"] == {
        **{"connections": 2, "requests": 0, "refused": 1, "last": "2026-01-01T00:00:00Z"},
        **{"peers": ["default/front1"], "ports": ["80/TCP", "53/UDP"]},
    }
    assert result["not_allowed"] == []


def test_filters_of_one_end_are_those_of_the_connection(run: RunProgram, answering: Answering) -> None:
    """The response to a request comes from the target of its connection."""
    response = {"type": "RESPONSE", "http": {"method": "GET", "url": "http://back1/a", "code": 200}}
    answered = SEEN | {"l7": response, "is_reply": True, "source": BACK, "destination": FRONT}
    answered |= {"IP": {"source": "10.0.0.2", "destination": "10.0.0.1"}}
    answered |= {"l4": {"TCP": {"source_port": 80, "destination_port": 40_000}}}
    other = SEEN | {"source": BACK, "destination": FRONT}
    agent = answering(observe=(SEEN, answered, other), nodes=[])

    done = run("policy", "suggest", "--http", "--to-label", "role=backend", "--socket", agent.socket)

    back, front = yaml.safe_load_all(done.out)
    assert agent.calls[0] == {}
    assert [port["rules"] for rule in back["spec"]["ingress"] for port in rule["toPorts"]] == [
        {"http": [{"method": "GET", "path": "/a"}]}
    ]
    assert "ingress" not in front["spec"]


def test_without_a_flow_nothing_is_suggested(run: RunProgram, tmp_path: Path) -> None:
    done = run("policy", "suggest", "--input-file", save(tmp_path / "flows.json"))

    assert done == (0, "", "nfq-enforcer: no flow that needs a rule was recorded\n")


def test_flows_that_the_suggestion_does_not_allow_are_named(run: RunProgram, tmp_path: Path) -> None:
    flows = [
        SEEN | {"source": {"identity": 400}, "IP": {"source": f"10.0.1.{number}", "destination": "10.0.0.2"}}
        for number in range(22)
    ]

    done = run("policy", "suggest", "--input-file", save(tmp_path / "flows.json", *flows))

    first, *_, last = done.err.splitlines()
    assert first == (
        "nfq-enforcer: not allowed by the suggestion: 10.0.1.0 to default/back1, 80/TCP: the identity of 10.0.1.0 was "
        "not known to the node that recorded it"
    )
    assert last == "nfq-enforcer: not allowed by the suggestion: 2 more flows; -o json has all"


def test_a_name_from_the_network_stays_in_its_comment(run: RunProgram, tmp_path: Path) -> None:
    hostile = SEEN | {"source": FRONT | {"pod_name": HOSTILE}, "node_name": HOSTILE}

    done = run("policy", "suggest", "--input-file", save(tmp_path / "flows.json", hostile), "--direction", "ingress")

    assert "pwned" in done.out
    assert all(line.isprintable() for line in (done.out + done.err).split("\n"))
    assert len(list(yaml.safe_load_all(done.out))) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--for", "1s", "--input-file", "x"], "--for and --input-file exclude each other"),
        (["--for", "1s", "--until", "1m"], "--for and --until exclude each other"),
        (["--for", "1"], "'1' is no duration; allowed: 90s, 5m, 1h30m and the like"),
        (["--to-port", "x"], "--to-port 'x': allowed: 0 to 65535"),
    ],
)
def test_a_mistake_is_found_without_an_agent(options: list[str], error: str, run: RunProgram) -> None:
    done = run("policy", "suggest", *options)

    assert (done.status, done.err) == (2, f"nfq-enforcer: {error}\n")


def test_an_agent_that_ends_while_flows_are_recorded_is_an_error(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(SEEN,))

    done = run("policy", "suggest", "--for", "1h", "--since", "5m", "--socket", agent.socket)

    assert done.status == 1
    assert done.err.splitlines() == [
        "nfq-enforcer: recording for 3600 s; Ctrl-C ends it earlier",
        "nfq-enforcer: the agent ended before the time was over",
    ]
    assert agent.calls[0]["follow"] is True
    assert "last" not in agent.calls[0]


def test_without_an_agent_nothing_can_be_recorded(run: RunProgram, tmp_path: Path) -> None:
    done = run("policy", "suggest", "--for", "1h", "--socket", tmp_path / "none")

    assert done.status == 1
    assert "no agent is listening" in done.err


def test_a_flow_that_cannot_be_read_is_noted(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(SEEN | {"time": "never"}, SEEN), nodes=[])

    done = run("policy", "suggest", "--socket", agent.socket)

    assert "a flow cannot be read: ValueError" in done.err
    assert "suggested-role-backend" in done.out


def test_changed_verdicts_are_listed_with_recorded_and_open_connections(
    run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    (tmp_path / "new.yaml").write_text(CLOSING)
    conntrack = {"flows": OPEN, "total": 9, "searched": 5}
    agent = answering(documents=RUNNING, observe=(SEEN,), conntrack=conntrack, identities=IDENTITIES)

    done = run("policy", "impact", tmp_path / "new.yaml", "--socket", agent.socket)

    assert done.status == 1
    assert done.lines == [
        "FROM TO PORT SEEN OPEN NOW THEN BECAUSE",
        f"default/front1 default/back1 80/TCP 1 2 allow deny {BECAUSE} 80/TCP from default/front1",
        f"default/front1 default/back1 ICMP type 8 0 1 allow deny {BECAUSE} ICMP type 8 from default/front1",
    ]
    assert done.err.splitlines() == [
        "nfq-enforcer: searched 5 of 9 open connections",
        "nfq-enforcer: 1 recorded and 4 open connections evaluated, by the documents of the running agent of node n1, "
        "revision 7",
    ]


def test_the_impact_is_data_for_programs_and_needs_no_agent(run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(CLOSING)
    (tmp_path / "now.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": ENDPOINTS}))
    files = ("--input-file", save(tmp_path / "flows", SEEN), "-f", tmp_path / "now.json")

    done = run("policy", "impact", tmp_path / "new.yaml", *files, "-o", "json")

    assert done.status == 1
    (row,) = json.loads(done.out)
    assert row == {
        **{"from": "default/front1", "to": "default/back1", "traffic": "80/TCP", "seen": 1, "open": 0},
        **{"now": "allow", "then": "deny", "reason": f"{BECAUSE} 80/TCP from default/front1"},
    }


def test_documents_that_change_nothing_are_said_to(run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(CLOSING)
    flows = save(tmp_path / "flows", SEEN)

    done = run("policy", "impact", tmp_path / "new.yaml", "--input-file", flows, "-f", tmp_path / "new.yaml")

    assert (done.status, done.out) == (0, "no connection changes its verdict\n")


def test_flows_that_cannot_be_evaluated_are_counted(run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(CLOSING)
    flows = save(tmp_path / "flows", SEEN | {"source": FRONT | {"pod_name": HOSTILE}})

    done = run("policy", "impact", tmp_path / "new.yaml", "--input-file", flows, "-f", tmp_path / "new.yaml")

    assert done.err.splitlines()[0].startswith("nfq-enforcer: 1 flows left out: no document can name one of their ends")
    assert all(line.isprintable() for line in (done.out + done.err).split("\n"))


def test_recording_ends_with_its_time(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(SEEN,), nodes=[])

    done = run("policy", "suggest", "--for", "0s", "--socket", agent.socket)

    assert (done.status, done.out) == (0, "")
    assert done.err.endswith("no flow that needs a rule was recorded\n")


@pytest.mark.parametrize(("options", "status"), [(["--for", "1h"], 0), ([], 130)])
def test_an_interrupt_ends_the_recording(
    options: list[str], status: int, run: RunProgram, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = answering(observe=(SEEN,), nodes=[])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recording, "add", interrupted)

    assert run("policy", "suggest", *options, "--socket", agent.socket).status == status
