"""``nfq-enforcer conntrack``: flows for people and for programs, and the flush."""

import json
from typing import Any

from tests.unit.cli.conftest import Answering, RunProgram

FLOWS: dict[str, Any] = {
    "flows": [
        {
            "protocol": "TCP",
            "source": {"address": "10.0.0.1", "port": 5000, "identity": 300},
            "destination": {"address": "fd00::2", "port": 80, "identity": None},
            **{"state": "ESTABLISHED", "offload": "NONE", "revision": 7, "expires_in": 99, "queue": 100},
        }
    ],
    "total": 5000,
    "searched": 4000,
}


def test_flows_are_a_table_with_a_note_about_those_not_searched(run: RunProgram, answering: Answering) -> None:
    agent = answering(conntrack=FLOWS)

    done = run("conntrack", "list", "--from", "default/web", "--socket", agent.socket)

    assert done.lines == [
        "PROTOCOL FROM IDENTITY TO IDENTITY STATE OFFLOAD REVISION EXPIRES QUEUE",
        "TCP 10.0.0.1:5000 300 [fd00::2]:80 <none> ESTABLISHED NONE 7 99 s 100",
    ]
    assert done.err == "nfq-enforcer: searched 4000 of 5000 flows\n"
    assert agent.calls == [{"from": "default/web", "to": ""}]


def test_flows_are_data_for_programs(run: RunProgram, answering: Answering) -> None:
    done = run("conntrack", "list", "-o", "json", "--socket", answering(conntrack=FLOWS).socket)

    assert json.loads(done.out) == FLOWS


def test_a_flush_is_reported_with_the_number_of_flows(run: RunProgram, answering: Answering) -> None:
    done = run("conntrack", "flush", "--socket", answering(conntrack_flush={"flushed": 3}).socket)

    assert done == (0, "3 flows forgotten; the next packet of each open one is evaluated again\n", "")
