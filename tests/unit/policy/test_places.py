"""Lines of rules in the text of documents."""

import pytest

from nfq_enforcer.core.tables.policymap import WHOLE, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy import places

TEXT = """\
kind: Other
metadata: {name: p}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: p
specs:
- endpointSelector: {}
  ingress:
  - fromEntities: [host]
  - fromEntities: [world]
- endpointSelector: {}
  egressDeny:
  - toEntities: [world]
---
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: p, namespace: shop}
  spec:
    podSelector: {}
    ingress: []
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: both}
  spec:
    endpointSelector: {}
    ingress:
    - {}
  specs:
  - endpointSelector: {}
    egress:
    - {}
---
kind: CiliumClusterwideNetworkPolicy
metadata: {name: wide, namespace: ignored}
spec:
  egress:
  - {}
---
metadata: 7
kind: CiliumNetworkPolicy
"""


def ref(name: str, direction: str, number: int, *, spec: int = 0, deny: bool = False, **changed: str) -> RuleRef:
    kind, namespace = changed.get("kind", "CiliumNetworkPolicy"), changed.get("namespace", "default")
    return RuleRef(kind, namespace, name, Direction(direction), number, spec, deny)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (ref("p", "ingress", 0), 11),
        (ref("p", "ingress", 1), 12),
        (ref("p", "egress", 0, spec=1, deny=True), 15),
        (ref("p", "ingress", WHOLE, kind="NetworkPolicy", namespace="shop"), 25),
        (ref("both", "ingress", 0), 32),
        (ref("both", "egress", 0, spec=1), 36),
        (ref("wide", "egress", 0, kind="CiliumClusterwideNetworkPolicy", namespace=""), 42),
        (ref("p", "ingress", 7), 11),  # the line of the section, if the rule is not there
    ],
)
def test_a_rule_has_the_line_on_which_it_begins(rule: RuleRef, line: int) -> None:
    place = places.find(TEXT, "f", rule)

    assert place is not None
    assert (place.line, place.data["metadata"]["name"]) == (line, rule.name)


@pytest.mark.parametrize("rule", [ref("q", "ingress", 0), ref("p", "ingress", 0, namespace="shop")])
def test_a_document_that_is_not_there_has_no_place(rule: RuleRef) -> None:
    assert places.find(TEXT, "f", rule) is None
