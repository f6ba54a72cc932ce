"""Text forms of flows beside ``compact``, whose cases are in ``test_flow``."""

import pytest

from nfq_enforcer.core.events import FlowEnd, HttpMessage
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.verdict import FlowVerdict
from nfq_enforcer.observe.flow import render, render_lost
from nfq_enforcer.observe.text import COLUMNS, TextForm, beside, compact, flow_type
from tests.support.flows import dropped, logged, rule

pytestmark = pytest.mark.usefixtures("utc")
NUMERIC = TextForm(numeric=True)
END = FlowEnd(EndCause.CLOSED, 1.5, Traffic(12, 3400), Traffic(10, 100))
GET = HttpMessage(False, "GET", "http://a/", "HTTP/1.1")


def test_a_flow_as_fields_has_a_line_for_each() -> None:
    assert TextForm().fields(render(dropped(enforced_by=(rule("closed"),)))) == [
        "  TIMESTAMP: Jan 01 00:00:00.125",
        "       NODE: n1",
        "     SOURCE: shop/front-1:40000 (ID:300)",
        "DESTINATION: default/back-1:80 (ID:400)",
        "       TYPE: drop INGRESS",
        "    VERDICT: DROPPED POLICY_DENIED",
        "    SUMMARY: TCP Flags: SYN",
        "             no rule allows it; enforced by shop/closed",
    ]


def test_a_row_has_a_value_for_each_column() -> None:
    row = TextForm().row(render(logged(l7=GET)))

    assert dict(zip(COLUMNS, row, strict=True))["TYPE"] == "http-request INGRESS"
    assert len(TextForm().row(render_lost(3, "n1"))) == len(COLUMNS)
    assert TextForm().row(render_lost(3, "n1"))[-1] == "EVENTS LOST: 3 came faster than they were read"


def test_numbers_take_the_place_of_names_if_asked_for() -> None:
    assert "10.1.0.10:40000 (ID:300) -> 10.2.0.10:80 (ID:400)" in NUMERIC.compact(render(logged()))


def test_the_type_is_the_one_that_the_filter_has() -> None:
    flows = logged(), dropped(), logged(l7=GET), logged(verdict=FlowVerdict.TRACED, end=END)

    assert [flow_type(render(flow)) for flow in flows] == ["policy-verdict", "drop", "l7", "flow-end"]


def test_a_loss_is_a_line_in_every_form() -> None:
    lost = render_lost(3, "n1")

    assert TextForm().fields(lost) == [compact(lost)] == ["EVENTS LOST: 3 came faster than they were read"]


def test_the_state_of_nodes_is_a_line() -> None:
    status = {"state_change": "NODE_UNAVAILABLE", "node_names": ["n2", "n3"], "message": "no answer"}

    assert beside({"node_status": status}) == "n2, n3: NODE_UNAVAILABLE: no answer"


def test_a_flow_with_few_fields_is_a_line_too() -> None:
    assert compact({"verdict": "FORWARDED"}) == "N/A []: ? (unknown) -> ? (unknown) FORWARDED ()"
    foreign = {"verdict": "DROPPED", "drop_reason_desc": "TTL_EXCEEDED", "is_reply": True}
    assert compact(foreign) == "N/A []: ? (unknown) <- ? (unknown) DROPPED TTL_EXCEEDED ()"
