"""Rules with nodeSelector: the nodes themselves as subjects of policy, on real traffic.

n1 and n2 are plain hosts; n3 is an endpoint with a document at its address, which these rules do not concern.
"""

from nfq_enforcer.agent import client
from nfq_enforcer.lab.lab import Lab
from tests.support.labs import (
    DATAPATHS,
    FAMILIES,
    PATIENT,
    Policies,
    dropped,
    of_nodes,
    outcomes,
    passes,
    run_in,
)

DATAPATH_SETTINGS = DATAPATHS
PLAIN, OTHERS = ("n1", "n2"), ("front1", "back1", "back2", "n3", "world")
WEB = {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}


class TestIngress:
    async def test_without_such_a_rule_nothing_is_closed(self, guarded: Lab) -> None:
        expected = passes(OTHERS, PLAIN) | passes(["n1"], ["n2"])
        assert await outcomes(guarded, expected) == expected

    async def test_only_peers_that_a_rule_names_reach_a_node(self, guarded: Lab, policies: Policies) -> None:
        frontends = {"fromEndpoints": [{"matchLabels": {"role": "frontend"}}]}
        await policies.apply("file", of_nodes("web", ingress=[{**frontends, **WEB}]))

        expected = (
            passes(["front1"], PLAIN, ["80/TCP"])
            | dropped(["front1"], PLAIN, ["443/TCP", "53/UDP", "ping"])
            | dropped(["back1", "back2", "n3", "world"], PLAIN, ["80/TCP", "ping"])
            | dropped(["n1"], ["n2"], ["80/TCP"])
        )
        assert await outcomes(guarded, expected) == expected

    async def test_endpoints_and_their_own_openings_stay_as_they_are(self, guarded: Lab, policies: Policies) -> None:
        """Only the ports of the node itself are closed: it opens any connection, and replies pass."""
        await policies.apply("file", of_nodes("closed", ingress=[{}]))

        expected = (
            passes(PLAIN, ["back1", "back2", "n3", "world"])
            | passes(["front1"], ["back1", "back2", "n3", "world"])
            | passes(["world"], ["n3", "back1"])
            | dropped(["front1", "world", "n3"], PLAIN)
        )
        assert await outcomes(guarded, expected) == expected

    async def test_other_nodes_are_known_by_their_addresses(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("file", of_nodes("nodes", ingress=[{"fromEntities": ["remote-node"]}]))

        expected = passes(["n1"], ["n2"]) | passes(["n2"], ["n1"]) | dropped(["front1", "n3", "world"], PLAIN)
        assert await outcomes(guarded, expected) == expected

    async def test_a_node_reaches_itself(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("file", of_nodes("closed", ingress=[{}], egress=[{}]))

        for family in FAMILIES:
            result = await guarded.host("n1").connect(guarded.address("n1", family), 80, PATIENT)
            assert result.status == "ok"

    async def test_deny_rules_close_single_ports(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply(
            "file",
            of_nodes("no-dns", ingressDeny=[{"toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}]}]}]),
            of_nodes("all", ingress=[{"fromEntities": ["all"]}]),
        )

        expected = passes(["front1", "world"], PLAIN, ["80/TCP", "ping"]) | dropped(
            ["front1", "world"], PLAIN, ["53/UDP"]
        )
        assert await outcomes(guarded, expected) == expected

    async def test_an_open_connection_is_cut_once_no_rule_allows_it(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("file", of_nodes("all", ingress=[{"fromEntities": ["all"]}]))
        held = await guarded.host("front1").hold(guarded.address("n2"), 80, PATIENT)
        assert (await held.talk(PATIENT)).status == "ok"

        await policies.apply("file", of_nodes("closed", ingress=[{}]))
        assert (await held.talk()).status != "ok"
        await held.close()


class TestEgress:
    async def test_a_node_opens_only_connections_that_a_rule_names(self, guarded: Lab, policies: Policies) -> None:
        backends = {"toEndpoints": [{"matchLabels": {"role": "backend"}}]}
        await policies.apply("file", of_nodes("web", egress=[{**backends, **WEB}]))

        expected = (
            passes(PLAIN, ["back1", "back2"], ["80/TCP"])
            | dropped(PLAIN, ["back1", "back2"], ["443/TCP", "ping"])
            | dropped(PLAIN, ["front1", "n3", "world"], ["80/TCP"])
            | passes(["front1", "world"], PLAIN)
        )
        assert await outcomes(guarded, expected) == expected
        # The agents have reached their store all the time.
        assert all(node["live"] for node in client.call(guarded.nodes["n1"].socket, "nodes"))


class TestSelection:
    async def test_labels_of_a_node_select_it(self, guarded: Lab, policies: Policies) -> None:
        """No node of this lab has the label."""
        await policies.apply("file", of_nodes("gateways", {"matchLabels": {"role": "gateway"}}, ingress=[{}]))

        expected = passes(["front1", "world"], PLAIN)
        assert await outcomes(guarded, expected) == expected

    async def test_drops_name_the_host_and_the_rule(self, guarded: Lab, policies: Policies) -> None:
        await policies.apply("file", of_nodes("closed", ingress=[{}]))
        expected = dropped(["front1"], ["n2"], ["80/TCP"])
        assert await outcomes(guarded, expected) == expected

        flows = guarded.nodes["n2"].observe(allow={"verdict": ["DROPPED"]}, last=50)
        ours = [flow for flow in flows if flow["IP"]["destination"] == str(guarded.address("n2"))]
        assert ours[-1]["destination"]["labels"] == ["reserved:host"]
        assert ours[-1]["source"]["pod_name"] == "front1"
        assert ours[-1]["drop_reason_desc"] == "POLICY_DENIED"

    async def test_a_host_without_rules_costs_nothing(self, guarded: Lab, policies: Policies) -> None:
        """Its packets are queued only while a rule selects it."""
        members = run_in(guarded, "n1", "nft", "list", "set", "inet", "nfq_enforcer", "local4")
        assert str(guarded.address("n1")) not in members
        await policies.apply("file", of_nodes("closed", ingress=[{}]))
        members = run_in(guarded, "n1", "nft", "list", "set", "inet", "nfq_enforcer", "local4")
        assert str(guarded.address("n1")) in members
