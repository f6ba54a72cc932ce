"""Pods and policies of a real API server, enforced on real traffic between the network namespaces of pods."""

import pytest

from tests.support.kubernetes_cluster import BRIEF, Cluster, Node, eventually

MEMORY = "memory:"
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: default}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: web}}}]
      ports: [{port: sql}]
"""
CILIUM = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: db, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: db}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: web}}]
"""
SQL = {"ports": [{"name": "sql", "containerPort": 5432}]}


def has(node: Node, *names: str) -> bool:
    return set(names) <= node.endpoints().keys()


@pytest.mark.parametrize("number", [0, 1], ids=["ptp", "bridge"])
def test_two_pods_and_a_policy_are_enforced(cluster: Cluster, number: int) -> None:
    node = cluster.nodes[number]
    web, other, db = (node.pod(name) for name in ("web", "other", "db"))
    web.start({"role": "web"})
    node.start_agent(MEMORY)
    other.start({"role": "other"})
    db.start({"role": "db"}, container=SQL)
    for family in (4, 6):
        db.listen(5432, family)
        db.listen(80, family)
    cluster.apply(POLICY)
    eventually(lambda: has(node, "default/web", "default/db", "default/other"), "the pods are endpoints")
    v4, v6 = db.addresses
    eventually(lambda: not other.connects(v4, 5432, BRIEF), "the policy is enforced")

    assert web.connects(v4, 5432)
    assert web.connects(v6, 5432)
    assert not web.connects(v4, 80, BRIEF)
    assert not other.connects(v6, 5432, BRIEF)
    cluster.api.kubectl("delete", "networkpolicy", "db")
    eventually(lambda: other.connects(v4, 80, BRIEF), "the deleted policy is no longer enforced")
