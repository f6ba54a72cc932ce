"""Details of an edge: its flows, newest first, the rules that decided, and no unprintable text."""

import json
from typing import Any

from nfq_enforcer.observe.service_map import EdgeKey, Seen, read_flow
from nfq_enforcer.ui.details import SHOWN, clean, edge_details

RULE = {"kind": "CiliumNetworkPolicy", "namespace": "default", "name": "p", "rule": "ingress[0]"}
KEY = EdgeKey("shop/web", "shop/db", "DROPPED")


def event(second: int = 0, destination: str = "db", **fields: Any) -> tuple[Seen, bytes]:
    flow = {
        "time": f"2026-11-28T10:00:{second:02}.000000Z",
        "verdict": "DROPPED",
        "drop_reason_desc": "POLICY_DENIED",
        "IP": {"source": "192.0.2.1", "destination": "192.0.2.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 80}},
        "source": {"identity": 300, "labels": [], "namespace": "shop", "pod_name": "web"},
        "destination": {"identity": 301, "labels": [], "namespace": "shop", "pod_name": destination},
        "node_name": "n1",
        "traffic_direction": "INGRESS",
        "is_reply": False,
        "enforced_by": [RULE],
        "Summary": "TCP Flags: SYN",
        **fields,
    }
    seen = read_flow(flow)
    assert seen is not None
    return seen, json.dumps(flow).encode()


def test_the_flows_of_an_edge_have_rules_and_reasons_with_their_numbers() -> None:
    details = edge_details(KEY, [event(2), event(1, "other"), event(1), event(0, enforced_by=[])], 1795860010.0)

    assert [flow["time"][17:19] for flow in details["flows"]] == ["02", "01", "00"]
    assert details["flows"][0] | {"time": ""} == {
        "time": "",
        "uuid": "",
        "node": "n1",
        "direction": "INGRESS",
        "source": "192.0.2.1",
        "destination": "192.0.2.2",
        "is_reply": False,
        "port": "80/TCP",
        "reason": "POLICY_DENIED",
        "summary": "TCP Flags: SYN",
    }
    assert details["rules"] == [{"effect": "no rule allows it; closed by", "flows": 2, **RULE}]
    assert details["reasons"] == [{"reason": "POLICY_DENIED", "description": "no rule allows it", "flows": 3}]
    assert details["edge"]["flows"] == details["total"] == 3


def test_a_reason_of_a_later_version_has_no_description() -> None:
    details = edge_details(KEY, [event(drop_reason_desc="NEW_REASON")], 0.0)

    assert details["reasons"] == [{"reason": "NEW_REASON", "description": "", "flows": 1}]


def test_an_edge_without_flows_in_the_log_is_no_error() -> None:
    assert edge_details(KEY, [event(0, "other")], 0.0) | {"examined": 0} == {
        "edge": None,
        "rules": [],
        "reasons": [],
        "flows": [],
        "total": 0,
        "examined": 0,
    }


def test_the_newest_flows_are_shown_and_all_are_counted() -> None:
    details = edge_details(KEY, [event()] * (SHOWN + 5), 0.0)

    assert (len(details["flows"]), details["total"]) == (SHOWN, SHOWN + 5)


def test_clean_data_has_no_character_that_is_not_printable() -> None:
    data = {"a\x1b": ["\u202e<img src=x onerror=alert(1)>", ("\u200b", 1.5, None, True)], "n": {"x": "\r\n"}}

    assert clean(data) == {
        "a\\x1b": ["\\u202e<img src=x onerror=alert(1)>", ["\\u200b", 1.5, None, True]],
        "n": {"x": "\\r\\n"},
    }
