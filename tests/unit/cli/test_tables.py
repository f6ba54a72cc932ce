"""Tables: the list of policies."""

from typing import Any

import pytest
from rich.console import Console

from nfq_enforcer.cli import tables


def shown(**policy: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.policies([{"namespace": "", "origin": "f:1", **policy}]))
    return capture.get()


@pytest.mark.parametrize(
    ("kind", "spec", "text"),
    [
        ("ClusterNetworkPolicy", {"tier": "Admin", "priority": 10}, "ClusterNetworkPolicy (Admin 10)"),
        ("CiliumClusterwideNetworkPolicy", {"ingress": [{}]}, "CiliumClusterwideNetworkPolicy "),
    ],
)
def test_an_ordered_policy_is_listed_with_tier_and_priority(kind: str, spec: dict[str, Any], text: str) -> None:
    assert text in shown(kind=kind, name="a", document={"kind": kind, "spec": spec})
