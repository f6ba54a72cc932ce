"""Service map: a flow with any values is read to printable text or refused; readers and bounds agree with the map."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.observe.service_map import EdgeKey, ServiceMap, map_node, read_flow
from nfq_enforcer.ui.feed import UNREADABLE
from tests.unit.observe.test_service_map import flow, seen

TEXTS = st.text() | st.sampled_from(["\x1b[2J", "\u202e", "<script>", "reserved:world", "cidr:10.0.0.0/8", "k8s:a=b"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=10,
)
FIELDS = ("time", "verdict", "drop_reason_desc", "l4", "l7", "source", "destination", "is_reply")
NAMES = st.sampled_from("abcdefgh")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_a_flow_with_any_values_is_read_or_refused(changed: dict[str, Any]) -> None:
    try:
        found = read_flow(flow(**changed))
    except UNREADABLE:
        return
    assert found is None or all(map(str.isprintable, (*found.edge, found.port, found.reason)))


@given(st.lists(TEXTS), TEXTS, TEXTS)
def test_every_name_becomes_printable(labels: list[str], namespace: str, name: str) -> None:
    for end in ({"labels": labels}, {"labels": labels, "namespace": namespace, "pod_name": name}):
        assert all(map(str.isprintable, map_node(end)))


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1), st.integers(2, 6), st.integers(1, 8))
def test_the_changes_that_a_reader_takes_make_the_same_map(
    flows: list[tuple[str, str]], nodes: int, edges: int
) -> None:
    made = ServiceMap(nodes, edges)
    mirror_nodes: set[str] = set()
    mirror_edges: set[EdgeKey] = set()
    change = 0
    for number, (source, destination) in enumerate(flows):
        made.add(seen(source, destination))
        if number % 3 == 0 or number == len(flows) - 1:
            delta = made.since(change)
            if delta.whole:
                mirror_nodes, mirror_edges = set(), set()
            mirror_edges = mirror_edges - set(delta.gone_edges) | {edge.key for edge in delta.edges}
            mirror_nodes = mirror_nodes - set(delta.gone_nodes) | {node.key for node in delta.nodes}
            change = delta.change

    whole = made.since(0)
    assert mirror_edges == {edge.key for edge in whole.edges}
    assert mirror_nodes == {node.key for node in whole.nodes}
    assert {end for edge in mirror_edges for end in edge[:2]} == mirror_nodes
    assert len(mirror_edges) <= edges
    assert len(mirror_nodes) <= nodes
