"""ClusterNetworkPolicy on real traffic: names learned from DNS answers without a DNS rule, and rules named in flows."""

import contextlib
import json
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import find_command
from tests.integration.conftest import MakeLab
from tests.support.dns import AAAA, A, address, answer, query
from tests.support.dns_server import DnsClient, DnsServer
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    FAMILIES,
    HTTP,
    PATIENT,
    DatapathSettings,
    flows_since,
    now,
    run_in,
    start,
)
from tests.support.namespaces import within

NAME = "deep.api.example.com"
DATAPATH_SETTINGS = DATAPATHS
DNS, PORT = 53, 5353  # the lab's own servers use port 53, so packets to it go to the other port

HEAD = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names}
"""
NAMES = f"""{HEAD}
spec:
  tier: Admin
  priority: 10
  subject: {{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{role: frontend}}}}}}}}
  egress:
    - name: names of the company
      action: Accept
      to: [{{domainNames: ["*.example.com"]}}]
      protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]
    - name: nothing else outside
      action: Deny
      to: [{{networks: [0.0.0.0/0, "::/0"]}}]
      protocols: [{{tcp: {{destinationPort: {{range: {{start: 1, end: 65535}}}}}}}}]
"""


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    return make_served(memory=True)


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[DnsServer]:
    for command in ("iptables", "ip6tables"):
        redirect = ["PREROUTING", "-p", "udp", "--dport", str(DNS), "-j", "REDIRECT", "--to-ports", str(PORT)]
        run_in(lab, "world", find_command(command), "-w", "-t", "nat", "-A", *redirect)
    server = DnsServer(lab, "world", lambda _: [], PORT)
    yield server
    server.close()


@pytest.fixture
def node(lab: Lab, datapath: DatapathSettings) -> Iterator[None]:
    with contextlib.suppress(FileNotFoundError):
        (lab.nodes["n1"].state / "names.json").unlink()
    start(lab, "n1", documents=NAMES, **datapath.settings)
    yield
    lab.nodes["n1"].stop()


def connects(lab: Lab, family: int, timeout: float = BRIEF) -> bool:
    """Return whether front1 reaches port 80 of the world."""

    def connect() -> bool:
        try:
            socket.create_connection((str(lab.address("world", family)), HTTP), timeout=timeout).close()
        except TimeoutError:
            return False
        return True

    return within(lab, "front1", connect)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_addresses_of_domain_names_are_accepted_once_they_are_learned(
    lab: Lab, server: DnsServer, node: None, family: int
) -> None:
    kind, world = A if family == 4 else AAAA, str(lab.address("world", family))
    server.respond = lambda _: [answer(NAME, address(NAME, world), kind=kind)]
    client, since = DnsClient(lab, "front1", "world", family, DNS), now()

    with contextlib.closing(client):
        assert not connects(lab, family)
        assert client.rcode(query(NAME, kind), PATIENT) == 0
        assert connects(lab, family, PATIENT)
    program = [sys.executable, "-P", "-m", "nfq_enforcer.cli", "fqdn", "list", "-o", "json"]
    listed = json.loads(run_in(lab, "n1", *program, "--socket", str(lab.nodes["n1"].socket)))
    assert [(one["name"], one["selectors"]) for one in listed] == [(NAME, ["**.example.com"])]
    assert {flow["reason"] for flow in flows_since(lab.nodes["n1"], since)} == {None, "POLICY_DENY"}
    rules = [rule for flow in lab.nodes["n1"].observe() for rule in deciding(flow)]
    assert {(rule["rule"], rule["tier"], rule["action"], rule["rule_name"]) for rule in rules} == {
        ("egress[0]", "Admin", "Accept", "names of the company"),
        ("egress[1]", "Admin", "Deny", "nothing else outside"),
    }


def deciding(flow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the rules of the tier that have decided about a flow."""
    yield from (*flow.get("egress_allowed_by", ()), *flow.get("egress_denied_by", ()))
