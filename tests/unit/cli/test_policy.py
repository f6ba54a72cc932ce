"""``nfq-enforcer policy validate``: counts valid documents, and prints every error of invalid ones with its place."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import RunProgram

ENDPOINT = """\
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: web, labels: {app: web}}
spec:
  interface: veth-web
  ips: [10.1.0.10]
"""
POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
    - toPorts:
        - ports:
            - {port: "80", protocol: TCP}
"""


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_good_documents_are_counted(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "endpoint.yaml", ENDPOINT)
    write(tmp_path, "policy.yaml", f"{POLICY}---\n{POLICY.replace('name: web', 'name: again')}")

    assert run("policy", "validate", tmp_path) == (0, "valid: 2 policies, 1 endpoints\n", "")


def test_files_and_folders_are_taken_together(run: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file, folder = write(tmp_path, "a.yaml", ENDPOINT), write(tmp_path / "folder", "b.yaml", POLICY).parent

    assert run("policy", "validate", file, folder).out == "valid: 1 policies, 1 endpoints\n"


def give(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Set the program's standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_documents_may_come_by_the_standard_input(
    run: RunProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, POLICY)
    assert run("policy", "validate", "-", write(tmp_path, "a.yaml", ENDPOINT)).out == "valid: 1 policies, 1 endpoints\n"

    give(monkeypatch, POLICY.replace("80", "70000"))
    assert "nfq-enforcer: standard input:9:22: spec.ingress[0].toPorts" in run("policy", "validate", "-").err


def test_the_examples_are_valid(run: RunProgram) -> None:
    done = run("policy", "validate", Path(__file__).parents[3] / "policies")
    (warning,) = done.err.splitlines()

    assert done.status == 0
    assert "nodes-services: closes the nodes that it selects" in warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            POLICY.replace("  ingress:", "  descripton: x\n  ingress:"),
            "6:3: spec.descripton: unknown field 'descripton'; did you mean 'description'? allowed: endpointSelector, ",
        ),
        (ENDPOINT.replace("[10.1.0.10]", "10.1.0.10"), "6:8: spec.ips: must be a list, not a string"),
        (
            POLICY.replace('"80"', "80"),
            '9:22: spec.ingress[0].toPorts[0].ports[0].port: must be a string, not a number; quote it: "80"',
        ),
        (
            POLICY.replace("80", "70000"),
            '9:22: spec.ingress[0].toPorts[0].ports[0].port: port 70000 is out of range; allowed: "1" to "65535"',
        ),
        (
            POLICY.replace("CiliumNetworkPolicy", "CiliumNetworkPolice"),
            "2:7: kind: unknown kind 'CiliumNetworkPolice'; did you mean 'CiliumNetworkPolicy'? allowed: Endpoint (nfq",
        ),
        (
            ENDPOINT.replace("app: web", "app: web server"),
            "3:37: metadata.labels.app: 'web server' is not a label value: a value is empty or has 1 to 63 letters",
        ),
        (
            ENDPOINT.replace("app: web", "-app: web"),
            "3:32: metadata.labels[\"-app\"]: '-app' is not a label key: a key is [source:][prefix/]name; ",
        ),
        (ENDPOINT.replace("[10.1.0.10]", "[10.1.0.10"), "7:1: not valid YAML: "),
        (f"{ENDPOINT}spec: {{}}\n", "7:1: duplicate key 'spec'; it is already given in line 4"),
    ],
)
def test_a_bad_document_is_refused_with_file_line_field_and_what_is_allowed(
    text: str, expected: str, run: RunProgram, tmp_path: Path
) -> None:
    file = write(tmp_path, "bad.yaml", text)

    done = run("policy", "validate", tmp_path)

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"nfq-enforcer: {file}:{expected}")
    assert done.err.splitlines()[1:] == ["1 of 1 documents refused"]


def test_a_name_that_is_given_twice_is_refused_with_where_it_was_given_first(run: RunProgram, tmp_path: Path) -> None:
    first, second = write(tmp_path, "1.yaml", ENDPOINT), write(tmp_path, "2.yaml", ENDPOINT)

    assert run("policy", "validate", tmp_path) == (
        2,
        "",
        f"nfq-enforcer: {second}:3:18: metadata.name: Endpoint default/web is already defined in {first}:1\n"
        "1 of 2 documents refused\n",
    )


def test_a_folder_that_is_not_there_is_refused(run: RunProgram, tmp_path: Path) -> None:
    assert run("policy", "validate", tmp_path / "missing") == (
        2,
        "",
        f"nfq-enforcer: {tmp_path}/missing: cannot be read: {os.strerror(errno.ENOENT)}\n1 of 1 documents refused\n",
    )


def test_every_mistake_is_named_and_one_bad_file_refuses_all(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "good.yaml", ENDPOINT)
    bad = write(tmp_path, "bad.yaml", POLICY.replace('"80"', "80").replace("TCP", "TPC"))

    done = run("policy", "validate", tmp_path)

    assert (done.status, done.out) == (2, "")
    assert [line.removeprefix("nfq-enforcer: ").split(": ")[0] for line in done.err.splitlines()] == [
        f"{bad}:9:22",
        f"{bad}:9:36",
        "1 of 2 documents refused",
    ]


OF_NODES = POLICY.replace("CiliumN", "CiliumClusterwideN").replace("endpointS", "nodeS")


def test_a_rule_that_closes_nodes_is_taken_with_a_warning(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "nodes.yaml", f"{OF_NODES}---\n{ENDPOINT}")
    done = run("policy", "validate", tmp_path)

    assert (done.status, done.out) == (0, "valid: 1 policies, 1 endpoints\n")
    assert "closes the nodes that it selects, SSH and every other service of the host, to all peers" in done.err
    assert run("policy", "validate", "--syntax-only", tmp_path) == done


def test_the_refused_documents_are_counted_not_their_errors(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", f"{POLICY}---\n{POLICY.replace('80', '0x50!').replace('TCP', 'TPC')}---\nkind: Pod\n")
    write(tmp_path, "b.yaml", POLICY.replace("spec:", "specs:"))
    write(tmp_path, "c.yaml", "a: [")

    assert run("policy", "validate", tmp_path).err.splitlines()[-1] == "4 of 5 documents refused"


OTHERS = {
    "kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
    "values.yaml": "replicas: 3\n",
    "list.yaml": "- 1\n",
    "pod.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n---\napiVersion: v1\nkind: ConfigMap\n",
    "kinds.yaml": "apiVersion: v1\nkind: List\nitems: [{apiVersion: apps/v1, kind: Deployment}]\n",
    "pool.yaml": "apiVersion: cilium.io/v2alpha1\nkind: CiliumLoadBalancerIPPool\n",
    "ingress.yaml": "apiVersion: networking.k8s.io/v1\nkind: Ingress\n",
}


def test_documents_of_other_kinds_are_refused_or_left_out_as_asked(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "policy.yaml", POLICY)
    for name, text in OTHERS.items():
        write(tmp_path, name, text)

    assert run("policy", "validate", tmp_path).err.splitlines()[-1] == "8 of 9 documents refused"
    assert run("policy", "validate", "--ignore-other-kinds", tmp_path) == (
        0,
        "valid: 1 policies, 0 endpoints\n",
        "nfq-enforcer: documents of other kinds ignored: 8\n",
    )


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicyList"),
        ("cilium.io/v2", "CiliumNetworkPolicie"),
        ("networking.k8s.io/v1", "networkpolicy"),
        ("networking.k8s.io/v1", "NetworkPolcy"),
        ("example.org/v1", "MyNetworkPolicyRule"),
        ("cilium.io/v2alpha1", "CiliumCIDRGroup"),
        ("nfq-enforcer.io/v1", "Endpiont"),
        ("v1", "Namspace"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("networking.k8s.io/v1", "''"),
    ],
)
def test_a_kind_of_policy_that_is_not_known_is_never_left_out(
    version: str, kind: str, run: RunProgram, tmp_path: Path
) -> None:
    write(tmp_path, "a.yaml", f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n")

    assert run("policy", "validate", "--ignore-other-kinds", tmp_path).status == (0 if kind == "''" else 2)


def test_a_policy_that_has_lost_its_kind_is_never_left_out(run: RunProgram, tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", POLICY.replace("kind: CiliumNetworkPolicy\n", ""))

    assert run("policy", "validate", "--ignore-other-kinds", tmp_path).status == 2


def test_endpoints_without_an_interface_get_one_warning(run: RunProgram, tmp_path: Path) -> None:
    bare = ENDPOINT.replace("  interface: veth-web\n", "")
    more = bare.replace("name: web", "name: db").replace("10.1.0.10", "10.1.0.11")
    write(tmp_path, "a.yaml", f"{bare}---\n{more}")

    assert run("policy", "validate", tmp_path) == (
        0,
        "valid: 0 policies, 2 endpoints\n",
        "nfq-enforcer: warning: endpoints without an interface: default/db, default/web; other workloads of their node "
        "can send from their addresses (only a node itself needs no interface)\n",
    )


def test_a_part_that_can_never_match_gets_a_warning(run: RunProgram, tmp_path: Path) -> None:
    text = POLICY.replace("    - toPorts", "    - fromEntities: [kube-apiserver]\n      toPorts")
    file = write(tmp_path, "a.yaml", text)

    done = run("policy", "validate", tmp_path)
    assert (done.status, done.err) == (
        0,
        f"nfq-enforcer: warning: {file}:1: CiliumNetworkPolicy default/web: ingress[0] has a peer that never matches: "
        "the entity kube-apiserver has no addresses; the EndpointSlice of the service default/kubernetes, or "
        "kube_apiserver in the configuration, sets them\n",
    )
    assert run("policy", "validate", tmp_path, "--kube-apiserver", "192.0.2.1").err == ""
    assert "--kube-apiserver: 'x' is not an address" in run("policy", "validate", tmp_path, "--kube-apiserver", "x").err
    assert "--cluster: 'X' is not a cluster's name" in run("policy", "validate", tmp_path, "--cluster", "X").err
