"""``nfq-enforcer policy trace``, ``matrix`` and ``diff``: output and exit status."""

import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.policy import loader
from nfq_enforcer.policy.loader import File
from tests.unit.cli.conftest import Answering, RunProgram

POLICIES = Path(__file__).parents[3] / "policies"
ENDPOINTS = POLICIES / "endpoints.yaml"
WEB_PORTS = POLICIES / "backend-web-ports.yaml"
USERDATA = POLICIES / "backend-userdata.yaml"


Ask = RunProgram


@pytest.fixture
def ask(run: RunProgram) -> Ask:
    """Run ``nfq-enforcer policy`` with these arguments."""
    return partial(run, "policy")


def write_probes(folder: Path, *probes: dict[str, object]) -> Path:
    file = folder / "p.json"
    file.write_text("[" + ",\n".join(map(json.dumps, probes)) + "]")
    return file


FRONT_TO_BACK: dict[str, object] = {"from": "default/front", "to": "default/back", "protocol": "TCP", "port": 80}
MATRIX = ("matrix", "--endpoints", ENDPOINTS, "--policies", WEB_PORTS)
TRACE = ("trace", "-f", ENDPOINTS, "-f", WEB_PORTS, "--from", "default/front", "--to", "default/back")


def test_probes_are_answered_in_their_order(ask: Ask, tmp_path: Path) -> None:
    probes = write_probes(tmp_path, FRONT_TO_BACK, {**FRONT_TO_BACK, "port": 22})

    done = ask(*MATRIX, "--probes", probes, "-o", "json")

    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == [
        {
            "verdict": "allow",
            "egress": {"verdict": "allow", "rules": []},
            "ingress": {"verdict": "allow", "rules": ["default/backend-web-ports ingress[0]"]},
            "reason": "nothing closes egress of default/front; "
            "default/backend-web-ports ingress[0] opens ingress of default/back",
        },
        {
            "verdict": "deny",
            "egress": {"verdict": "allow", "rules": []},
            "ingress": {"verdict": "deny", "rules": []},
            "reason": "ingress of default/back is closed by default/backend-web-ports, "
            "and no rule opens 22/TCP from default/front",
        },
    ]


def test_an_expectation_that_is_not_met_is_named_with_its_place(ask: Ask, tmp_path: Path) -> None:
    probes = write_probes(
        tmp_path,
        {**FRONT_TO_BACK, "expect": "allow"},
        {**FRONT_TO_BACK, "port": 22, "expect": "allow"},
    )

    done = ask(*MATRIX, "--probes", probes)

    assert (done.status, len(json.loads(done.out))) == (1, 2)
    assert done.err.startswith(
        f"nfq-enforcer: {probes}:2:90: [1].expect: default/front to default/back: expected allow, "
    )


def test_probes_as_a_table_show_what_was_asked_and_what_was_expected(ask: Ask, tmp_path: Path) -> None:
    probes = write_probes(tmp_path, {**FRONT_TO_BACK, "port": 22, "expect": "allow"}, FRONT_TO_BACK)

    done = ask(*MATRIX, "--probes", probes, "-o", "table")

    rows = [line.split()[:4] for line in done.out.splitlines()]
    assert ["default/front", "default/back", "22/TCP", "deny"] in rows
    assert ["default/front", "default/back", "80/TCP", "allow"] in rows
    assert "expected allow" in done.out


def test_every_reference_to_nobody_is_named(ask: Ask, tmp_path: Path) -> None:
    probes = write_probes(tmp_path, {**FRONT_TO_BACK, "from": "front"}, {**FRONT_TO_BACK, "to": "ip:10.0"})

    done = ask(*MATRIX, "--probes", probes)

    first, second = done.err.splitlines()
    assert (done.status, done.out) == (2, "")
    assert first.startswith(
        f"nfq-enforcer: {probes}:1:11: [0].from: 'front' is nobody that the documents know; did you mean default/front "
    )
    assert second.startswith(
        f"{probes}:2:33: [1].to: '10.0' is not an address; allowed: ip: and an IPv4 or IPv6 address"
    )


def test_a_probe_file_that_is_not_there_is_refused(ask: Ask, tmp_path: Path) -> None:
    done = ask(*MATRIX, "--probes", tmp_path / "none")

    assert done == (2, "", f"nfq-enforcer: {tmp_path}/none: cannot be read: {os.strerror(errno.ENOENT)}\n")


def test_without_probes_every_pair_is_asked_every_port_that_a_policy_names(ask: Ask) -> None:
    cells = json.loads(ask(*MATRIX).out)

    assert len(cells) == 6 * 5 * 4
    assert {(cell["from"], cell["to"], cell["port"]) for cell in cells if cell["verdict"] == "allow"} == {
        ("default/front", "default/back", 80),
        ("default/front", "default/back", 443),
    }


def test_ports_may_be_chosen(ask: Ask) -> None:
    cells = json.loads(ask(*MATRIX, "--port", "443", "--port", "53/udp", "--port", "icmp/13").out)

    assert [(cell["protocol"], cell.get("port"), cell.get("icmp")) for cell in cells[:3]] == [
        ("TCP", 443, None),
        ("UDP", 53, None),
        ("ICMP", None, {"type": 13}),
    ]


@pytest.mark.parametrize("port", ["0", "80/XYZ", "http", "icmp/256", "65536/TCP"])
def test_what_is_no_port_is_refused(port: str, ask: Ask) -> None:
    done = ask(*MATRIX, "--port", port)

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"nfq-enforcer: --port: '{port}' is not a port; allowed: 1 to 65535 with /TCP ")


def test_a_square_shows_which_ports_are_open(ask: Ask) -> None:
    done = ask("matrix", "--endpoints", ENDPOINTS, "--policies", WEB_PORTS, "--policies", USERDATA, "-o", "table")

    (front, *_) = [line for line in done.out.splitlines() if line.startswith("default/front")]
    assert front.split()[1:4] == ["·", "80/TCP,443/TCP", "✗"]
    assert "✓ all of it passes   ✗ none   a port: only that   ~ only some requests" in done.out


def test_a_square_marks_ports_that_only_some_requests_pass(ask: Ask) -> None:
    done = ask("matrix", "--endpoints", ENDPOINTS, "--policies", USERDATA, "--port", "80", "-o", "table")

    assert "  ~80/TCP  " in done.out


def test_a_square_is_short_where_everything_asked_passes(ask: Ask) -> None:
    done = ask(*MATRIX, "--port", "80", "--port", "443", "-o", "table")

    (front, *_) = [line for line in done.out.splitlines() if line.startswith("default/front")]
    assert front.split()[1:4] == ["·", "✓", "✗"]


def test_the_modes_are_those_of_the_agent(ask: Ask) -> None:
    def verdicts(*options: str) -> set[str]:
        return {cell["verdict"] for cell in json.loads(ask(*MATRIX, "--port", "22", *options).out)}

    assert verdicts("--enforcement", "never") == {"allow"}
    assert verdicts("--enforcement", "always") == {"deny"}
    assert verdicts("--enforcement", "per-endpoint") == {"allow", "deny"}


def test_the_host_may_be_left_to_policy(ask: Ask, tmp_path: Path) -> None:
    probes = write_probes(tmp_path, {**FRONT_TO_BACK, "from": "reserved:host"})

    def verdict(allow: str) -> str:
        out = ask(*MATRIX, "--probes", probes, "--allow-localhost", allow, "-o", "yaml").out
        return str(yaml.safe_load(out)[0]["verdict"])

    assert [verdict("always"), verdict("policy")] == ["allow", "deny"]


def test_a_trace_tells_rule_by_rule_and_ends_with_the_verdict(ask: Ask) -> None:
    passed, refused = ask(*TRACE, "--port", "80/TCP"), ask(*TRACE, "--port", "22")

    assert (passed.status, refused.status) == (0, 1)
    assert passed.out.splitlines() == [
        "default/front → default/back, 80/TCP",
        "",
        "egress of default/front: allow",
        "  = nothing closes egress of default/front",
        "",
        "ingress of default/back: allow",
        "  ► default/backend-web-ports ingress[0]: allows 80/TCP from default/front",
        "  = default/backend-web-ports ingress[0] opens ingress of default/back",
        "",
        "allow: nothing closes egress of default/front; "
        "default/backend-web-ports ingress[0] opens ingress of default/back",
    ]
    assert "  · default/backend-web-ports ingress[0]: is about 80/TCP, 443/TCP, not 22/TCP" in refused.out.splitlines()


def test_a_trace_marks_rules_that_fit_and_do_not_decide(ask: Ask) -> None:
    deny = POLICIES / "deny-batch.yaml"

    done = ask(
        "trace", "-f", ENDPOINTS, "-f", deny, "--from", "default/batch", "--to", "default/back", "--port", "icmp"
    )

    assert "  ✓ default/deny-batch ingress[0]: allows ICMP type 8 from default/batch" in done.out.splitlines()
    assert "  ► default/deny-batch ingressDeny[0]: denies ICMP type 8 from default/batch" in done.out.splitlines()


def test_a_trace_may_ask_about_a_request(ask: Ask) -> None:
    command = ("trace", "-f", ENDPOINTS, "-f", USERDATA, "--from", "default/front", "--to", "default/back", "--http")

    assert [ask(*command, request).status for request in ("GET /userdata/7", "GET /userdata/x")] == [0, 1]
    assert [ask(*command, f"GET {path}").status for path in ("http://back/userdata/7", "/userdata/x/../7")] == [0, 0]
    assert "the proxy answers 400: its path has a fragment (#)" in ask(*command, "GET /userdata/7#x").out


def test_a_trace_may_ask_about_a_name(ask: Ask) -> None:
    ends = "--from", "default/batch", "--to", "reserved:world"
    command = ("trace", "-f", ENDPOINTS, "-f", POLICIES / "dns-names.yaml", *ends, "--dns")

    assert [ask(*command, name).status for name in ("api.example.com", "API.example.com.", "example.org")] == [0, 0, 1]
    assert ask(*command, "api.example.com", "--port", "54/UDP").status == 1


def test_a_trace_may_ask_about_a_server_name(ask: Ask, tmp_path: Path) -> None:
    text = USERDATA.read_text().split("          rules:")[0].replace('"80"', '"443"')
    file = tmp_path / "sni.yaml"
    file.write_text(f"{text}          serverNames: ['*.example.com']\n")
    command = ("trace", "-f", ENDPOINTS, "-f", file, "--from", "default/front", "--to", "default/back", "--sni")

    assert [ask(*command, name).status for name in ("A.example.com", "example.com", "")] == [0, 1, 1]


def test_a_trace_is_data_for_other_tools(ask: Ask) -> None:
    found = json.loads(ask(*TRACE, "--port", "80", "-o", "json").out)

    assert found["ingress"]["considered"][0]["decides"] is True


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "what is asked? give --port, as in --port 80/TCP or --port ICMP"),
        (
            ("--http", "/x"),
            "--http: '/x' on 80/TCP; allowed: a method and a path or URL, as in 'GET /path', on a TCP port",
        ),
        (
            ("--port", "53/UDP", "--http", "GET /"),
            "--http: 'GET /' on 53/UDP; allowed: a method and a path or URL, as in ",
        ),
        (("--dns", "a", "--http", "GET /"), "--http and --dns: one question at a time; allowed: one of them"),
        (("--dns", "a", "--port", "icmp"), "--dns: 'a' on ICMP type 8; allowed: on a UDP or TCP port"),
        (("--sni", "a", "--port", "443/UDP"), "--sni: 'a' on 443/UDP; allowed: on a TCP port"),
        (
            ("--port", "80", "--to", "default/bck"),
            "--to: 'default/bck' is nobody that the documents know; did you mean ",
        ),
        (("--port", "80", "--from", "x"), "--from: 'x' is nobody that the documents know; allowed: "),
    ],
)
def test_a_trace_of_what_is_nothing_is_refused(options: tuple[str, ...], expected: str, ask: Ask) -> None:
    done = ask(*TRACE, *options)

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"nfq-enforcer: {expected}")


def test_a_trace_takes_the_agents_documents_if_it_is_given_none(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"documents: [{ENDPOINTS}, {WEB_PORTS}]")
    command = ("trace", "--from", "default/front", "--to", "default/back", "--port", "80")
    monkeypatch.setattr("nfq_enforcer.agent.defaults.DEFAULT_PATH", file)

    found = ask(*command)
    file.unlink()
    lost = ask(*command)

    assert found.status == 0
    assert found.out.endswith("(by the documents of the configuration; no agent is running)\n")
    assert lost == (2, "", f"nfq-enforcer: which documents? name them with -f, or as 'documents' in {file}\n")


def running_agent(**settings: Any) -> dict[str, Any]:
    """Return the answer of a running agent: its documents and settings."""
    documents = [
        item.document.data
        for file in (ENDPOINTS, WEB_PORTS)
        for item in loader.parse_all([File(str(file), file.read_text())])
    ]
    agent = {
        "node": "n1",
        "revision": 7,
        "enforcement": "auto",
        "allow_localhost": "always",
        "cluster": "default",
        "kube_apiserver": [],
        "identity_labels": [],
    }
    return agent | {"documents": documents} | settings


def test_a_trace_without_files_asks_the_running_agent_and_names_it(ask: Ask, answering: Answering) -> None:
    command = ("trace", "--from", "default/front", "--to", "default/back", "--port")
    socket = answering(documents=running_agent()).socket

    allowed = ask(*command, "80", "--socket", socket)
    denied = ask(*command, "22", "-o", "json", "--socket", socket)

    assert (allowed.status, allowed.err) == (0, "")
    assert allowed.out.endswith("\n(by the documents of the running agent of node n1, revision 7)\n")
    assert denied.status == 1
    assert json.loads(denied.out)["documents_of"] == "the running agent of node n1, revision 7"


def test_a_trace_takes_the_settings_of_the_running_agent_unless_given(ask: Ask, answering: Answering) -> None:
    command = ("trace", "--from", "default/front", "--to", "default/back", "--port", "22", "-o", "json", "--socket")
    socket = answering(documents=running_agent(enforcement="never")).socket

    assert ask(*command, socket).status == 0
    assert ask(*command, socket, "--enforcement", "auto").status == 1


def test_a_trace_of_files_does_not_ask_an_agent(ask: Ask, answering: Answering) -> None:
    agent = answering(documents=running_agent())

    done = ask(*TRACE, "--port", "80", "-o", "json", "--socket", agent.socket)

    assert json.loads(done.out)["documents_of"] == "the given files"
    assert agent.calls == []


def test_a_difference_names_who_gains_and_loses_what(ask: Ask) -> None:
    command = ("diff", WEB_PORTS, POLICIES / "backend-https.yaml", "--endpoints", ENDPOINTS)

    done, table = ask(*command), ask(*command, "-o", "table")

    assert (done.status, table.status) == (1, 1)
    assert json.loads(done.out) == [
        {
            "from": "default/front",
            "to": "default/back",
            "ports": ["80/TCP"],
            "old": "allow",
            "new": "deny",
            "reason": "ingress of default/back is closed by default/backend-https, "
            "and no rule opens 80/TCP from default/front",
        }
    ]
    assert ["default/front", "default/back", "80/TCP", "allow", "deny"] in [
        line.split()[:5] for line in table.out.splitlines()
    ]


def test_where_nothing_differs_the_status_says_so(ask: Ask) -> None:
    command = ("diff", WEB_PORTS, WEB_PORTS, "--endpoints", ENDPOINTS)

    assert ask(*command) == (0, "[]\n", "")
    assert ask(*command, "-o", "table").out == "no connection changes its verdict\n"


def test_bad_documents_are_refused(ask: Ask, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("kind: Nothing")

    done = ask("diff", WEB_PORTS, bad, "--endpoints", ENDPOINTS)

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"nfq-enforcer: {bad}:1:7: kind: unknown kind 'Nothing'; allowed: ")


def test_a_trace_counts_the_documents_that_do_not_select_the_endpoint(ask: Ask, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    text = WEB_PORTS.read_text().replace("role: backend", "role: nobody")
    documents = [text.replace("name: backend-web-ports", f"name: other-{number}") for number in range(3)]
    other.write_text("---\n".join(documents))
    command = (*TRACE, "-f", other, "--port", "80/TCP")

    short, full = ask(*command).out.splitlines(), ask(*command, "--all").out.splitlines()

    assert "  · 3 documents do not select default/back; --all shows them" in short
    assert [line for line in short if "other-" in line] == []
    assert sum("does not select default/back" in line for line in full) == 3
    assert "--all" not in "".join(full)
    assert short[-1] == full[-1]
    assert short[-1].startswith("allow: ")


CLUSTER = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: by-cluster}
spec:
  endpointSelector: {matchLabels: {role: backend}}
  ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: east}}]}]
  egress: [{toEntities: [kube-apiserver]}]
"""


def test_cluster_and_api_server_are_options_or_come_from_the_configuration(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy, configuration = tmp_path / "a.yaml", tmp_path / "agent.yaml"
    policy.write_text(CLUSTER)
    configuration.write_text(f"documents: [{ENDPOINTS}, {policy}]\ncluster: east\nkube_apiserver: [192.0.2.9]\n")
    monkeypatch.setattr("nfq_enforcer.agent.defaults.DEFAULT_PATH", configuration)
    files = ("-f", ENDPOINTS, "-f", policy)
    back = ("--from", "default/front", "--to", "default/back", "--port", "80", "--enforcement", "per-endpoint")
    apiserver = ("--from", "default/back", "--to", "ip:192.0.2.9", "--port", "443")
    options = ("--cluster", "east", "--kube-apiserver", "192.0.2.9")

    for ends in (back, apiserver):
        assert ask("trace", *files, *ends).status == 1
        assert ask("trace", *files, *ends, *options).status == 0
        assert ask("trace", *ends).status == 0
    probe = {"from": "default/back", "to": "ip:192.0.2.9", "port": 443, "expect": "allow"}
    matrix = ("matrix", "--endpoints", ENDPOINTS, "--policies", policy, "--probes", write_probes(tmp_path, probe))
    assert [ask(*matrix, *more).status for more in ((), options)] == [1, 0]
    assert ask("diff", policy, policy, "--endpoints", ENDPOINTS, *options).status == 0


def test_other_kinds_are_left_out_of_a_matrix_as_asked(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{CLUSTER}---\napiVersion: apps/v1\nkind: Deployment\n")
    command = ("matrix", "--endpoints", ENDPOINTS, "--policies", tmp_path, "--port", "80")

    assert [ask(*command, *more).status for more in ((), ("--ignore-other-kinds",))] == [2, 0]


def test_no_expression_hangs_a_matrix(ask: Ask, tmp_path: Path) -> None:
    policy = tmp_path / "a.yaml"
    policy.write_text(USERDATA.read_text().replace("/userdata/[0-9]+", "/(a+)+(a|aa)*$"))
    assert "(a+)+" in policy.read_text()
    probes = [{**FRONT_TO_BACK, "http": {"path": f"/{'a' * 5000}!"}} for _ in range(50)]

    done = ask("matrix", "--endpoints", ENDPOINTS, "--policies", policy, "--probes", write_probes(tmp_path, *probes))

    assert {answer["verdict"] for answer in json.loads(done.out)} == {"deny"}
