"""Form of a flow: what is none is refused with the place, and no reader fails at what passes."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from nfq_enforcer.core.events import DnsMessage, FlowEnd, HttpMessage, TlsMessage
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.flow_ends import EndCause, Traffic
from nfq_enforcer.core.wire.packet import ICMP, UDP
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe import saved
from nfq_enforcer.observe.flow import HubbleFlow, Logged, render
from nfq_enforcer.observe.hubble import to_response
from nfq_enforcer.observe.question import ask
from nfq_enforcer.observe.recording import Recording
from nfq_enforcer.observe.text import TextForm
from nfq_enforcer.policy import loader, suggestion_text
from nfq_enforcer.policy.simulation import Simulation
from nfq_enforcer.policy.suggestion import SuggestionOptions
from nfq_enforcer.policy.suggestion_check import suggest_checked
from nfq_enforcer.text import printable_lines
from tests.support.flows import BACK, dropped, logged, opening, rule
from tests.support.packets import packed

FLOWS = {
    "dropped": dropped(enforced_by=(rule("back"),), denied_by=(rule("deny"),)),
    "allowed": logged(allowed_by=(rule("back"),)),
    "http": logged(l7=HttpMessage(False, "GET", "http://back/a", "HTTP/1.1", 200, 5, (("a", "b"),))),
    "dns": logged(
        opening(proto=UDP, ports=(1, 53)), l7=DnsMessage(True, "a.b", 1, 0, 60, (packed("10.2.0.10"),), ("c",))
    ),
    "tls": logged(l7=TlsMessage("b.example")),
    "icmp": logged(opening(proto=ICMP, ports=(0, 0), icmp=(8, 0))),
    "outside": logged(opening(BACK, WORLD, dst="192.0.2.9")),
    "end": logged(end=FlowEnd(EndCause.CLOSED, 1.5, Traffic(1, 40), Traffic(2, 80))),
}
VALUES: list[Any] = [
    "\x1b[2J\r\nX\u202e",
    "",
    "--help",
    "\ud800",
    "70000",
    "9999-12-31T23:59:59.9999999Z",
    "fe80::1%eth0",
    "(",
]
VALUES += [None, True, -1, 70_000, 1 << 70, 0.5, [], ["\n"], [[]], {}, {"a": "\x1b"}]
SIMULATION = Simulation(loader.from_data([]))


def places(value: Any, *place: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each part of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield *place, key
        yield from places(part, *place, key)


def changed(flow: HubbleFlow, place: tuple[Any, ...], value: Any) -> HubbleFlow:
    made: Any = copy.deepcopy(flow)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return dict(made)


def use(flow: saved.Saved) -> None:
    """Use a flow as each command does."""
    text = TextForm()
    shown = [text.compact(flow.item), *text.fields(flow.item), *text.row(flow.item), json.dumps(to_response(flow.item))]
    assert printable_lines("".join(shown)).encode()
    try:
        ask(SIMULATION, flow.logged)
    except BadInput as error:
        assert str(error).isprintable()
    recording = Recording(dropped=True)
    recording.add(flow.logged)
    policies, left_out = suggest_checked(recording.flows(), SuggestionOptions(http=True))
    assert "".join(map(str, left_out)).isprintable()
    assert suggestion_text.render(policies).isascii()


@pytest.mark.parametrize("form", [dict, to_response], ids=["json", "jsonpb"])
@pytest.mark.parametrize("event", FLOWS.values(), ids=FLOWS)
def test_any_value_anywhere_is_refused_in_a_sentence_or_does_no_harm(event: Logged, form: Any) -> None:
    flow = form(render(event))
    use(*saved.read([json.dumps(flow)]))  # type: ignore[arg-type]

    for place in places(flow):
        for value in VALUES:
            for read in saved.read([json.dumps(changed(flow, place, value))]):
                if isinstance(read, str):
                    assert read.isprintable()
                    assert read.startswith("line 1")
                else:
                    use(read)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (["l4", "TCP", "source_port"], 65_536, "l4.TCP.source_port: 65536 is not allowed; allowed: a number from 0 to"),
        (["verdict"], "MAYBE", "verdict: 'MAYBE' is not allowed; allowed: FORWARDED, DROPPED, "),
        (
            ["time"],
            "yesterday",
            "time: 'yesterday' is not allowed; allowed: a time as in 2026-01-01T00:00:00.5Z (RFC 3339)",
        ),
        (["time"], "2026-01-01T00:00:00", "time: '2026-01-01T00:00:00' is not allowed"),
        (["IP", "source"], "x", "IP.source: 'x' is not allowed; allowed: an IPv4 or IPv6 address"),
        (["source"], [], "source: it is no JSON object"),
        (["source", "labels"], "a", "source.labels: it is no list"),
        (["source", "labels", 0], 5, "source.labels[0]: 5 is not allowed; allowed: a text"),
        (["is_reply"], "no", "is_reply: 'no' is not allowed; allowed: true or false"),
        (["flow_end"], {"cause": "closed"}, "flow_end.sent is missing"),
        (["l7"], {"dns": {"qtypes": ["X"]}}, "l7.dns.qtypes[0]: 'X' is not allowed; allowed: a type of DNS records"),
    ],
)
def test_a_flow_that_has_not_the_form_is_told_with_the_place(place: list[Any], value: Any, sentence: str) -> None:
    (read,) = saved.read([json.dumps(changed(render(logged()), tuple(place), value))])

    assert isinstance(read, str)
    assert read.startswith(f"line 1 is no flow: {sentence}")


def test_a_reason_and_fields_that_only_hubble_has_pass_through() -> None:
    flow = {"verdict": "DROPPED", "drop_reason": 139, "drop_reason_desc": "UNSUPPORTED_L3_PROTOCOL", "is_l7_lb": True}
    line = json.dumps({"flow": {"time": "2026-01-01T00:00:00Z", "node_name": "n", **flow}})

    (read,) = saved.read([line])

    assert isinstance(read, saved.Saved)
    assert to_response(read.item)["flow"].items() >= flow.items()
