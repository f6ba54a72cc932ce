"""``nfq-enforcer why``: the last refused flow, a flow by its uuid, or a connection; in words and as data."""

import json
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.cluster.names import End
from nfq_enforcer.core.events import DnsMessage, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import HOST, WORLD
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.verdict import DropReason
from nfq_enforcer.core.wire.packet import ICMP, UDP
from nfq_enforcer.observe.advice import ADVICE, BY_POLICY
from nfq_enforcer.observe.flow import Logged, render
from nfq_enforcer.observe.hubble import to_response
from tests.support.flows import BACK, DB, FRONT, dropped, logged, opening, rule
from tests.unit.cli.conftest import Answering, RunProgram

DOCUMENTS = """
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: front-1, namespace: shop, labels: {role: frontend, tier: web}}
spec: {ips: [10.1.0.10]}
---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: back-1, labels: {"container:role": backend}}
spec: {ips: [10.2.0.10]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: back}
spec:
  endpointSelector: {matchLabels: {"container:role": backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: frontend, "k8s:io.kubernetes.pod.namespace": shop}}]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
"""


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    file = tmp_path / "documents.yaml"
    file.write_text(DOCUMENTS)
    return file


def saved(folder: Path, *flows: Logged) -> Path:
    file = folder / "flows.json"
    file.write_text("".join(f"{json.dumps(to_response(render(flow)))}\n" for flow in flows))
    return file


def test_the_last_refused_flow_of_a_file_is_explained(run: RunProgram, documents: Path, tmp_path: Path) -> None:
    flows = saved(tmp_path, dropped(opening(DB, BACK)), dropped(enforced_by=(rule("back"),)), logged())

    done = run("why", "--input-file", flows, "-f", documents)

    assert (done.status, done.err) == (1, "")
    assert "shop/front-1:40000 (ID:300) -> default/back-1:80 (ID:400) INGRESS DROPPED POLICY_DENIED" in done.lines[0]
    assert done.lines[1] == "egress of shop/front-1: allow, nothing closes egress of shop/front-1"
    assert done.lines[2].startswith(
        "ingress of default/back-1: deny, ingress of default/back-1 is closed by default/back"
    )
    assert done.lines[3] == f"· default/back ingress[0] ({documents}:18): is about 443/TCP, not 80/TCP"
    assert "+ - port: '80'" in done.lines
    assert "It opens no other connection between the endpoints that the documents know." in done.lines
    assert done.lines[-1] == "(by the documents of the given files)"


def test_filters_choose_the_flow(run: RunProgram, documents: Path, tmp_path: Path) -> None:
    flows = saved(tmp_path, dropped(opening(FRONT, BACK, ports=(1, 81))), dropped())

    done = run("why", "--input-file", flows, "-f", documents, "--to-port", "81", "-o", "json")

    data = json.loads(done.out)
    assert data["flow"]["l4"]["TCP"]["destination_port"] == 81
    assert data["connection"]["verdict"] == "deny"
    assert data["connection"]["change"]["documents"][0]["name"] == "back"
    assert (data["advice"], data["documents_of"]) == (None, "the given files")


def test_an_end_that_the_documents_do_not_have_is_asked_for_by_its_labels(
    run: RunProgram, documents: Path, tmp_path: Path
) -> None:
    flows = saved(tmp_path, dropped(opening(DB, BACK, src="10.9.0.9")))

    done = run("why", "--input-file", flows, "-f", documents)

    assert any(
        "shop/db-1 is none of its peers: wants role=frontend, and it has k8s:role=db" in line for line in done.lines
    )


def test_a_connection_needs_no_flow(run: RunProgram, documents: Path) -> None:
    refused = run("why", "--from", "shop/front-1", "--to", "default/back-1", "--port", "80", "-f", documents)
    passing = run("why", "--from", "shop/front-1", "--to", "default/back-1", "--port", "443", "-f", documents)

    assert (refused.status, passing.status) == (1, 0)
    assert passing.lines[0] == "shop/front-1 → default/back-1, 443/TCP"
    assert any(line.startswith("► default/back ingress[0]") for line in passing.lines)
    assert "smallest change" not in passing.out


def test_a_flow_that_would_pass_now_is_said_to(run: RunProgram, documents: Path, tmp_path: Path) -> None:
    flows = saved(tmp_path, dropped(opening(FRONT, BACK, ports=(1, 443))))

    done = run("why", "--input-file", flows, "-f", documents)

    assert done.status == 0
    assert done.lines[1] == "Policy has changed since: it would pass now."


def test_a_drop_that_no_document_decides_has_advice(run: RunProgram, documents: Path, tmp_path: Path) -> None:
    flows = saved(tmp_path, dropped(reason=DropReason.STAMP_MISSING))

    done = run("why", "--input-file", flows, "-f", documents)
    data = json.loads(run("why", "--input-file", flows, "-f", documents, "-o", "json").out)

    assert done.status == 1
    assert done.lines[1].startswith("No policy decides about it: a reply from an endpoint of another node came without")
    assert done.lines[2] == ADVICE[DropReason.STAMP_MISSING]
    assert (data["connection"], data["advice"]) == (None, ADVICE[DropReason.STAMP_MISSING])


def test_each_reason_is_decided_by_documents_or_has_advice() -> None:
    assert set(ADVICE) | BY_POLICY == set(DropReason)
    assert not set(ADVICE) & BY_POLICY


def running(**changed: Any) -> dict[str, Any]:
    import yaml

    data = list(yaml.safe_load_all(DOCUMENTS))
    return {
        "node": "n1",
        "revision": 7,
        "enforcement": "auto",
        "allow_localhost": "always",
        "cluster": "default",
        "kube_apiserver": [],
        "node_labels": {},
        "identity_labels": [],
        "documents": data,
        "origins": [["CiliumNetworkPolicy", "default", "back", changed.get("origin", "")]],
    }


@pytest.mark.parametrize("origin", ["", "/not/here.yaml:3"])
def test_the_agent_is_asked_for_the_flow_and_its_documents(run: RunProgram, answering: Answering, origin: str) -> None:
    agent = answering(observe=(render(dropped()),), documents=running(origin=origin))

    done = run("why", "--socket", agent.socket)

    assert done.status == 1
    assert agent.calls[0] == {"allow": {"verdict": ["DROPPED", "AUDIT"]}, "last": 1}
    assert "(line 10 of 'nfq-enforcer policy get default/back')" in done.out
    assert done.lines[-1] == "(by the documents of the running agent of node n1, revision 7)"


def test_a_file_with_another_version_of_the_document_is_not_named(
    run: RunProgram, answering: Answering, documents: Path
) -> None:
    agent = answering(observe=(render(dropped()),), documents=running(origin=f"{documents}:12"))
    assert f"({documents}:18)" in run("why", "--socket", agent.socket).out
    documents.write_text(DOCUMENTS.replace('"443"', '"444"'))

    assert "of 'nfq-enforcer policy get default/back'" in run("why", "--socket", agent.socket).out
    documents.write_text("a: b: c")
    assert "of 'nfq-enforcer policy get default/back'" in run("why", "--socket", agent.socket).out


def test_a_uuid_names_the_flow(run: RunProgram, answering: Answering) -> None:
    agent = answering(observe=(render(logged()),), documents=running())

    done = run("why", "0000-1", "--socket", agent.socket)

    assert agent.calls[0] == {"allow": {"uuid": ["0000-1"]}, "last": 1}
    assert done.status == 1


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--from", "a/b"], 2, "--from and --to name both ends of a connection; give both, or neither"),
        (["--to", "a/b"], 2, "--from and --to name both ends of a connection; give both, or neither"),
        (["--from", "shop/front-1", "--to", "default/back-1"], 2, "what is asked? give --port"),
        (["--from", "shop/front-2", "--to", "default/back-1", "--port", "1"], 2, "--from: 'shop/front-2' is nobody"),
        (["--to-port", "x"], 2, "--to-port 'x': allowed: 0 to 65535"),
        (["--input-file", "/dev/null"], 1, "the log has no refused flow that matches; "),
    ],
)
def test_a_mistake_is_told(run: RunProgram, documents: Path, arguments: list[str], status: int, reason: str) -> None:
    done = run("why", *arguments, "-f", documents)

    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(f"nfq-enforcer: {reason}")


@pytest.mark.parametrize(
    ("flow", "asked"),
    [
        (dropped(opening(proto=ICMP, ports=(0, 0), icmp=(8, 0))), "ICMP type 8"),
        (dropped(opening(WORLD, BACK, src="192.0.2.9")), "80/TCP"),
        (dropped(opening(HOST, BACK)), "80/TCP"),
        (dropped(is_reply=True), "80/TCP"),
        (
            dropped(l7=HttpMessage(False, "GET", "http://back/a?b", "HTTP/1.1"), reason=DropReason.HTTP_REFUSED),
            "GET /a?b on 80/TCP",
        ),
        (
            dropped(opening(proto=UDP, ports=(1, 53)), l7=DnsMessage(False, "a.example", 1)),
            "a query for a.example on 53/UDP",
        ),
        (dropped(l7=TlsMessage("b.example")), "TLS to b.example on 80/TCP"),
    ],
)
def test_the_connection_is_that_of_the_flow(
    run: RunProgram, documents: Path, tmp_path: Path, flow: Logged, asked: str
) -> None:
    data = json.loads(run("why", "--input-file", saved(tmp_path, flow), "-f", documents, "-o", "json").out)

    assert data["connection"]["asked"] == asked
    assert data["connection"]["to"] == "default/back-1"


def test_a_packet_that_opens_no_connection_is_none_that_documents_decide(
    run: RunProgram, documents: Path, tmp_path: Path
) -> None:
    flow = dropped(opening(proto=47, ports=(0, 0)))

    done = run("why", "--input-file", saved(tmp_path, flow), "-f", documents)

    assert (done.status, done.out) == (2, "")
    assert "opens no connection of TCP, UDP, SCTP or ICMP" in done.err


def test_an_end_that_no_document_can_have_is_told(run: RunProgram, documents: Path, tmp_path: Path) -> None:
    flow = dropped(opening(DB, BACK))
    named = flow._replace(names=flow.names._replace(source=flow.names.source._replace(name="Not a name")))

    done = run("why", "--input-file", saved(tmp_path, named), "-f", documents)

    assert (done.status, done.out) == (2, "")
    assert done.err == "nfq-enforcer: no Endpoint document can have the name and labels of shop/Not a name\n"


def test_an_endpoint_without_a_name_is_asked_for_by_its_labels(
    run: RunProgram, documents: Path, tmp_path: Path
) -> None:
    flow = dropped(opening(FRONT, BACK, src="10.9.0.9", ports=(1, 443)))
    labels = Labels.parse({"role": "frontend", "k8s:io.kubernetes.pod.namespace": "shop"})
    names = flow.names._replace(source=End(labels))

    done = run("why", "--input-file", saved(tmp_path, flow._replace(names=names)), "-f", documents)

    assert done.status == 0
    assert any(line.startswith("► default/back ingress[0]") for line in done.lines)
