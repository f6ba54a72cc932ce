"""Flows of a worker for ``conntrack list``: the question of the agent, and the answer in rows of fixed size.

The answer is bounded, because packets wait meanwhile: a worker searches a limited number of its flows,
unconfirmed ones first, and adds the number of all its flows.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from nfq_enforcer.core.tables.conntrack import Conntrack, Flow, FlowState, Offload

SEARCHED = 4000  # flows of one worker: a few milliseconds
_ROW = struct.Struct("!B37sBBIIqI")  # length and bytes of the key, state, offload, identities, revision, expiry


class ListFlows(NamedTuple):
    """Agent to worker: report flows, of these opener's and target's addresses only (None: all)."""

    request: int
    sources: frozenset[bytes] | None = None
    targets: frozenset[bytes] | None = None


class FlushFlows(NamedTuple):
    """Agent to worker: forget the verdicts, identities and origins of all flows."""


class FlowList(NamedTuple):
    """Worker to agent: the answer to a ListFlows of this number."""

    request: int
    total: int  # flows that the worker has
    packed: bytes  # see ``unpack``


class FlowRow(NamedTuple):
    """Flow row: one flow of a worker."""

    key: bytes  # of its opener's packets
    state: FlowState
    offload: Offload
    source: int  # identity of the opener; 0: not evaluated yet
    destination: int
    revision: int  # of the policy that allowed it; -1: not evaluated yet
    expires_in: int  # s


def answer(question: ListFlows, flows: Conntrack, now: float) -> FlowList:
    """Return the answer of a worker."""
    searched = (flow for flow in islice(flows, SEARCHED) if flow.expires > now and _fits(flow, question))
    return FlowList(question.request, len(flows), b"".join(_pack(flow, now) for flow in searched))


def _fits(flow: Flow, question: ListFlows) -> bool:
    size = (len(flow.key) - 5) // 2
    source, target = flow.key[1 : 1 + size], flow.key[1 + size : -4]
    return (question.sources is None or source in question.sources) and (
        question.targets is None or target in question.targets
    )


def _pack(flow: Flow, now: float) -> bytes:
    return _ROW.pack(
        *(len(flow.key), flow.key, flow.state, flow.offload),
        *(flow.source, flow.destination, flow.revision, int(flow.expires - now)),
    )


def unpack(packed: bytes) -> Iterator[FlowRow]:
    """Yield the rows of an answer; raise ValueError or struct.error for bytes that are none."""
    for size, key, state, offload, *rest in _ROW.iter_unpack(packed):
        if size not in {13, 37}:
            raise ValueError(f"a flow key of {size} bytes")
        yield FlowRow(key[:size], FlowState(state), Offload(offload), *rest)


def forget_some(flows: Conntrack, pending: list[Flow], now: float, portion: int = 500) -> None:
    """Forget a portion of the pending flows, the last ones first."""
    for flow in _take(pending, portion):
        if flows.lookup(flow.key, now) is flow:
            flows.forget(flow, now)


def _take(pending: list[Flow], portion: int) -> Iterable[Flow]:
    taken = pending[-portion:]
    del pending[-portion:]
    return taken
