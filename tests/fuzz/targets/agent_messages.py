"""Any message of another agent is handled or dropped; a flow in it is shown in every form, or counts as lost."""

import asyncio
import json

from nfq_enforcer.agent.peers.protocol import KEPT_END
from nfq_enforcer.agent.peers.relay import StoreRelay
from nfq_enforcer.observe.flow import render
from nfq_enforcer.observe.hubble import to_response
from nfq_enforcer.observe.nodes import checked
from nfq_enforcer.observe.text import TextForm, is_flow
from nfq_enforcer.text import read_json
from tests.support.flows import dropped, logged, rule

_FORMS = (TextForm(), TextForm(numeric=True))
_KINDS = ("ask", "more", "stop", "flows", "end", "error")
_FLOWS = (render(logged()), render(dropped(enforced_by=(rule("a"),))), render(logged(is_reply=True)))
SEEDS = [
    *(json.dumps(flow).encode() for flow in _FLOWS),
    *(
        json.dumps({"kind": kind, "from": "n2", "id": "1", "params": {}, "flows": [KEPT_END]}).encode()
        for kind in _KINDS
    ),
    b'{"lost_events": {"num_events_lost": 3}}',
    b'{"verdict": "FORWARDED", "time": "2026-01-01T00:00:00Z", "source": {"labels": ["reserved:world"]}}',
]


class _Nowhere:
    """_Nowhere: mail without other nodes."""

    def receive_by(self, receive: object) -> None:
        """Expect no messages."""

    async def send(self, _node: str, _message: bytes) -> bool:
        return False


async def _nothing(_params: object):  # type: ignore[no-untyped-def]
    yield [KEPT_END]


def check(data: bytes) -> None:
    asyncio.run(_receive(data))
    try:
        item = checked(read_json(data), "n2")
    except ValueError:
        return
    if item is None:
        return
    assert item["node_name"] == "n2"
    for form in _FORMS:
        assert all(isinstance(text, str) for text in (form.compact(item), *form.fields(item), *form.row(item)))
    json.dumps(to_response(item))
    assert is_flow(item) or "lost_events" in item


async def _receive(data: bytes) -> None:
    relay = StoreRelay("n1", _Nowhere(), _nothing)
    relay.receive(data)
    await asyncio.sleep(0)
    await relay.stop()
