"""ClusterNetworkPolicy: every field of a document, its error messages, and the order in which its rules decide."""

import pytest

from nfq_enforcer.core.tables.policymap import LookupResult
from nfq_enforcer.policy.cluster_policy import ClusterNetworkPolicy
from nfq_enforcer.policy.compiler import Enforcement
from tests.support.clusters import ALL_PEERS, CILIUM, DB, PLAIN, WEB, PolicyCluster
from tests.unit.policy.test_documents import document, problems

HEAD = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: "
EVERYWHERE = "{namespaces: {}}"
FROM_WEB = "from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]"
TO_WEB = FROM_WEB.replace("from", "to", 1)
DB_PODS = "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}"


def policy(rest: str, *, tier: str = "Admin", priority: int = 10, subject: str = EVERYWHERE, name: str = "a") -> str:
    spec = f"spec: {{tier: {tier}, priority: {priority}, subject: {subject}, {rest}}}"
    return f"{HEAD}{name}}}\n{spec}\n"


def ingress(action: str, rest: str = FROM_WEB) -> str:
    return f"ingress: [{{action: {action}, {rest}}}]"


def egress(action: str, rest: str = TO_WEB) -> str:
    return f"egress: [{{action: {action}, {rest}}}]"


class TestFields:
    def test_a_policy_may_say_everything(self) -> None:
        protocols = (
            "[{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 2}}}}, "
            "{sctp: {destinationPort: {number: 9}}}, {destinationNamedPort: web}]"
        )
        text = (
            "spec:\n  tier: Baseline\n  priority: 1000\n  subject: {namespaces: {matchLabels: {a: b}}}\n"
            f"  ingress: [{{name: some words, action: Pass, from: [{{namespaces: {{}}}}], protocols: {protocols}}}]\n"
            "  egress:\n"
            "  - action: Accept\n"
            "    to: [{networks: [10.0.0.0/8, 'fd00::/8']}, {nodes: {}}, {domainNames: [a.b, '*.c.d']}]\n"
            "status: {conditions: []}\n"
        )
        found = document(f"{HEAD}a, namespace: x}}\n{text}")

        assert isinstance(found, ClusterNetworkPolicy)
        assert (found.title, found.spec.tier, found.spec.priority) == ("ClusterNetworkPolicy a", "Baseline", 1000)
        (rule,) = found.spec.ingress
        assert (rule.name, rule.action, len(rule.protocols or ())) == ("some words", "Pass", 4)
        assert [bool(peer.networks) for peer in found.spec.egress[0].peers] == [True, False, False]

    def test_a_list_of_policies_is_read(self) -> None:
        item = "{metadata: {name: a}, spec: {tier: Admin, priority: 0, subject: {namespaces: {}}}}"
        head = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicyList\n"

        assert document(f"{head}items: [{item}]\n").title == "ClusterNetworkPolicy a"

    @pytest.mark.parametrize(
        ("spec", "sentence"),
        [
            ("{priority: 1, subject: {namespaces: {}}}", "spec.tier: required field is missing"),
            (
                "{tier: Platform, priority: 1, subject: {namespaces: {}}}",
                "spec.tier: 'Platform' is not allowed; allowed: 'Admin' or 'Baseline'",
            ),
            ("{tier: Admin, subject: {namespaces: {}}}", "spec.priority: required field is missing"),
            (
                "{tier: Admin, priority: 1001, subject: {namespaces: {}}}",
                "spec.priority: priority 1001 is out of range; allowed: 0 to 1000, lower ones first",
            ),
            ("{tier: Admin, priority: -1, subject: {namespaces: {}}}", "spec.priority: priority -1 is out of range"),
            (
                "{tier: Admin, priority: '1', subject: {namespaces: {}}}",
                "spec.priority: must be a number, not a string",
            ),
            ("{tier: Admin, priority: 1}", "spec.subject: required field is missing"),
            (
                "{tier: Admin, priority: 1, subject: {}}",
                "spec.subject: a subject has none of them; allowed: one of namespaces, pods",
            ),
            (
                "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}}",
                "spec.subject: a subject has namespaces and pods; allowed: one of namespaces, pods",
            ),
            (
                "{tier: Admin, priority: 1, subject: {pods: {podSelector: {}}}}",
                "spec.subject.pods.namespaceSelector: required field is missing",
            ),
            (
                "{tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}}}}",
                "spec.subject.pods.podSelector: required field is missing",
            ),
            (
                "{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {'k8s:a': b}}}}",
                "'k8s:a' is not a label key",
            ),
            ("{tier: Admin, priority: 1, subject: {namespaces: {}}, color: red}", "spec.color: unknown field 'color'"),
        ],
    )
    def test_a_wrong_spec_is_one_error(self, spec: str, sentence: str) -> None:
        (problem,) = problems(f"{HEAD}a}}\nspec: {spec}\n")

        assert sentence in problem

    @pytest.mark.parametrize(
        ("rest", "sentence"),
        [
            ("ingress: [{from: [{namespaces: {}}]}]", "ingress[0].action: required field is missing"),
            (
                ingress("Allow"),
                "ingress[0].action: 'Allow' is not allowed; allowed: 'Accept', 'Deny' or 'Pass'",
            ),
            ("ingress: [{action: Deny}]", "ingress[0].from: required field is missing"),
            ("egress: [{action: Deny}]", "egress[0].to: required field is missing"),
            (ingress("Deny", "from: []"), "ingress[0].from: an empty list; allowed: 1 to 25 entries"),
            (ingress("Deny", "from: [{}]"), "ingress[0].from[0]: a peer has none of them; allowed: one of namespaces,"),
            (
                ingress("Deny", "from: [{networks: [10.0.0.0/8]}]"),
                "ingress[0].from[0].networks: networks exists in egress rules only; allowed: namespaces, pods",
            ),
            (ingress("Deny", "from: [{nodes: {}}]"), "nodes exists in egress rules only"),
            (
                egress("Deny", "to: [{namespaces: {}, nodes: {}}]"),
                "egress[0].to[0]: a peer has namespaces and nodes; allowed: one of namespaces, pods, nodes, networks, "
                "domainNames",
            ),
            (
                egress("Deny", "to: [{nodes: {matchLabels: {a: b}}}]"),
                "egress[0].to[0].nodes: labels of nodes are not supported by this version",
            ),
            (
                egress("Deny", "to: [{nodes: {matchExpressions: [{key: a, operator: Exists}]}}]"),
                "allowed: {} for every node, or networks with the addresses of nodes",
            ),
            (egress("Deny", "to: [{networks: []}]"), "egress[0].to[0].networks: an empty list; allowed: 1 to 25"),
            (egress("Deny", "to: [{networks: [10.0.0.1]}]"), "networks[0]: '10.0.0.1' is not a CIDR"),
            (
                egress("Deny", "to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]"),
                "networks: 10.0.0.0/8 stands twice in the list; allowed: once",
            ),
            (egress("Accept", "to: [{domainNames: [a]}]"), "domainNames[0]: 'a' is not a domain name; allowed: labels"),
            (egress("Accept", "to: [{domainNames: ['a.*.b']}]"), "'a.*.b' is not a domain name"),
            (egress("Accept", f"to: [{{domainNames: [{'a.' * 128}]}}]"), "is not a domain name"),
            (
                egress("Deny", "to: [{domainNames: [a.b]}]"),
                "egress[0]: domainNames with action Deny; allowed: with action Accept",
            ),
            (egress("Pass", "to: [{domainNames: [a.b]}]"), "domainNames with action Pass"),
            (
                egress("Deny", "to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]"),
                "egress[0]: destinationNamedPort beside networks, whose ports have no names; allowed: tcp, udp or sctp",
            ),
            (
                egress(
                    "Accept", "to: [{namespaces: {}}, {domainNames: [a.b]}], protocols: [{destinationNamedPort: w}]"
                ),
                "destinationNamedPort beside domainNames",
            ),
            (egress("Deny", "to: [{nodes: {}}], protocols: [{destinationNamedPort: w}]"), "beside nodes"),
            (ingress("Deny", f"{FROM_WEB}, protocols: []"), "ingress[0].protocols: an empty list"),
            (
                ingress("Deny", f"{FROM_WEB}, protocols: [{{}}]"),
                "protocols[0]: a protocol has none of them; allowed: one of tcp, udp, sctp, destinationNamedPort",
            ),
            (
                ingress("Deny", f"{FROM_WEB}, protocols: [{{tcp: {{}}}}]"),
                "protocols[0].tcp.destinationPort: required field is missing",
            ),
            (
                ingress("Deny", f"{FROM_WEB}, protocols: [{{icmp: {{}}}}]"),
                "protocols[0].icmp: unknown field 'icmp'",
            ),
            (
                ingress("Deny", f"{FROM_WEB}, protocols: [{{tcp: {{destinationPort: {{}}}}}}]"),
                "destinationPort: a destinationPort has none of them; allowed: one of number, range",
            ),
            (
                ingress("Deny", f"{FROM_WEB}, protocols: [{{tcp: {{destinationPort: {{number: 0}}}}}}]"),
                "number: port 0 is out of range; allowed: 1 to 65535",
            ),
            (
                ingress(
                    "Deny", f"{FROM_WEB}, protocols: [{{udp: {{destinationPort: {{range: {{start: 5, end: 5}}}}}}}}]"
                ),
                "range: start 5 is not below end 5; allowed: a start below the end",
            ),
            (
                ingress("Deny", f"{FROM_WEB}, protocols: [{{destinationNamedPort: 80}}]"),
                "destinationNamedPort: 80 is a number; allowed: the name of a port, or tcp, udp or sctp",
            ),
            (
                ingress("Deny", f"name: {'x' * 101}, {FROM_WEB}"),
                "name: 101 characters are too many; allowed: at most 100",
            ),
            (
                f"ingress: [{', '.join(['{action: Deny, from: [{namespaces: {}}]}'] * 26)}]",
                "spec.ingress: 26 entries are too many; allowed: at most 25",
            ),
        ],
    )
    def test_a_wrong_rule_is_one_error(self, rest: str, sentence: str) -> None:
        (problem,) = problems(policy(rest))

        assert sentence in problem

    @pytest.mark.parametrize(
        ("kind", "version", "sentence"),
        [
            (
                "ClusterNetworkPolicy",
                "crd.antrea.io/v1beta1",
                "a ClusterNetworkPolicy of crd.antrea.io belongs to another",
            ),
            ("ClusterNetworkPolicy", "networking.k8s.aws/v1alpha1", "of networking.k8s.aws belongs to another product"),
            (
                "ClusterNetworkPolicy",
                "policy.networking.k8s.io/v1alpha1",
                "the apiVersion of ClusterNetworkPolicy is policy.networking.k8s.io/v1alpha2, not policy.networking.",
            ),
            (
                "AdminNetworkPolicy",
                "policy.networking.k8s.io/v1alpha1",
                "AdminNetworkPolicy is not supported by this version; upstream has replaced it by ClusterNetworkPolicy "
                "of policy.networking.k8s.io/v1alpha2, with tier: Admin, action: Accept in place of Allow",
            ),
            (
                "BaselineAdminNetworkPolicy",
                "policy.networking.k8s.io/v1alpha1",
                "with tier: Baseline, action: Accept in",
            ),
            ("BaselineAdminNetworkPolicyList", "policy.networking.k8s.io/v1alpha1", "with tier: Baseline"),
        ],
    )
    def test_another_version_or_product_is_named(self, kind: str, version: str, sentence: str) -> None:
        (problem,) = problems(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n")

        assert sentence in problem
        assert "did you mean" not in problem


def decided(found: LookupResult) -> tuple[bool, list[str]]:
    return found.allowed, [str(rule) for rule in found.rules]


CLOSED = f"{PLAIN}{{podSelector: {DB}, ingress: []}}"
OPEN_TO_WEB = f"{PLAIN}{{podSelector: {DB}, ingress: [{{from: [{{podSelector: {WEB}}}]}}]}}"
DENY_WEB = f"{CILIUM}{{endpointSelector: {DB}, ingressDeny: [{{fromEndpoints: [{WEB}]}}], ingress: [{{}}]}}"


class TestOrder:
    @pytest.mark.parametrize("others", [(), (CLOSED,), (OPEN_TO_WEB,), (DENY_WEB,)])
    def test_admin_decides_before_every_other_policy(self, others: tuple[str, ...]) -> None:
        accepted = PolicyCluster(policy(ingress("Accept")), *others)
        denied = PolicyCluster(policy(ingress("Deny")), *others)

        rule = "a ingress[0] (Admin 10, "
        assert decided(accepted.lookup(accepted.ingress(), "shop/web")) == (True, [f"{rule}Accept)"])
        assert decided(denied.lookup(denied.ingress(), "shop/web")) == (False, [f"{rule}Deny)"])
        assert denied.ingress().can_refuse

    @pytest.mark.parametrize(
        ("others", "allowed", "rules"),
        [
            ((), True, []),
            ((CLOSED,), False, []),
            ((OPEN_TO_WEB,), True, ["shop/n ingress[0]"]),
            ((DENY_WEB,), False, ["shop/p ingressDeny[0]"]),
        ],
    )
    @pytest.mark.parametrize("tier", ["Admin", "Baseline"])
    def test_pass_leaves_the_decision_to_the_others(
        self, tier: str, others: tuple[str, ...], allowed: bool, rules: list[str]
    ) -> None:
        later = f"{{action: {'Accept' if allowed is False else 'Deny'}, {FROM_WEB}}}"
        cluster = PolicyCluster(policy(f"ingress: [{{action: Pass, {FROM_WEB}}}, {later}]", tier=tier), *others)

        assert decided(cluster.lookup(cluster.ingress(), "shop/web")) == (allowed, rules)

    @pytest.mark.parametrize(
        ("others", "rules"),
        [((CLOSED,), []), ((OPEN_TO_WEB,), ["shop/n ingress[0]"]), ((DENY_WEB,), ["shop/p ingressDeny[0]"])],
    )
    @pytest.mark.parametrize("action", ["Accept", "Deny"])
    def test_baseline_decides_nothing_where_another_policy_isolates(
        self, action: str, others: tuple[str, ...], rules: list[str]
    ) -> None:
        cluster = PolicyCluster(policy(ingress(action), tier="Baseline"), *others)

        assert decided(cluster.lookup(cluster.ingress(), "shop/web"))[1] == rules

    @pytest.mark.parametrize("action", ["Accept", "Deny"])
    @pytest.mark.parametrize(
        ("mode", "default"),
        [(Enforcement.PER_ENDPOINT, True), (Enforcement.AUTO, False), (Enforcement.ALWAYS, False)],
    )
    def test_baseline_decides_before_the_default_of_the_mode(
        self, mode: Enforcement, default: bool, action: str
    ) -> None:
        cluster = PolicyCluster(policy(ingress(action), tier="Baseline"), CLOSED, mode=mode)

        found = cluster.lookup(cluster.ingress("shop/twin1"), "shop/web")
        assert decided(found) == (action == "Accept", [f"a ingress[0] (Baseline 10, {action})"])
        assert decided(cluster.lookup(cluster.ingress("shop/twin1"), "shop/db")) == (default, [])

    def test_an_allow_rule_that_does_not_isolate_decides_before_baseline(self) -> None:
        rest = f"ingress: [{{fromEndpoints: [{WEB}]}}], enableDefaultDeny: {{ingress: false}}"
        opening = f"{CILIUM}{{endpointSelector: {DB}, {rest}}}"
        cluster = PolicyCluster(policy(ingress("Deny", "from: [{namespaces: {}}]"), tier="Baseline"), opening)

        assert cluster.ingress_allowed("shop/web", "shop/twin1") == [True, False]

    def test_no_rule_isolates(self) -> None:
        cluster = PolicyCluster(policy(ingress("Accept") + ", " + egress("Accept")), mode=Enforcement.AUTO)

        assert (cluster.ingress().enforced, cluster.ingress().can_refuse) == (False, False)
        assert cluster.ingress_allowed(*ALL_PEERS) == [True] * 5

    def test_never_switches_the_tiers_off(self) -> None:
        cluster = PolicyCluster(policy(ingress("Deny")), mode=Enforcement.NEVER)

        assert cluster.ingress_allowed("shop/web") == [True]

    def test_the_lower_priority_comes_first_then_the_name_then_the_place(self) -> None:
        deny, accept = (f"{{action: {action}, {FROM_WEB}}}" for action in ("Deny", "Accept"))
        first = PolicyCluster(
            policy(f"ingress: [{deny}]", priority=5), policy(f"ingress: [{accept}]", priority=4, name="b")
        )
        by_name = PolicyCluster(policy(f"ingress: [{deny}]", name="b"), policy(f"ingress: [{accept}]", name="a"))
        by_place = PolicyCluster(policy(f"ingress: [{accept}, {deny}]"))

        for cluster in (first, by_name, by_place):
            assert cluster.ingress_allowed("shop/web") == [True]

    def test_admin_accept_lifts_http_rules(self) -> None:
        http = (
            f"{CILIUM}{{endpointSelector: {DB}, ingress: [{{fromEndpoints: [{WEB}], toPorts: [{{ports: [{{port: '80', "
            "protocol: TCP}], rules: {http: [{path: /a}]}}]}]}"
        )
        restricted, accepted = PolicyCluster(http), PolicyCluster(http, policy(ingress("Accept")))

        assert restricted.lookup(restricted.ingress(), "shop/web").l7
        assert not accepted.lookup(accepted.ingress(), "shop/web").l7


class TestSubjectsAndPeers:
    @pytest.mark.parametrize(
        ("subject", "denied"),
        [
            (EVERYWHERE, ["shop/db", "far/web"]),
            ("{namespaces: {matchLabels: {team: red}}}", ["far/web"]),
            ("{namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}", ["shop/db"]),
            (DB_PODS, ["shop/db"]),
            ("{pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: db}}}}", []),
        ],
    )
    def test_a_subject_is_pods_of_namespaces(self, subject: str, denied: list[str]) -> None:
        cluster = PolicyCluster(policy(ingress("Deny"), subject=subject))

        assert [one for one in ("shop/db", "far/web") if not cluster.ingress_allowed("shop/web", of=one)[0]] == denied
        assert [map_.can_refuse for map_ in cluster.host()] == [False, False]

    @pytest.mark.parametrize(
        ("peer", "denied"),
        [
            ("{namespaces: {}}", ["shop/web", "far/web"]),
            ("{namespaces: {matchLabels: {team: red}}}", ["far/web"]),
            ("{namespaces: {matchExpressions: [{key: team, operator: DoesNotExist}]}}", ["shop/web"]),
            ("{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}", ["shop/web", "far/web"]),
            ("{pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {}}}", ["far/web"]),
            ("{nodes: {}}", ["reserved:host", "reserved:remote-node"]),
            ("{networks: [10.0.0.0/16]}", ["shop/web"]),
            ("{networks: ['0.0.0.0/0', '::/0']}", ["shop/web", "far/web", "198.51.100.7"]),
            ("{networks: [198.51.100.0/24, 10.1.0.1/32]}", ["far/web", "198.51.100.7"]),
        ],
    )
    def test_a_peer_is_pods_nodes_or_addresses(self, peer: str, denied: list[str]) -> None:
        cluster = PolicyCluster(policy(egress("Deny", f"to: [{peer}]")))

        assert [one for one in ALL_PEERS if not cluster.egress_allowed(one)[0]] == denied
        if "net" not in peer and "nodes" not in peer:
            mirrored = PolicyCluster(policy(ingress("Deny", f"from: [{peer}]")))
            assert [one for one in ALL_PEERS if not mirrored.ingress_allowed(one)[0]] == denied

    def test_pods_before_networks_are_spared(self) -> None:
        rules = "egress: [{action: Pass, to: [{namespaces: {}}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}]"
        cluster = PolicyCluster(policy(rules))

        assert cluster.egress_allowed("shop/web", "198.51.100.7") == [True, False]


def ports(protocols: str) -> str:
    return ingress("Deny", f"{FROM_WEB}, protocols: [{protocols}]")


class TestProtocols:
    @pytest.mark.parametrize(
        ("protocols", "denied"),
        [
            ("{tcp: {destinationPort: {number: 80}}}", ["80/TCP"]),
            ("{udp: {destinationPort: {number: 80}}}", ["80/UDP"]),
            ("{sctp: {destinationPort: {range: {start: 79, end: 81}}}}", ["80/SCTP", "81/SCTP"]),
            ("{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}", ["80/TCP", "81/TCP", "5432/TCP"]),
            ("{destinationNamedPort: sql}", ["5432/TCP"]),
            ("{destinationNamedPort: stat}", ["53/UDP"]),
            ("{destinationNamedPort: nobody}, {udp: {destinationPort: {number: 53}}}", ["53/UDP"]),
        ],
    )
    def test_protocols_are_the_only_ones_denied(self, protocols: str, denied: list[str]) -> None:
        cluster = PolicyCluster(policy(ports(protocols)))
        asked = ("80/TCP", "81/TCP", "5432/TCP", "80/UDP", "53/UDP", "80/SCTP", "81/SCTP", "8/ICMP")

        assert [one for one in asked if not cluster.ingress_allowed("shop/web", port=one)[0]] == denied

    def test_without_protocols_all_traffic_is_denied(self) -> None:
        cluster = PolicyCluster(policy(ingress("Deny")))

        for port in ("80/TCP", "1/UDP", "9/SCTP", "8/ICMP", "128/ICMPv6"):
            assert cluster.ingress_allowed("shop/web", port=port) == [False]

    def test_a_named_port_at_egress_is_that_of_each_destination(self) -> None:
        rule = "to: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]"
        cluster = PolicyCluster(policy(egress("Deny", rule)))

        assert [cluster.egress_allowed(*ALL_PEERS[:2], port=port) for port in ("80/TCP", "8080/TCP")] == [
            [False, True],
            [True, False],
        ]
        assert cluster.egress_allowed("shop/twin1", "shop/twin2", port="82/TCP") == [True, False]


class TestDomainNames:
    RULES = (
        "egress: [{action: Accept, to: [{domainNames: ['*.Example.com.', db.example.org]}]}, "
        "{action: Deny, to: [{networks: [0.0.0.0/0]}]}]"
    )

    def test_a_star_stands_for_one_or_more_labels(self) -> None:
        cluster = PolicyCluster(policy(self.RULES))

        assert sorted(cluster.model.policy.local_identities.by_name) == ["**.example.com", "db.example.org"]

    def test_the_addresses_of_a_name_are_accepted(self) -> None:
        cluster = PolicyCluster(policy(self.RULES))
        name = cluster.model.policy.local_identities.by_name["db.example.org"]
        identity, more = cluster._peer("198.51.100.7")

        assert not cluster.egress().lookup(identity, 6, 443, more).allowed
        assert cluster.egress().lookup(identity, 6, 443, (*more, name)).allowed

    @pytest.mark.parametrize(("port", "reads"), [("53/UDP", True), ("53/TCP", True), ("54/UDP", False)])
    def test_the_answers_of_name_servers_are_read(self, port: str, reads: bool) -> None:
        cluster = PolicyCluster(policy(self.RULES.replace("Deny", "Pass")))

        found = cluster.lookup(cluster.egress(), "198.51.100.7", port)
        assert (found.allowed, found.rules, found.l7) == (True, (), ())
        assert bool(found.dns and found.dns.find("any.name")) is reads

    def test_a_denied_query_has_no_answer_to_read(self) -> None:
        cluster = PolicyCluster(policy(self.RULES))

        assert cluster.lookup(cluster.egress(), "198.51.100.7", "53/UDP").dns is None

    def test_an_admin_accept_of_dns_still_teaches_the_names_of_other_policies(self) -> None:
        dns = (
            f"{CILIUM}{{endpointSelector: {DB}, egress: [{{toEntities: [all], toPorts: [{{ports: [{{port: '53'}}], "
            f"rules: {{dns: [{{matchPattern: '*.example.com'}}]}}}}]}}]}}"
        )
        accept = egress("Accept", "to: [{networks: [0.0.0.0/0]}], protocols: [{udp: {destinationPort: {number: 53}}}]")
        cluster = PolicyCluster(policy(accept), dns)

        found = cluster.lookup(cluster.egress(), "198.51.100.7", "53/UDP")
        assert (found.allowed, found.l7, [rule.name for rule in found.rules]) == (True, (), ["a"])
        assert found.dns
        assert [rule.name for rule in found.dns.find("other.org")] == ["p"]
