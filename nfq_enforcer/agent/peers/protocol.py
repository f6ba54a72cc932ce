"""Flows between agents: batches of items, as the asked agent yields them, whatever carries them.

First the kept flows, in the order of their times, then ``KEPT_END``, then (if the request follows) new flows. An agent
that has no new flows sends an empty batch in time, so that each side detects the silence of the other.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

from nfq_enforcer.agent.params import Params
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.flow import HubbleFlow
from nfq_enforcer.observe.status import NodeReport

Batch = list[HubbleFlow]
Serve = Callable[[Params], AsyncGenerator[Batch, None]]

BATCH = 50  # flows in one batch
ALIVE = 5.0  # s without new flows, after which an empty batch is sent
SILENCE = 15.0  # s without a batch, after which a node counts as gone
FIRST = 5.0  # s for the first batch
KEPT_END: HubbleFlow = {"kept": "end"}

_QUERY = ("allow", "deny", "first", "last", "since", "until", "follow")


class NodeRefused(NfqError):
    """The node's agent has answered, with an error."""


class Transport(Protocol):
    """Transport: asks another node's agent for its flows."""

    @property
    def notice(self) -> str | None:
        """Return the sentence that a reader of the flows should know about their way; None: nothing."""

    def ask(self, node: NodeReport, params: Params) -> AsyncGenerator[Any, None]:
        """Yield batches, of unchecked content; raise NfqError with the reason, NodeRefused for the node's own."""


def query_of(params: Params) -> dict[str, Any]:
    """Return those parameters of ``observe`` that every node gets."""
    return {name: params[name] for name in _QUERY if name in params}


def new_flows(params: Params) -> Mapping[str, Any]:
    """Return the parameters for new flows alone, of a node that joins a stream later."""
    return {**{name: value for name, value in params.items() if name != "first"}, "last": 0}
