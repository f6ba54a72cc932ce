"""Example policies and the policy commands on real traffic, compared with the verdicts of the matrix."""

import asyncio
import json
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from nfq_enforcer.agent import client
from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.simulation import Simulation
from tests.support.labs import (
    BACKENDS,
    ENDPOINTS,
    FAMILIES,
    FRONT_TO_BACK,
    FRONTENDS,
    OTHER_TCP,
    PATIENT,
    Attempt,
    Expected,
    Policies,
    dropped,
    expect,
    outcomes,
    passes,
    policy,
    run_in,
)

EXAMPLES = Path("policies")
WAYS = ("80/TCP", "443/TCP", "8080/TCP", "53/UDP", "ping")
WORLD = "world"
FROM_PARTNERS = policy("from-partners", "backend", ingress=[{"fromCIDRSet": [{"cidrGroupRef": "partners"}]}])
PARTNERS = """
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {{name: partners}}
spec: {{externalCIDRs: [{}]}}
"""
TO_SERVICES = policy(
    "to-services",
    "frontend",
    egress=[
        {
            "toServices": [
                {"k8sService": {"serviceName": "api"}},
                {"k8sServiceSelector": {"selector": {}, "namespace": "far"}},
            ]
        }
    ],
)
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: api}}
spec: {{selector: {{role: {}}}}}
"""
OUTSIDE = """
apiVersion: v1
kind: Service
metadata: {name: partner, namespace: far}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: partner-{family}, namespace: far, labels: {{kubernetes.io/service-name: partner}}}}
addressType: IPv{family}
endpoints: [{{addresses: ["{address}"]}}]
"""
NO_FRONTENDS = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-frontends}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress:
    - action: Deny
      from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: frontend}}}}]
"""
GRPC_REFUSED = 7  # PERMISSION_DENIED


def examples() -> list[Path]:
    return [file for file in sorted(EXAMPLES.glob("*.yaml")) if loader.load([file]).policies]


def foretold(lab: Lab, *files: Path) -> dict[Attempt, str]:
    """Return the matrix' verdict on each attempt of every host to reach every endpoint of the lab."""
    simulation = Simulation(loader.load([lab.documents / "endpoints.yaml", *files]))
    return {attempt: outcome(lab, simulation, attempt) for attempt in expect("", (*ENDPOINTS, WORLD), ENDPOINTS, WAYS)}


def outcome(lab: Lab, simulation: Simulation, attempt: Attempt) -> str:
    """Return the outcome of an attempt; its bytes are no HTTP, so the proxy refuses them after the connection."""
    source, target = (f"ip:{lab.address(host, attempt.family)}" for host in (attempt.source, attempt.target))
    pair = simulation.pair(source, target, "IPv4" if attempt.family == 4 else "IPv6")
    result = simulation.evaluate(pair, question(attempt))
    if not result.allowed:
        return "timeout"
    return "refused" if result.restricted else "ok"


def question(attempt: Attempt) -> TrafficSpec:
    if attempt.way == "ping":
        return TrafficSpec(ICMP, 8) if attempt.family == 4 else TrafficSpec(ICMPV6, 128)
    port, _, protocol = attempt.way.partition("/")
    return TrafficSpec(PROTOCOLS[protocol], int(port))


def test_there_are_enough_examples_for_the_lab() -> None:
    assert len(examples()) >= 10


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.stem)
async def test_real_traffic_fares_as_the_matrix_foretells(guarded: Lab, policies: Policies, example: Path) -> None:
    expected = foretold(guarded, example)
    await policies.apply("example", example.read_text())

    assert await outcomes(guarded, expected) == expected


async def test_the_calls_of_one_grpc_connection_fare_as_the_matrix_foretells(guarded: Lab, policies: Policies) -> None:
    example = EXAMPLES / "backend-grpc.yaml"
    simulation = Simulation(loader.load([guarded.documents / "endpoints.yaml", example]))
    await policies.apply("example", example.read_text())
    paths = ("shop.Orders/Get", "shop.Orders/Cancel", "shop.Orders/List", "grpc.health.v1.Health/Check", "shop/Get")

    for attempt in expect("", FRONTENDS, BACKENDS, ["8080/TCP"]):
        source, target = (guarded.address(name, attempt.family) for name in (attempt.source, attempt.target))
        pair = simulation.pair(f"ip:{source}", f"ip:{target}", "IPv4" if attempt.family == 4 else "IPv6")
        calls = [question(attempt)._replace(request=HttpRequest("POST", f"/{path}", str(target))) for path in paths]
        allowed = [simulation.evaluate(pair, call).allowed for call in calls]
        assert allowed == [True, False, True, True, False]

        result = await guarded.host(attempt.source).call(target, OTHER_TCP, paths, PATIENT)
        assert result.calls == tuple((200, 0 if passes else GRPC_REFUSED) for passes in allowed)
        assert result.answered_by == attempt.target


class TestCommands:
    def ask(self, lab: Lab, *arguments: str) -> str:
        program = (sys.executable, "-m", "nfq_enforcer.cli", "policy")
        return run_in(lab, "n2", *program, *arguments, "--socket", str(lab.nodes["n2"].socket))

    async def test_a_policy_is_loaded_listed_shown_and_deleted(self, guarded: Lab, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(FRONT_TO_BACK)
        closed = passes(["front1"], ["back2"]) | dropped(["db3", "world"], ["back2"])
        open_again = passes(["front1", "db3", "world"], ["back2"])

        assert "CiliumNetworkPolicy/default/front-to-back applied\n" in self.ask(guarded, "load", str(file))
        assert await outcomes(guarded, closed) == closed

        listed = json.loads(self.ask(guarded, "list", "-o", "json"))
        assert [(one["namespace"], one["name"], one["origin"]) for one in listed] == [
            ("default", "front-to-back", f"{file}:2")
        ]
        shown = tmp_path / "shown.yaml"
        shown.write_text(self.ask(guarded, "get", "default/front-to-back"))
        (loaded,), (printed,) = loader.load([file]).policies, loader.load([shown]).policies
        assert (printed.key, printed.data) == (loaded.key, loaded.data)

        assert "default/front-to-back deleted\nrevision " in self.ask(guarded, "delete", "default/front-to-back")
        assert await outcomes(guarded, open_again) == open_again
        assert json.loads(self.ask(guarded, "list", "-o", "json")) == []

    async def test_an_admin_tier_precedes_the_policies_of_namespaces(self, guarded: Lab, tmp_path: Path) -> None:
        files = tmp_path / "mine.yaml", tmp_path / "tier.yaml"
        files[0].write_text(FRONT_TO_BACK)
        files[1].write_text(NO_FRONTENDS)
        opened, closed = passes(["front1"], ["back2"]), dropped(["front1"], ["back2"])

        self.ask(guarded, "load", "--wait", str(files[0]))
        assert await outcomes(guarded, opened) == opened
        self.ask(guarded, "load", "--wait", str(files[1]))
        assert await outcomes(guarded, closed) == closed
        assert "ClusterNetworkPolicy (Admin 10)" in self.ask(guarded, "list", "-o", "table")

        self.ask(guarded, "delete", "--wait", "no-frontends")
        assert await outcomes(guarded, opened) == opened
        self.ask(guarded, "delete", "--wait", "default/front-to-back")

    async def test_a_policy_that_names_a_cidr_group_follows_the_group(self, guarded: Lab, tmp_path: Path) -> None:
        opened = passes(["world"], ["back2"]) | dropped(["front1"], ["back2"])
        closed = dropped(["world", "front1"], ["back2"])

        async def fares(text: str, expected: Expected) -> None:
            file = tmp_path / "mine.yaml"
            file.write_text(text)
            self.ask(guarded, "load", "--wait", str(file))
            assert await outcomes(guarded, expected) == expected

        await fares(FROM_PARTNERS, closed)
        await fares(
            PARTNERS.format(", ".join(str(ip_network(guarded.address(WORLD, family))) for family in FAMILIES)), opened
        )
        await fares(PARTNERS.format("198.51.100.0/24"), closed)
        listed = json.loads(self.ask(guarded, "list", "-o", "json"))
        assert [one["kind"] for one in listed] == ["CiliumCIDRGroup", "CiliumNetworkPolicy"]
        assert guarded.nodes["n1"].status()["documents"]["policies"] == 1

        self.ask(guarded, "delete", "--wait", "default/from-partners")
        left = passes(["world", "front1"], ["back2"])
        assert await outcomes(guarded, left) == left
        assert "partners deleted\n" in self.ask(guarded, "delete", "partners")

    async def test_a_policy_that_names_services_follows_them(self, guarded: Lab, tmp_path: Path) -> None:
        async def fares(text: str, expected: Expected) -> None:
            file = tmp_path / "mine.yaml"
            file.write_text(text)
            self.ask(guarded, "load", "--wait", str(file))
            assert await outcomes(guarded, expected) == expected

        await fares(TO_SERVICES, dropped(["front1"], ["back1", "db3"]))
        await fares(SERVICE.format("backend"), passes(["front1"], ["back1", "back2"]) | dropped(["front1"], ["db3"]))
        await fares(SERVICE.format("db"), passes(["front1"], ["db3"]) | dropped(["front1"], ["back1", "back2"]))
        await fares(OUTSIDE, dropped(["front1"], [WORLD]))
        slices = [SLICE.format(family=family, address=guarded.address(WORLD, family)) for family in FAMILIES]
        await fares("---".join(slices), passes(["front1"], [WORLD, "db3"]))

        for name in ("default/to-services", "default/api", "far/partner", *(f"far/partner-{n}" for n in FAMILIES)):
            self.ask(guarded, "delete", "--wait", name)
        assert json.loads(self.ask(guarded, "list", "-o", "json")) == []

    async def test_what_is_loaded_at_the_same_time_is_all_there(self, guarded: Lab) -> None:
        node = guarded.nodes["n2"]
        names = [f"policy-{number}" for number in range(6)]

        def load(name: str) -> None:
            client.call(node.socket, "apply", files=[(f"{name}.yaml", FRONT_TO_BACK.replace("front-to-back", name))])

        await asyncio.gather(*(asyncio.to_thread(load, name) for name in names))
        there = [one["name"] for one in client.call(node.socket, "policies")]
        for name in there:
            client.call(node.socket, "delete", namespace="default", name=name)

        assert sorted(there) == names

    @pytest.mark.parametrize(
        ("arguments", "status", "sentence"),
        [
            (["load", "FILE"], 2, "mine.yaml:3:14: spec.ingres: unknown field 'ingres'"),
            (["delete", "default/nobody"], 2, "there is no policy default/nobody; 'nfq-enforcer policy list' shows"),
            (["get", "default/nobody"], 1, "there is no policy default/nobody; there are: default/from-a-file"),
        ],
    )
    async def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(
        self, guarded: Lab, policies: Policies, tmp_path: Path, arguments: list[str], status: int, sentence: str
    ) -> None:
        await policies.apply("file", FRONT_TO_BACK.replace("front-to-back", "from-a-file"))
        file = tmp_path / "mine.yaml"
        file.write_text(
            "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: wrong}, spec: {\n"
            "  endpointSelector: {}, ingress: [{}],\n             ingres: []}}\n"
        )
        node = guarded.nodes["n2"]
        before = node.status()["revision"]

        command = [str(file) if argument == "FILE" else argument for argument in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "nfq_enforcer.cli", "policy", *command, "--socket", str(node.socket)],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (done.returncode, done.stdout) == (status, "")
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert node.status()["revision"] == before
