"""Flows of several nodes in one stream: the order of those that come late, and nothing but flows from other nodes."""

from typing import Any

import pytest

from nfq_enforcer.observe.flow import render
from nfq_enforcer.observe.hubble import to_response
from nfq_enforcer.observe.nodes import UNAVAILABLE, ReorderWindow, checked, node_status
from nfq_enforcer.observe.text import compact
from tests.support.flows import logged


def flow(second: int, number: int = 0) -> dict[str, Any]:
    return {"time": f"2026-01-01T00:00:{second:02}.000000Z", "number": number}


def seconds(flows: Any) -> list[int]:
    return [int(one["time"][17:19]) for one in flows]


def test_a_flow_waits_for_the_window_and_lets_earlier_ones_pass() -> None:
    window = ReorderWindow(0.2)
    window.add(flow(5), 10.0)
    window.add(flow(3), 10.15)
    window.add(flow(7), 10.15)

    assert seconds(window.due(10.19)) == []
    assert seconds(window.due(10.2)) == [3, 5]
    assert window.wait(10.2) == pytest.approx(0.15)
    assert seconds(window.due(10.36)) == [7]
    assert window.wait(10.36) is None


def test_a_flow_that_comes_too_late_is_shown_all_the_same() -> None:
    window = ReorderWindow(0.2)
    window.add(flow(5), 10.0)
    assert seconds(window.due(10.2)) == [5]
    window.add(flow(4), 10.3)

    assert seconds(window.due(10.5)) == [4]


def test_no_stream_of_later_flows_holds_one_for_longer() -> None:
    window = ReorderWindow(0.2)
    shown = []
    for step in range(40):
        window.add(flow(59 - step), step * 0.01)  # each is earlier than all before
        shown += seconds(window.due(step * 0.01))

    assert shown[:1] == [39]  # with the first flow, due at 0.2 s, all those before it
    assert 59 in shown


def test_flows_of_one_time_stay_in_their_order() -> None:
    window = ReorderWindow(0.2)
    for number in range(3):
        window.add(flow(1, number), 0.0)

    assert [one["number"] for one in window.due(1.0)] == [0, 1, 2]


def test_only_so_many_are_held() -> None:
    window = ReorderWindow(0.2, limit=3)
    for second in range(5):
        window.add(flow(second), 0.0)

    assert seconds(window.due(0.0)) == [0, 1]


def test_a_flow_of_another_node_has_the_name_of_that_node() -> None:
    sent = render(logged(node="n9"))

    assert checked(sent, "n2") == sent | {"node_name": "n2"}


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": 5},
        {"verdict": "NEW_VERDICT"},
        {"time": "yesterday"},
        {"time": None},
        {"source": 5},
        {"l4": []},
        {"egress_allowed_by": [5]},
        {"egress_allowed_by": {}},
        {"IP": {"source": "x"}},
    ],
    ids=str,
)
def test_a_flow_of_unknown_content_counts_as_lost(changed: dict[str, Any]) -> None:
    item = checked(render(logged()) | changed, "n2")

    assert item is not None
    assert item == {"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": 1}, "node_name": "n2"}


@pytest.mark.parametrize("item", [None, 5, [], {}, {"node_status": {}}, {"notice": "x"}, {"lost_events": {}}], ids=str)
def test_a_node_sends_flows_and_losses_and_nothing_else(item: object) -> None:
    assert checked(item, "n2") is None


def test_a_missing_node_is_a_line_and_hubbles_message() -> None:
    status = node_status(UNAVAILABLE, "n2", "it is away")

    assert compact(status) == "n2: NODE_UNAVAILABLE: it is away"
    assert to_response(status) == status
