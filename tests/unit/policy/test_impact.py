"""Impact: the recorded and open connections to which new documents give another verdict."""

from typing import Any

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.policy.impact import ImpactRow, impact, replaced
from nfq_enforcer.policy.loader import Documents, from_data
from nfq_enforcer.policy.recorded import RecordedFlow, with_ends
from nfq_enforcer.policy.replay import Replay
from nfq_enforcer.policy.simulation import Simulation
from tests.support.recorded import endpoint, to

FRONT = endpoint("front1", "10.0.0.1", role="frontend")
BACK = endpoint("back1", "10.0.0.3", role="backend")
DB = endpoint("db1", "10.0.0.4", role="db")


def policy(name: str, *ingress: dict[str, Any]) -> Documents:
    document = {
        **{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": name}},
        "spec": {"endpointSelector": {"matchLabels": {"role": "backend"}}, "ingress": list(ingress) or [{}]},
    }
    return from_data([document])


def of(role: str, *ports: int, **rules: Any) -> dict[str, Any]:
    written = [{"port": str(port), "protocol": "TCP"} for port in ports]
    to_ports = {"toPorts": [{"ports": written, **rules}]} if ports else {}
    return {"fromEndpoints": [{"matchLabels": {"role": role}}], **to_ports}


def rows(now: Documents, then: Documents, seen: dict[RecordedFlow, int], opened: dict[RecordedFlow, int]) -> Any:
    ends = [end for flow in (*seen, *opened) for end in flow[:2]]
    replays = []
    for documents in (now, then):
        cluster = with_ends(documents, ends)
        replays.append(Replay(Simulation(cluster.documents), cluster.references))
    return impact(seen, opened, *replays)


def test_flows_with_another_verdict_are_listed_with_their_numbers() -> None:
    now, then = policy("p", of("frontend")), policy("p", of("frontend", 80), of("db"))
    flows = {to(FRONT, BACK, 80): 9, to(FRONT, BACK, 81): 5, to(DB, BACK): 7, to(FRONT, DB): 1}

    denied, allowed = rows(now, then, flows, {to(FRONT, BACK, 81): 2})

    assert denied[:-1] == ("default/front1", "default/back1", "81/TCP", 5, 2, "allow", "deny")
    assert denied.reason.startswith("ingress of default/back1 is closed by")
    assert allowed[:-1] == ("default/db1", "default/back1", "80/TCP", 7, 0, "deny", "allow")
    assert denied.as_data()["seen"] == 5


def test_requests_are_replayed_by_themselves() -> None:
    now = policy("p", of("frontend", 80))
    then = policy("p", of("frontend", 80, rules={"http": [{"method": "GET"}]}))
    requests = {to(FRONT, BACK, 80, request=HttpRequest(method)): 1 for method in ("GET", "PUT")}

    found: list[ImpactRow] = rows(now, then, {to(FRONT, BACK): 2, **requests}, {})

    assert [row[2:7] for row in found] == [
        ("PUT / on 80/TCP", 1, 0, "allow", "deny"),
        ("80/TCP", 2, 0, "allow", "allow some requests"),
    ]


def test_flows_that_cannot_be_evaluated_have_no_part() -> None:
    flows = {to(FRONT, BACK, 0, 47): 1, to(FRONT._replace(name="No Name"), BACK): 1}

    assert rows(Documents(), policy("p"), flows, {}) == []


def test_new_documents_replace_those_of_their_name() -> None:
    current = Documents(policies=(*policy("a").policies, *policy("b").policies))
    new = policy("b")

    assert [one.name for one in replaced(current, new).policies] == ["a", "b"]
    assert replaced(current, new).policies[1] is new.policies[0]
    assert replaced(current, new, only=True).policies == new.policies
