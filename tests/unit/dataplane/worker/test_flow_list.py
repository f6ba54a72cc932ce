"""Flows of a worker for ``conntrack``: a bounded list of rows, and a flush that keeps established connections open."""

import struct

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import (
    ORIGIN_UNKNOWN,
    REVISION_NONE,
    Conntrack,
    Flow,
    FlowState,
    KernelFlow,
    Offload,
)
from nfq_enforcer.core.tables.flow_ends import EndCause
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.dataplane.worker import flow_list
from nfq_enforcer.dataplane.worker.flow_list import FlowRow, ListFlows, answer, unpack
from nfq_enforcer.dataplane.worker.reports import decode_report, encode_report

NOW = 1000.0
WEB, DB = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def key(source: bytes, target: bytes, sport: int) -> bytes:
    return bytes((TCP,)) + source + target + struct.pack("!HH", sport, 80)


def table(*keys: bytes, state: FlowState = FlowState.ESTABLISHED) -> Conntrack:
    flows = Conntrack(100_000, NOW)
    for one in keys:
        flows.import_flow(KernelFlow(one, state, 100.0), NOW)
    for flow in flows:
        flow.revision, flow.source, flow.destination = 7, Identity(300), Identity(400)
    return flows


def test_a_flow_is_a_row() -> None:
    found = answer(ListFlows(3), table(key(WEB, DB, 5000)), NOW)

    assert (found.request, found.total) == (3, 1)
    assert list(unpack(found.packed)) == [
        FlowRow(key(WEB, DB, 5000), FlowState.ESTABLISHED, Offload.NONE, 300, 400, 7, 100)
    ]


@pytest.mark.parametrize(
    ("sources", "targets", "expected"),
    [(None, None, 2), ({WEB}, None, 1), (None, {WEB}, 1), ({WEB}, {WEB}, 0), ({DB}, {WEB}, 1)],
)
def test_addresses_select_flows(sources: set[bytes] | None, targets: set[bytes] | None, expected: int) -> None:
    flows = table(key(WEB, DB, 5000), key(DB, WEB, 5001))
    question = ListFlows(
        0, None if sources is None else frozenset(sources), None if targets is None else frozenset(targets)
    )

    assert len(list(unpack(answer(question, flows, NOW).packed))) == expected


def test_the_list_is_bounded_and_expired_flows_are_left_out() -> None:
    flows = table(*(key(WEB, DB, port) for port in range(1, flow_list.SEARCHED + 100)))
    found = answer(ListFlows(0), flows, NOW)

    assert (found.total, len(list(unpack(found.packed)))) == (flow_list.SEARCHED + 99, flow_list.SEARCHED)
    assert answer(ListFlows(0), flows, NOW + 200).packed == b""


@pytest.mark.parametrize("packed", [b"x", b"\xff" * 56, bytes(56)])
def test_bytes_that_are_no_rows_are_refused(packed: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        list(unpack(packed))


def test_an_established_flow_is_forgotten_but_stays_open_and_another_is_removed() -> None:
    flows = table(key(WEB, DB, 5000))
    flows.import_flow(KernelFlow(key(WEB, DB, 5001), FlowState.NEW, 60.0), NOW)
    pending = list(flows)

    while pending:
        flow_list.forget_some(flows, pending, NOW, portion=1)

    (kept,) = flows
    assert (kept.key, kept.state) == (key(WEB, DB, 5000), FlowState.ESTABLISHED)
    assert (kept.revision, kept.origin, kept.source) == (REVISION_NONE, ORIGIN_UNKNOWN, 0)
    assert kept.expires == NOW + 100


def test_a_flow_that_is_gone_or_opened_anew_meanwhile_is_left_alone() -> None:
    flows = table(key(WEB, DB, 5000))
    (before,) = flows
    pending: list[Flow] = [before]
    flows.remove(before, EndCause.EXPIRED, NOW)
    flows.import_flow(KernelFlow(key(WEB, DB, 5000), FlowState.NEW, 60.0), NOW)
    (after,) = flows

    flow_list.forget_some(flows, pending, NOW)

    assert list(flows) == [after]


def test_an_answer_is_a_report_to_the_agent() -> None:
    found = answer(ListFlows(3), table(key(WEB, DB, 5000)), NOW)

    assert decode_report(encode_report(found)) == found
