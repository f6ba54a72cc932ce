"""Tables: the list of policies."""

from typing import Any

import pytest

from tests.unit.cli.conftest import Answering, RunProgram


@pytest.mark.parametrize(
    ("kind", "spec", "text"),
    [
        ("ClusterNetworkPolicy", {"tier": "Admin", "priority": 10}, "ClusterNetworkPolicy (Admin 10)"),
        ("CiliumClusterwideNetworkPolicy", {"ingress": [{}]}, "CiliumClusterwideNetworkPolicy"),
    ],
)
def test_an_ordered_policy_is_listed_with_tier_and_priority(
    kind: str, spec: dict[str, Any], text: str, run: RunProgram, answering: Answering
) -> None:
    document = {"kind": kind, "spec": spec}
    policy = {"namespace": "", "name": "a", "origin": "f:1", "kind": kind, "document": document}
    agent = answering(policies=[policy])

    done = run("policy", "list", "-o", "table", "--socket", agent.socket)

    assert done.lines[1:] == [f"<none> a {text} f:1"]
