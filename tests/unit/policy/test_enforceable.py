"""Check of enforceability: a policy that is parsed but not enforced yet is refused, with the reason."""

import pytest

from nfq_enforcer.errors import DocumentErrors
from nfq_enforcer.policy import enforceable, loader

CLUSTERWIDE = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: a}\nspec: "
PLAIN = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: 'n', namespace: shop}\nspec: "
LACKING = {
    "nodeSelector": "{nodeSelector: {}, ingress: [{}]}",
}


def check(text: str) -> None:
    enforceable.check(one.document for one in loader.parse(text, "x.yaml"))


@pytest.mark.parametrize("what", LACKING)
def test_what_is_understood_but_not_enforced_yet_is_refused(what: str) -> None:
    with pytest.raises(DocumentErrors) as caught:
        check(CLUSTERWIDE + LACKING[what])

    assert str(caught.value).startswith("x.yaml:1: CiliumClusterwideNetworkPolicy a: ")
    assert what in str(caught.value)
    assert "are understood by trace and matrix, but an agent of this version refuses them: it has no" in str(
        caught.value
    )


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(DocumentErrors) as caught:
        check("\n---\n".join(CLUSTERWIDE + text for text in 2 * tuple(LACKING.values())))

    assert [error.file for error in caught.value.errors] == ["x.yaml:1", "x.yaml:6"]


@pytest.mark.parametrize(
    "text",
    [
        CLUSTERWIDE + "{endpointSelector: {}, ingress: [{}]}",
        CLUSTERWIDE
        + "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: a, protocol: TCP}], rules: {http: [{}]}}]}]}",
        CLUSTERWIDE
        + "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: a}]}}]}]}",
        CLUSTERWIDE + "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '443'}], serverNames: ['*.a']}]}]}",
        PLAIN + "{podSelector: {}}",
    ],
)
def test_what_can_be_enforced_is_taken(text: str) -> None:
    check(text)
