"""Pods and policies of a real API server, enforced on real traffic between the network namespaces of pods."""

import socket

import pytest

from tests.support.apart import call_in
from tests.support.kubernetes_cluster import (
    API_ADDRESS,
    API_PORT,
    BRIEF,
    PATIENT,
    TUNNEL,
    Cluster,
    Node,
    connects,
    eventually,
)
from tests.support.workloads import source

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


def test_pods_of_two_nodes_meet_by_the_store(cluster: Cluster) -> None:
    with cluster.api.redis as redis:
        one, two = cluster.nodes
        for node in cluster.nodes:
            node.start_agent(redis.url())
        cluster.apply(POLICY)
        web = one.pod("web").start({"role": "web"})
        other = one.pod("other").start({"role": "other"})
        db = two.pod("db").start({"role": "db"}, container=SQL)
        db.listen(5432)
        db.listen(80)
        names = ("default/web", "default/db", "default/other")
        eventually(lambda: all(has(node, *names) for node in cluster.nodes), "both have all pods")
        eventually(lambda: not other.connects(db.addresses[0], 5432, BRIEF), "the policy is enforced")

        assert web.connects(db.addresses[0], 5432)
        assert not web.connects(db.addresses[0], 80, BRIEF)
        listed = {
            f"{node.name} {name}": entry["node"] for node in cluster.nodes for name, entry in node.endpoints().items()
        }
        assert listed == {
            f"{node.name} default/{name}": place
            for node in cluster.nodes
            for name, place in (("web", "n1"), ("other", "n1"), ("db", "n2"))
        }


def test_identities_travel_through_the_tunnel_of_flannel(cluster: Cluster) -> None:
    with cluster.api.redis as redis, cluster.tunnel():
        one, two = cluster.nodes
        for node in cluster.nodes:
            node.start_agent(redis.url(), node={"cluster_interfaces": [TUNNEL]})
        cluster.apply(CILIUM)
        web, other = one.pod("web").start({"role": "web"}), one.pod("other").start({"role": "other"})
        db = two.pod("db").start({"role": "db"})
        db.listen(80)
        names = ("default/web", "default/db", "default/other")
        eventually(lambda: all(has(node, *names) for node in cluster.nodes), "both have all pods")
        eventually(lambda: not other.connects(db.addresses[0], 80, BRIEF), "the policy is enforced")

        assert web.connects(db.addresses[0], 80)
        before = int(two.run("cat", f"/sys/class/net/{TUNNEL}/statistics/rx_packets"))
        assert web.connects(db.addresses[0], 80)
        assert int(two.run("cat", f"/sys/class/net/{TUNNEL}/statistics/rx_packets")) > before


def test_a_later_pod_with_the_address_of_an_ended_one_has_its_own_identity(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    cluster.apply(CILIUM)
    db = node.pod("db").start({"role": "db"})
    db.listen(80)
    web, other = node.pod("web"), node.pod("other")
    web.start({"role": "web"})
    eventually(lambda: web.connects(db.addresses[0], 80, BRIEF), "web is an endpoint")
    other.create({"role": "other"})

    # the network of the ended pod is the next one's at once; the order of the API server's events is that of the writes
    web.delete()
    assert other.report(addresses=web.addresses).status == 200
    eventually(lambda: has(node, "default/other"), "the later pod is an endpoint")
    assert not web.connects(db.addresses[0], 80, BRIEF)

    assert set(node.endpoints()) == {"default/db", "default/other"}
    assert node.endpoints()["default/other"]["addresses"] == web.addresses


def test_of_two_pods_with_one_address_the_running_one_has_it(cluster: Cluster) -> None:
    """The kubelet may report the next pod before the end of the one that had the address."""
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    old, new = node.pod("old"), node.pod("new")
    old.start({"role": "web"})
    eventually(lambda: has(node, "default/old"), "the first pod is an endpoint")
    old.delete(grace=30)
    new.create({"role": "other"})
    assert new.report(addresses=old.addresses).status == 200

    eventually(lambda: set(node.endpoints()) == {"default/new"}, "the pod that is not being deleted has the address")
    new.delete()
    eventually(lambda: set(node.endpoints()) == {"default/old"}, "the address is the first pod's again")


def test_a_terminating_pod_stays_an_endpoint_until_it_is_deleted(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    cluster.apply(CILIUM)
    web, db = node.pod("web").start({"role": "web"}), node.pod("db").start({"role": "db"})
    db.listen(80)
    eventually(lambda: web.connects(db.addresses[0], 80, BRIEF), "both are endpoints")

    web.delete(grace=30)
    seen = source(node.status(), "kubernetes")["details"]["watches"]["Pod"]["events"]
    marker = node.pod("marker").start({"role": "marker"})
    eventually(lambda: has(node, "default/marker"), f"later events than {seen} have arrived")
    assert web.connects(db.addresses[0], 80)

    web.delete()
    marker.delete()
    eventually(lambda: set(node.endpoints()) == {"default/db"}, "the deleted pods are no endpoints")


def test_completed_pods_and_pods_of_the_host_network_are_no_endpoints(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    job, host, next_one = node.pod("job"), node.pod("host"), node.pod("next")
    job.start({"role": "job"})
    eventually(lambda: has(node, "default/job"), "the pod is an endpoint")
    host.create({"role": "host"}, hostNetwork=True)
    assert host.report(addresses=[node.address]).status == 200
    next_one.create({"role": "next"})

    assert job.report("Succeeded").status == 200
    assert next_one.report(addresses=job.addresses).status == 200

    eventually(lambda: set(node.endpoints()) == {"default/next"}, "the next pod has the address of the completed one")


def test_a_refused_policy_is_told_on_its_object_and_leaves_the_last_one_in_force(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    cluster.apply(CILIUM)
    other, db = node.pod("other").start({"role": "other"}), node.pod("db").start({"role": "db"})
    db.listen(80)
    eventually(lambda: has(node, "default/other", "default/db"), "both are endpoints")
    eventually(lambda: not other.connects(db.addresses[0], 80, BRIEF), "the policy is enforced")

    cluster.apply(CILIUM.replace("fromEndpoints", "fromEndpoitns"))
    sentence = "spec.ingress[0].fromEndpoitns: unknown field 'fromEndpoitns'; did you mean 'fromEndpoints'?"
    eventually(
        lambda: sentence in cluster.api.kubectl("get", "events", "-o", "jsonpath={.items[*].message}"),
        "an event has the reason",
    )

    assert "Warning" in cluster.api.kubectl("get", "events")
    (problem,) = [one for one in node.status()["problems"] if "CiliumNetworkPolicy" in one]
    assert problem.startswith("CiliumNetworkPolicy default/db is not in force in its present form: spec.ingress[0]")
    assert not other.connects(db.addresses[0], 80, BRIEF)
    cluster.apply(CILIUM.replace("role: web", "role: other"))
    eventually(lambda: other.connects(db.addresses[0], 80, BRIEF), "the corrected policy is enforced")
    assert node.status()["problems"] == []


def test_labels_of_namespaces_groups_of_cidrs_and_clusterwide_policies_count(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    cluster.api.kubectl("create", "namespace", "shop")
    try:
        cluster.api.kubectl("label", "namespace", "shop", "team=blue")
        cluster.apply(
            """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: db}
spec:
  endpointSelector: {matchLabels: {role: db}}
  ingress:
    - fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: blue}}]
    - fromCIDRSet: [{cidrGroupSelector: {matchLabels: {kind: office}}}]
""",
            """
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: outside, labels: {kind: office}}
spec: {externalCIDRs: [192.0.2.2/32]}
""",
        )
        web, other = node.pod("web", "shop"), node.pod("other")
        web.start({"role": "web"})
        other.start({"role": "web"})
        db = node.pod("db").start({"role": "db"})
        db.listen(80)
        eventually(lambda: has(node, "shop/web", "default/other", "default/db"), "all are endpoints")
        eventually(lambda: not other.connects(db.addresses[0], 80, BRIEF), "the policy is enforced")

        assert web.connects(db.addresses[0], 80)
        cluster.api.run("ip", "route", "replace", node.networks[0], "via", node.address)
        assert connects(cluster.api.namespace, db.addresses[0], 80, PATIENT)
        cluster.api.kubectl("label", "namespace", "shop", "team-")
        eventually(lambda: not web.connects(db.addresses[0], 80, BRIEF), "the namespace has lost its label")
    finally:
        node.clear()
        cluster.api.kubectl("delete", "namespace", "shop", "--wait=false")


def test_a_tier_of_the_administrator_precedes_the_policies_of_namespaces(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    cluster.apply(CILIUM)
    web = node.pod("web").start({"role": "web"})
    db = node.pod("db").start({"role": "db"})
    db.listen(80)
    eventually(lambda: web.connects(db.addresses[0], 80, BRIEF), "the pods are endpoints")

    cluster.apply(
        """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-web}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: db}}}}
  ingress:
    - action: Deny
      from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: web}}}}]
"""
    )
    eventually(lambda: not web.connects(db.addresses[0], 80, BRIEF), "the tier is enforced")
    cluster.api.kubectl("delete", "clusternetworkpolicy", "no-web")
    eventually(lambda: web.connects(db.addresses[0], 80, BRIEF), "the tier is gone")


def test_without_the_api_server_the_last_state_is_enforced_and_told(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    cluster.apply(CILIUM)
    web, other = node.pod("web").start({"role": "web"}), node.pod("other").start({"role": "other"})
    db = node.pod("db").start({"role": "db"})
    db.listen(80)
    eventually(lambda: web.connects(db.addresses[0], 80, BRIEF), "the pods are endpoints")

    cluster.api.kill_server()
    try:
        eventually(lambda: any("away" in problem for problem in node.status()["problems"]), "the status has it")
        assert web.connects(db.addresses[0], 80)
        assert not other.connects(db.addresses[0], 80, BRIEF)
    finally:
        cluster.api.start_server()
    late = node.pod("late").start({"role": "web"})
    eventually(lambda: late.connects(db.addresses[0], 80, BRIEF), "a pod of after the restart is an endpoint")
    eventually(lambda: node.status()["problems"] == [], "all watches are back")


def test_an_agent_that_starts_enforces_before_it_is_ready(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    cluster.apply(CILIUM)
    web, other = node.pod("web").start({"role": "web"}), node.pod("other").start({"role": "other"})
    db = node.pod("db").start({"role": "db"})
    db.listen(80)

    node.start_agent(MEMORY)

    assert not other.connects(db.addresses[0], 80, BRIEF)
    assert web.connects(db.addresses[0], 80)


def test_services_are_peers(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.start_agent(MEMORY)
    service = """
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {selector: {role: db}, ports: [{port: 80}]}
"""
    policy = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: web}}
  egress: [{toServices: [{k8sService: {serviceName: db, namespace: default}}]}]
"""
    cluster.apply(service, policy)
    try:
        web, db = node.pod("web").start({"role": "web"}), node.pod("db").start({"role": "db"})
        other = node.pod("other").start({"role": "other"})
        for one in (db, other):
            one.listen(80)
        eventually(lambda: has(node, "default/web", "default/db", "default/other"), "all are endpoints")
        eventually(lambda: not web.connects(other.addresses[0], 80, BRIEF), "the policy is enforced")

        assert web.connects(db.addresses[0], 80)
    finally:
        cluster.api.kubectl("delete", "service", "db")


def test_an_agent_that_was_away_finds_what_has_ended_meanwhile(cluster: Cluster) -> None:
    with cluster.api.redis as redis:
        node = cluster.nodes[0]
        node.start_agent(redis.url())
        cluster.apply(CILIUM)
        web, other, gone = (node.pod(name).start({"role": role}) for name, role in NAMED)
        db = node.pod("db").start({"role": "db"})
        db.listen(80)
        eventually(lambda: len(node.endpoints()) == 4, "all are endpoints")
        eventually(lambda: not other.connects(db.addresses[0], 80, BRIEF), "the policy is enforced")

        node.stop_agent()
        gone.delete()
        cluster.api.kill_server()
        try:
            node.start_agent(redis.url())
            assert not other.connects(db.addresses[0], 80, BRIEF)  # by the state of the store
            assert web.connects(db.addresses[0], 80)
            assert len(node.endpoints()) == 4
        finally:
            cluster.api.start_server()
        eventually(lambda: len(node.endpoints()) == 3, "the ended pod is no endpoint")
        node.stop_agent()
        cluster.api.kubectl("delete", "ciliumnetworkpolicy", "db")
        node.start_agent(redis.url())
        eventually(lambda: other.connects(db.addresses[0], 80, BRIEF), "the deleted policy is not enforced")


NAMED = (("web", "web"), ("other", "other"), ("gone", "web"))


def test_a_node_that_kubernetes_does_not_have_is_named(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    kubeconfig = str(cluster.api.agent_kubeconfig())
    node.start_agent(MEMORY, kubernetes={"enabled": True, "kubeconfig": kubeconfig, "node": "n9"})
    sentence = "Kubernetes has no node 'n9', so no pods of this host: kubernetes.node is its name there"

    eventually(lambda: node.status()["problems"] == [sentence], "the status names it")
    try:
        assert cluster.api.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n9"}}).status == 201
        eventually(lambda: node.status()["problems"] == [], "the node exists now")
    finally:
        cluster.api.ask("DELETE", "/api/v1/nodes/n9")


ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nfq-enforcer"


def test_a_kind_that_may_not_be_watched_leaves_the_others_as_they_are(cluster: Cluster) -> None:
    """The role is that of an older version, which did not watch CIDR groups."""
    node = cluster.nodes[0]
    role = cluster.api.ask("GET", ROLE).body
    older = [
        {**rule, "resources": [one for one in rule["resources"] if one != "ciliumcidrgroups"]} for rule in role["rules"]
    ]

    def grant(rules: list[dict[str, object]]) -> None:
        answer = cluster.api.ask("PATCH", ROLE, {"rules": rules}, "application/merge-patch+json")
        assert answer.status == 200

    def problems() -> list[str]:
        return [str(problem) for problem in node.status()["problems"]]

    grant(older)
    try:
        node.start_agent(MEMORY)
        web, db = node.pod("web").start({"role": "web"}), node.pod("db").start({"role": "db"})
        db.listen(5432)
        cluster.apply(CILIUM)
        eventually(lambda: has(node, "default/web", "default/db"), "the pods are endpoints")
        (problem,) = problems()
        assert problem.startswith(
            "CiliumCIDRGroup of Kubernetes is not watched, its last known objects stay in force: GET "
        )
        assert "ciliumcidrgroups" in problem
        assert source(node.status(), "kubernetes")["away"] is None
        assert web.connects(db.addresses[0], 5432)
    finally:
        grant(role["rules"])
    eventually(lambda: problems() == [], "the kind is watched")


OF_EDGES = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: edges}
spec:
  nodeSelector: {matchLabels: {tier: edge}}
  ingress: [{}]
"""


def test_labels_of_a_node_select_it(cluster: Cluster) -> None:
    """The node has its labels again after a restart of its agent without the API server."""
    node, other = cluster.nodes
    node.start_agent(MEMORY)
    cluster.apply(OF_EDGES)
    server = call_in(node.namespace, lambda: socket.create_server(("", 80)))

    def reached() -> bool:
        return connects(other.namespace, node.address, 80, BRIEF)

    def label(value: str | None) -> None:
        body = {"metadata": {"labels": {"tier": value}}}
        answer = cluster.api.ask("PATCH", f"/api/v1/nodes/{node.name}", body, "application/merge-patch+json")
        assert answer.status == 200

    with server:
        eventually(lambda: "edges" in str(node.ask("policies")), "the node has the rule")
        assert reached()
        label("edge")
        eventually(lambda: not reached(), "the rule selects the node")
        label(None)
        eventually(reached, "the rule selects the node no longer")
        label("edge")
        eventually(lambda: not reached(), "the rule selects the node again")
        assert node.ask("documents")["node_labels"]["k8s:tier"] == "edge"
        node.stop_agent()
        cluster.api.kill_server()
        try:
            (node.folder / "edges.yaml").write_text(OF_EDGES)
            node.start_agent(MEMORY, documents=[str(node.folder / "edges.yaml")])
            assert not reached()
        finally:
            cluster.api.start_server()
            label(None)


TO_API = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: web}}
  egress:
    - toEntities: [kube-apiserver]
"""


def test_the_entity_of_the_api_server_is_known_by_its_service(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    cluster.api.run("ip", "route", "replace", node.networks[0], "via", node.address)
    try:
        node.start_agent(MEMORY)
        web, db = node.pod("web").start({"role": "web"}), node.pod("db").start({"role": "db"})
        db.listen(80)
        eventually(lambda: has(node, "default/web", "default/db"), "the pods are endpoints")
        cluster.apply(TO_API)
        eventually(lambda: not web.connects(db.addresses[0], 80, BRIEF), "the policy is enforced")

        assert web.connects(API_ADDRESS, API_PORT)
    finally:
        cluster.api.run("ip", "route", "del", node.networks[0])


SERVICE = "10.96.0.10"
PROXIES = {
    # the rules that kube-proxy writes in its two modes, without its bookkeeping of endpoints
    "iptables": """
iptables -t nat -N KUBE-SEP
iptables -t nat -A KUBE-SEP -s {pod}/32 -j KUBE-MARK
iptables -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination {pod}:80
iptables -t nat -A PREROUTING -d {service}/32 -p tcp --dport 80 -j KUBE-SEP
iptables -t nat -A OUTPUT -d {service}/32 -p tcp --dport 80 -j KUBE-SEP
""",
    "nftables": r"""
nft add table ip kube-proxy
nft add chain ip kube-proxy prerouting {{ type nat hook prerouting priority dstnat\; }}
nft add chain ip kube-proxy output {{ type nat hook output priority -100\; }}
nft add rule ip kube-proxy prerouting ip daddr {service} tcp dport 80 dnat to {pod}:80
nft add rule ip kube-proxy output ip daddr {service} tcp dport 80 dnat to {pod}:80
""",
}
CLEAN = {
    "iptables": "iptables -t nat -F; iptables -t nat -X KUBE-SEP; iptables -t nat -X KUBE-MARK",
    "nftables": "nft delete table ip kube-proxy",
}


@pytest.mark.parametrize("mode", PROXIES)
@pytest.mark.parametrize("place", [0, 1], ids=["same-node", "other-node"])
def test_through_a_service_the_identity_is_that_of_the_origin(cluster: Cluster, mode: str, place: int) -> None:
    with cluster.api.redis as redis:
        one, two = cluster.nodes[0], cluster.nodes[place]
        for node in cluster.nodes:
            node.start_agent(redis.url())
        cluster.apply(CILIUM)
        web, other = one.pod("web").start({"role": "web"}), one.pod("other").start({"role": "other"})
        db = two.pod("db").start({"role": "db"})
        db.listen(80)
        names = ("default/web", "default/db", "default/other")
        eventually(lambda: all(has(node, *names) for node in cluster.nodes), "both have all pods")
        eventually(lambda: not other.connects(db.addresses[0], 80, BRIEF), "the policy is enforced")
        if mode == "iptables":
            one.run("iptables", "-t", "nat", "-N", "KUBE-MARK")
        one.run("sh", "-ec", PROXIES[mode].format(pod=db.addresses[0], service=SERVICE))
        try:
            assert web.connects(SERVICE, 80)
            assert not other.connects(SERVICE, 80, BRIEF)
            if place == 0:  # the host, and pods of its network, may reach the node's own pods
                one.run("ip", "route", "add", SERVICE, "dev", "eth0")  # as any default route does
                assert connects(one.namespace, SERVICE, 80, PATIENT)
        finally:
            one.run("sh", "-c", f"{CLEAN[mode]}; ip route flush {SERVICE}")
