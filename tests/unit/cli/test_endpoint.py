"""``nfq-enforcer endpoint``: added from options or files, listed, printed as documents, deleted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.policy import loader
from tests.unit.cli.conftest import Answering, RunProgram

DOCUMENT = {
    "apiVersion": "nfq-enforcer.io/v1",
    "kind": "Endpoint",
    "metadata": {"name": "front1", "namespace": "shop", "labels": {"role": "frontend"}},
    "spec": {"node": "n1", "ips": ["10.1.0.10", "fd01::10"], "interface": "veth-a"},
}
ENDPOINTS: list[dict[str, Any]] = [
    {
        "namespace": "shop",
        "name": "front1",
        "node": "n1",
        "identity": 300,
        "labels": ["k8s:role=frontend", "k8s:tier"],
        "addresses": ["10.1.0.10", "fd01::10"],
        "interface": "veth-a",
        "document": DOCUMENT,
    },
    {
        "namespace": "default",
        "name": "n1",
        "node": "n1",
        "identity": 301,
        "labels": [],
        "addresses": ["172.16.0.1"],
        "interface": "eth9",
        "problem": "interface eth9 does not exist",
        "document": {"kind": "Endpoint", "metadata": {"name": "n1"}},
    },
]
ADDED = {
    "revision": None,
    "documents": ["Endpoint/default/web-1"],
    "endpoints": [
        {
            "endpoint": "default/web-1",
            "identity": 12339331,
            "labels": ["k8s:io.kubernetes.pod.namespace=default", "k8s:role=frontend"],
            "new_identity": False,
        }
    ],
}
POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec: {endpointSelector: {}, ingress: [{}]}
"""


def test_endpoints_are_a_table_with_a_line_for_each(run: RunProgram, answering: Answering) -> None:
    done = run("endpoint", "list", "--socket", answering(endpoints=ENDPOINTS).socket)

    assert (done.status, done.err) == (0, "")
    assert [line for line in done.lines if line and not line.startswith("─")] == [
        "ENDPOINT IDENTITY NODE ADDRESSES LABELS STATE",
        "shop/front1 300 n1 10.1.0.10,fd01::10 role=frontend,tier ok",
        "default/n1 301 n1 172.16.0.1 <none> interface eth9 does not exist",
    ]


def test_endpoints_are_to_be_had_for_programs(run: RunProgram, answering: Answering) -> None:
    agent = answering(endpoints=ENDPOINTS)

    assert json.loads(run("endpoint", "list", "-o", "json", "--socket", agent.socket).out) == ENDPOINTS
    assert yaml.safe_load(run("endpoint", "list", "-o", "yaml", "--socket", agent.socket).out) == ENDPOINTS


def test_an_endpoint_is_its_document_with_its_identity_as_status(
    run: RunProgram, answering: Answering, tmp_path: Path
) -> None:
    agent = answering(endpoints=ENDPOINTS)
    status = {"identity": {"id": 300, "labels": ["k8s:role=frontend", "k8s:tier"]}}

    as_yaml = run("endpoint", "get", "shop/front1", "--socket", agent.socket).out

    assert yaml.safe_load(as_yaml) == DOCUMENT | {"status": status}
    assert json.loads(run("endpoint", "get", "shop/front1", "-o", "json", "--socket", agent.socket).out) == {
        **DOCUMENT,
        "status": status,
    }
    (again,) = loader.parse(as_yaml, "again.yaml")  # the printed document is valid input
    assert again.document.key == ("Endpoint", "shop", "front1")


def test_a_name_alone_is_of_the_namespace_default(run: RunProgram, answering: Answering) -> None:
    agent = answering(endpoints=ENDPOINTS)

    assert yaml.safe_load(run("endpoint", "get", "n1", "--socket", agent.socket).out)["metadata"] == {"name": "n1"}
    assert run("endpoint", "get", "front1", "--socket", agent.socket) == (
        1,
        "",
        "nfq-enforcer: there is no endpoint default/front1; 'nfq-enforcer endpoint list' shows those there are\n",
    )


def test_an_endpoint_is_added_as_its_options_say(run: RunProgram, answering: Answering) -> None:
    agent = answering(apply=ADDED)
    options = (
        *("--ip", "10.0.7.11", "--ip", "fd00::11", "--label", "role=frontend", "-l", "container:app=x"),
        *("--namespace", "shop", "--node", "host-a", "--interface", "veth-1", "--service-account", "robot"),
        *("--port", "http=80/TCP", "--port", "dns=53/udp", "--port", "web=8080"),
    )

    done = run("endpoint", "add", "web-1", *options, "--socket", agent.socket)

    assert done == (
        0,
        "default/web-1 added: identity 12339331 (k8s:io.kubernetes.pod.namespace=default, k8s:role=frontend)\n",
        "",
    )
    (((_, text),),) = (call["files"] for call in agent.calls)
    assert yaml.safe_load(text) == {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"role": "frontend", "container:app": "x"},
        },
        "spec": {
            "ips": ["10.0.7.11", "fd00::11"],
            "node": "host-a",
            "interface": "veth-1",
            "serviceAccount": "robot",
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "web", "port": 8080, "protocol": "TCP"},
            ],
        },
    }


def test_what_no_option_says_is_not_in_the_document(run: RunProgram, answering: Answering) -> None:
    agent = answering(apply=ADDED)

    run("endpoint", "add", "web-1", "--ip", "10.0.7.11", "--socket", agent.socket)

    (((_, text),),) = (call["files"] for call in agent.calls)
    assert yaml.safe_load(text) == {
        "apiVersion": "nfq-enforcer.io/v1",
        "kind": "Endpoint",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {}},
        "spec": {"ips": ["10.0.7.11"]},
    }


def test_values_that_yaml_would_take_for_something_else_stay_text(run: RunProgram, answering: Answering) -> None:
    agent = answering(apply=ADDED)

    done = run("endpoint", "add", "123", "--ip", "10.0.7.11", "-l", "on=yes", "-l", "v=1.0", "--socket", agent.socket)

    assert done.status == 0
    (((_, text),),) = (call["files"] for call in agent.calls)
    assert yaml.safe_load(text)["metadata"] == {
        "name": "123",
        "namespace": "default",
        "labels": {"on": "yes", "v": "1.0"},
    }


def test_an_identity_that_is_new_is_called_so(run: RunProgram, answering: Answering) -> None:
    answer = {"endpoints": [{"endpoint": "a/b", "identity": 300, "labels": ["k8s:x"], "new_identity": True}]}

    done = run("endpoint", "add", "b", "--ip", "10.0.7.11", "--socket", answering(apply=ADDED | answer).socket)

    assert done.out == "a/b added: new identity 300 (k8s:x)\n"


GOOD = ["web-1", "--ip", "10.0.7.11"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["Web", *GOOD[1:]], "NAME: 'Web' is not a name; allowed: 1 to 253 lower-case letters"),
        (["web-1"], "--ip: an endpoint has at least one address; allowed: "),
        (["web-1", "--ip", "10.0.0.256"], "--ip: '10.0.0.256' is not an address; allowed: IPv4 or IPv6"),
        (["web-1", "--ip", "127.0.0.1"], "--ip: '127.0.0.1' is not allowed; a multicast, loopback"),
        ([*GOOD, "--namespace", "a.b"], "--namespace: 'a.b' is not a name; allowed: 1 to 63 lower-case"),
        ([*GOOD, "--label", "role"], "--label: 'role' is not a label; allowed: KEY=VALUE, as in role=frontend"),
        ([*GOOD, "--label", "-a=b"], "--label: '-a' is not a label key: "),
        ([*GOOD, "--label", "a=b c"], "--label: 'b c' is not a label value: "),
        ([*GOOD, "--label", "reserved:host="], "--label: label source 'reserved' is taken; allowed: k8s, which"),
        ([*GOOD, "-l", "a=b", "-l", "a=c"], "--label: 'a' is given two values, 'b' and 'c'; one is allowed"),
        ([*GOOD, "-l", "a=b", "-l", "k8s:a=b"], "--label: 'a' and 'k8s:a' are the same label; one of them is allowed"),
        ([*GOOD, "--node", "-"], "--node: '-' is not a node's name; allowed: "),
        ([*GOOD, "--interface", "eth0/1"], "--interface: 'eth0/1' is not an interface's name; allowed: "),
        ([*GOOD, "--service-account", "A"], "--service-account: 'A' is not a name; allowed: "),
        ([*GOOD, "--port", "80/TCP"], "--port: '80/TCP' is not a named port; allowed: NAME=NUMBER with /TCP (the "),
        ([*GOOD, "--port", "http=80/"], "--port: 'http=80/' is not a named port; allowed: NAME=NUMBER with /TCP"),
        ([*GOOD, "--port", "http=70000"], "--port: port 70000 is out of range; allowed: 1 to 65535"),
        ([*GOOD, "--port", "80=80"], "--port: '80' is not a port's name; allowed: "),
        ([*GOOD, "--port", "http=80/ICMP"], "--port: 'ICMP' is not allowed; allowed: 'TCP', 'UDP' or 'SCTP'"),
        ([*GOOD, "--port", "a=1", "--port", "a=2"], "--port: two ports have the same name; each name is allowed once"),
        ([], "give an endpoint's NAME and options that describe it, or documents with -f and nothing else"),
        (["web", "-f", "x.yaml"], "give an endpoint's NAME and options that describe it, or documents with -f and"),
        (["-f", "x.yaml", "--ip", "10.0.0.1"], "give an endpoint's NAME and options that describe it, or documents"),
        (["--ip", "10.0.0.1"], "give an endpoint's NAME and options that describe it, or documents with -f and"),
    ],
)
def test_what_is_wrong_is_told_of_the_option_that_says_it_and_nothing_is_sent(
    arguments: list[str], expected: str, run: RunProgram, answering: Answering
) -> None:
    agent = answering(apply=ADDED)

    done = run("endpoint", "add", *arguments, "--socket", agent.socket)

    assert (done.status, done.out, agent.calls) == (2, "", [])
    assert done.err.startswith(f"nfq-enforcer: {expected}")
    assert done.err.count("\n") == 1


def test_every_mistake_is_told(run: RunProgram, tmp_path: Path) -> None:
    done = run("endpoint", "add", "Web", "--ip", "x", "--node", "", "--interface", "a/b", "--socket", tmp_path / "none")

    assert [line.removeprefix("nfq-enforcer: ").split(":")[0] for line in done.err.splitlines()] == [
        "NAME",
        "--ip",
        "--interface",
    ]


def test_files_of_endpoints_are_sent_as_they_are(run: RunProgram, answering: Answering, tmp_path: Path) -> None:
    agent = answering(apply=ADDED)
    file = tmp_path / "a.yaml"
    file.write_text(f"# mine\n{yaml.safe_dump(DOCUMENT)}")

    assert run("endpoint", "add", "-f", tmp_path, "--socket", agent.socket).status == 0
    assert agent.calls == [{"files": [[str(file), file.read_text()]]}]


def test_files_may_hold_nothing_but_endpoints(run: RunProgram, answering: Answering, tmp_path: Path) -> None:
    agent = answering(apply=ADDED)
    file = tmp_path / "a.yaml"
    file.write_text(f"{yaml.safe_dump(DOCUMENT)}---\n{POLICY}")

    done = run("endpoint", "add", "-f", file, "--socket", agent.socket)

    assert (done.status, done.out, agent.calls) == (2, "", [])
    assert done.err == (
        f"nfq-enforcer: {file}:16:7: kind: CiliumNetworkPolicy is not allowed here; "
        "allowed: Endpoint ('policy load' takes the other kinds)\n"
    )


def test_files_without_a_document_are_refused(run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")

    assert run("endpoint", "add", "-f", tmp_path) == (
        2,
        "",
        "nfq-enforcer: there is no Endpoint document in what -f names\n",
    )


def test_a_mistake_in_a_file_is_told_with_its_place(run: RunProgram, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{apiVersion: nfq-enforcer.io/v1, kind: Endpoint, metadata: {name: a}, spec: {ips: [x]}}\n")

    assert run("endpoint", "add", "-f", file).err.startswith(f"nfq-enforcer: {file}:1:84: spec.ips[0]: 'x' is not an ")


def test_endpoints_are_deleted_by_name(run: RunProgram, answering: Answering) -> None:
    agent = answering(delete_endpoints={"deleted": ["shop/front1", "default/n1"], "missing": []})

    done = run("endpoint", "delete", "shop/front1", "n1", "default/n1", "--socket", agent.socket)

    assert done == (0, "shop/front1 deleted\ndefault/n1 deleted\n", "")
    assert agent.calls == [{"names": ["shop/front1", "default/n1"]}]


def test_endpoints_that_are_not_there_are_named_and_the_others_are_deleted(
    run: RunProgram, answering: Answering
) -> None:
    agent = answering(delete_endpoints={"deleted": ["shop/front1"], "missing": ["default/x", "default/y"]})

    assert run("endpoint", "delete", "x", "shop/front1", "y", "--socket", agent.socket) == (
        1,
        "shop/front1 deleted\n",
        "nfq-enforcer: there is no endpoint default/x, default/y; 'nfq-enforcer endpoint list' shows those there are\n",
    )


def test_a_process_endpoint_is_listed_with_its_cgroup_and_processes(run: RunProgram, answering: Answering) -> None:
    entry = {**ENDPOINTS[0], "addresses": [], "cgroup": "/nfqe/shop.front1", "pids": list(range(11, 18))}
    many, none = {**entry, "name": "many"}, {**entry, "name": "none", "pids": []}
    done = run("endpoint", "list", "--socket", answering(endpoints=[{**entry, "pids": [7]}, many, none]).socket)

    cgroup = "cgroup /nfqe/shop.front1"
    shown = [f"{cgroup},process 7 ", f"{cgroup},process 11 12 13 14 15 … ", f"{cgroup} "]
    assert all(text in line for text, line in zip(shown, done.lines[-3:], strict=True))


def test_the_policy_of_an_endpoint_is_a_table_with_the_default_last(run: RunProgram, answering: Answering) -> None:
    rule = {
        "kind": "CiliumNetworkPolicy",
        "namespace": "shop",
        "name": "p",
        "rule": "ingress[0]",
        "text": "shop/p ingress[0]",
    }
    row = {
        "action": "allow",
        "rule": rule,
        "any_peer": False,
        "peers": [{"identity": 300, "labels": ["k8s:role=web", "k8s:io.kubernetes.pod.namespace=shop"]}],
        "peers_total": 21,
        "ports": ["80/TCP", "443/TCP"],
        "requests": ["GET /x"],
        "requests_total": 1,
    }
    opened = {**row, "any_peer": True, "peers": [], "peers_total": 1, "ports": ["everything"], "requests": []}
    answer = {
        "ingress": {"enforced": True, "enforced_by": [rule], "rows": [row], "rows_total": 1},
        "egress": {"enforced": False, "enforced_by": [], "rows": [opened | {"requests_total": 0}], "rows_total": 203},
    }
    agent = answering(endpoint_policy=answer)

    done = run("endpoint", "policy", "db-1", "--no-headers", "--socket", agent.socket)

    assert agent.calls == [{"name": "default/db-1"}]
    assert done.lines == [
        "ingress allow role=web,20 more 80/TCP,443/TCP GET /x shop/p ingress[0]",
        "ingress deny any everything else <none> shop/p ingress[0]",
        "egress allow any everything <none> shop/p ingress[0]",
        "egress … <none> <none> <none> 202 more",
        "egress allow any everything else <none> <none>",
    ]
