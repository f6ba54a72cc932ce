"""Service map: nodes and edges of flows, rates, bounds, and the differences that readers take."""

from typing import Any

import pytest

from nfq_enforcer.observe.service_map import (
    MAX_PORTS,
    RATE_WINDOW,
    EdgeKey,
    MapDelta,
    MapNode,
    Seen,
    ServiceMap,
    map_node,
    map_of,
    read_flow,
)

WEB = {
    "identity": 300,
    "labels": ["k8s:io.kubernetes.pod.namespace=shop", "k8s:role=web", "container:app=x"],
    "namespace": "shop",
    "pod_name": "web-1",
}
DB = {"identity": 301, "labels": ["k8s:role=db"], "namespace": "shop", "pod_name": "db-1"}
WORLD = {"identity": 2, "labels": ["reserved:world"]}
NOW = 1_000_000.0


def flow(source: dict[str, Any] = WEB, destination: dict[str, Any] = DB, **fields: Any) -> dict[str, Any]:
    return {
        "time": "2026-11-28T10:00:00.250000Z",
        "verdict": "FORWARDED",
        "l4": {"TCP": {"source_port": 40000, "destination_port": 5432}},
        "source": source,
        "destination": destination,
        "is_reply": False,
        **fields,
    }


def seen(
    source: str = "web-1", destination: str = "db-1", verdict: str = "FORWARDED", port: str = "80/TCP", at: float = NOW
) -> Seen:
    opener, other = (MapNode(f"shop/{name}", "endpoint", "shop", name, "") for name in (source, destination))
    return Seen(EdgeKey(opener.key, other.key, verdict), opener, other, port, "", at)


def edges(delta: MapDelta) -> set[EdgeKey]:
    return {edge.key for edge in delta.edges}


def test_an_endpoint_is_a_node_with_its_own_labels() -> None:
    assert map_node(WEB) == MapNode("shop/web-1", "endpoint", "shop", "web-1", "role=web container:app=x")


@pytest.mark.parametrize(
    ("labels", "key", "kind"),
    [
        (["reserved:world"], "reserved:world", "reserved"),
        (["cidr:192.0.2.0/24", "reserved:world"], "cidr:cidr:192.0.2.0/24", "cidr"),
        (["fqdn:example.com", "reserved:world"], "cidr:fqdn:example.com", "cidr"),
        (["k8s:role=db"], "identity:role=db", "identity"),
        (["k8s:io.kubernetes.pod.namespace=a"], "identity:k8s:io.kubernetes.pod.namespace=a", "identity"),
        ([], "reserved:unknown", "reserved"),
        (None, "reserved:unknown", "reserved"),
    ],
)
def test_a_peer_that_is_no_endpoint_is_a_node_by_its_labels(labels: list[str], key: str, kind: str) -> None:
    node = map_node({"identity": 0, "labels": labels})

    assert (node.key, node.kind) == (key, kind)


def test_a_flow_is_read_with_the_port_of_its_destination() -> None:
    found = read_flow(flow())

    assert found is not None
    assert found.edge == EdgeKey("shop/web-1", "shop/db-1", "FORWARDED")
    assert (found.port, found.time) == ("5432/TCP", 1795860000.25)


def test_a_reply_belongs_to_the_edge_of_its_opener() -> None:
    reply = flow(DB, WEB, is_reply=True, l4={"TCP": {"source_port": 5432, "destination_port": 40000}})

    assert (read_flow(reply) or pytest.fail("not read"))[:4] == (read_flow(flow()) or pytest.fail("not read"))[:4]


@pytest.mark.parametrize(
    ("l4", "port"),
    [
        ({"UDP": {"source_port": 1, "destination_port": 53}}, "53/UDP"),
        ({"ICMPv4": {"type": 8, "code": 0}}, "ICMPv4 8"),
        ({"protocol": 47}, "protocol 47"),
        ({}, "?"),
    ],
)
def test_every_protocol_has_its_port(l4: dict[str, Any], port: str) -> None:
    assert (read_flow(flow(l4=l4)) or pytest.fail("not read")).port == port


@pytest.mark.parametrize("event", [{"lost_events": {}}, flow(l7={"type": "RESPONSE"})])
def test_an_event_that_opens_nothing_is_left_out(event: dict[str, Any]) -> None:
    assert read_flow(event) is None


def test_names_from_the_network_are_printable_and_bounded() -> None:
    node = map_node({"labels": [f"k8s:role=\x1b[2J\u202e{'a' * 1000}"], "namespace": "a\nb", "pod_name": "p\u200b"})

    assert node.key == "a\\nb/p\\u200b"
    assert node.group.isprintable()
    assert len(node.group) < 400


def test_flows_of_both_ends_and_verdict_are_one_edge() -> None:
    made = map_of([seen(at=NOW - 10), seen(port="443/TCP"), seen(verdict="DROPPED")], NOW)

    found = {edge.key.verdict: edge.to_json() for edge in made.since(0).edges}
    assert found["FORWARDED"]["flows"] == 2
    assert found["FORWARDED"]["ports"] == ["80/TCP", "443/TCP"]
    assert (found["FORWARDED"]["first"], found["FORWARDED"]["last"]) == (NOW - 10, NOW)
    assert found["DROPPED"]["flows"] == 1


def test_reasons_of_drops_are_counted() -> None:
    drop = seen(verdict="DROPPED")._replace(reason="POLICY_DENIED")

    assert map_of([drop], NOW).since(0).edges[0].to_json()["reasons"] == ["POLICY_DENIED"]


def test_the_rate_is_the_mean_of_the_last_minute() -> None:
    made = map_of([seen(at=NOW - 1)] * 30, NOW)

    assert made.since(0).edges[0].rate == 30 / RATE_WINDOW
    before = made.change
    made.tick(NOW + 1)
    assert made.change == before  # a rate that stays is no change
    made.tick(NOW + RATE_WINDOW + 10)
    assert edges(made.since(before)) == {seen().edge}
    assert made.since(0).edges[0].rate == 0.0


def test_a_late_flow_counts_as_of_now() -> None:
    made = map_of([seen(), seen(at=NOW - 3600)], NOW)

    assert made.since(0).edges[0].rate == 2 / RATE_WINDOW


def test_ports_beyond_the_bound_are_counted_as_one() -> None:
    made = map_of([seen(port=f"{number}/TCP") for number in range(MAX_PORTS + 7)], NOW)

    (edge,) = made.since(0).edges
    assert (len(edge.ports), edge.other_ports, edge.flows) == (MAX_PORTS, 7, MAX_PORTS + 7)


def test_a_reader_gets_the_whole_map_first_and_changes_after_it() -> None:
    made = map_of([seen(), seen("web-2")], NOW)
    whole = made.since(0)
    assert whole.whole
    assert {node.name for node in whole.nodes} == {"web-1", "web-2", "db-1"}
    assert made.since(whole.change).empty

    made.add(seen("web-2"))
    made.add(seen("web-3"))
    delta = made.since(whole.change)

    assert not delta.whole
    assert [node.name for node in delta.nodes] == ["web-3"]
    assert edges(delta) == {seen("web-2").edge, seen("web-3").edge}


def test_other_labels_of_a_node_are_a_change() -> None:
    made = map_of([seen()], NOW)
    change = made.change

    made.add(seen()._replace(source=MapNode("shop/web-1", "endpoint", "shop", "web-1", "role=new")))

    assert [node.group for node in made.since(change).nodes] == ["role=new"]


def test_the_edge_that_was_seen_least_recently_is_forgotten_and_counted() -> None:
    made = ServiceMap(max_edges=2)
    for name in ("web-1", "web-2", "web-1"):
        made.add(seen(name))
    change = made.change

    made.add(seen("web-3"))

    delta = made.since(change)
    assert delta.gone_edges == [seen("web-2").edge]
    assert delta.gone_nodes == ["shop/web-2"]
    assert (made.forgotten_edges, made.forgotten_nodes, len(made)) == (1, 1, 2)
    assert delta.to_json()["gone_edges"] == [["shop/web-2", "shop/db-1", "FORWARDED"]]


def test_a_forgotten_node_takes_its_edges_with_it() -> None:
    made = ServiceMap(max_nodes=3)
    made.add(seen("a", "b"))
    made.add(seen("b", "a"))
    made.add(seen("c", "d"))

    assert {node.name for node in made.since(0).nodes} == {"c", "d"}
    assert edges(made.since(0)) == {seen("c", "d").edge}


def test_a_node_of_one_edge_is_kept_by_the_other() -> None:
    made = ServiceMap(max_edges=1)
    made.add(seen("a", "a"))
    made.add(seen("a", "b"))

    assert {node.name for node in made.since(0).nodes} == {"a", "b"}


def test_a_reader_that_is_far_behind_gets_the_whole_map() -> None:
    made = ServiceMap(max_edges=1)
    made.add(seen())
    change = made.change

    for number in range(3_000):
        made.add(seen(f"web-{number}"))

    assert made.since(change).whole
    assert made.since(made.change + 1).whole  # of an earlier map
    assert not made.since(made.change - 10).whole
