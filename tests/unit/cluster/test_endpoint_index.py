"""The roster: what endpoints have in common is held once, and what is held goes with the last of them."""

from typing import Any

import pytest

from nfq_enforcer.cluster.endpoint_index import EndpointIndex
from nfq_enforcer.cluster.records import EndpointRecord
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.policy.rules import NamedPort
from tests.support.packets import packed

WEB = Identity(300)


def record(number: int, **more: Any) -> EndpointRecord:
    """Return a record made of objects of its own."""
    labels, ports = Labels.parse({"app": "web"}), frozenset({NamedPort("http", TCP, 80)})
    address = packed(f"10.3.0.{number}")
    made = EndpointRecord("shop", f"e{number}", "n2", WEB, (address,), None, labels, "default", ports)
    return made._replace(**more)


@pytest.fixture
def roster() -> EndpointIndex:
    """Give the roster of n1, with three endpoints that are alike."""
    roster = EndpointIndex("n1")
    for number in range(3):
        roster.put(f"shop/e{number}", record(number))
    return roster


def test_what_endpoints_have_in_common_is_held_once(roster: EndpointIndex) -> None:
    held = list(roster.endpoints.values())

    assert held == [record(number) for number in range(3)]
    assert len({id(one.labels) for one in held}) == len({id(one.ports) for one in held}) == 1
    assert all(roster.owners[one.addresses[0]] is one for one in held)


def test_names_for_ports_are_known_while_an_endpoint_has_them(roster: EndpointIndex) -> None:
    roster.put("shop/e3", record(3, ports=frozenset()))
    assert roster.ports == {WEB: {record(0).ports, frozenset()}}

    for number in range(3):
        roster.put(f"shop/e{number}", None)
    assert roster.ports == {}


def test_it_notes_what_has_changed_until_it_forgets(roster: EndpointIndex) -> None:
    noted = roster.noted()
    assert (set(noted.touched), noted.local, noted.ports) == ({packed(f"10.3.0.{n}") for n in range(3)}, False, True)
    roster.forget()
    assert roster.noted() == ({}, False, False)

    roster.put("shop/e1", record(1, node="n1"))
    noted = roster.noted()
    assert (list(noted.touched), noted.local, noted.ports) == ([packed("10.3.0.1")], True, False)


def test_nothing_is_held_of_who_is_gone(roster: EndpointIndex) -> None:
    for number in range(3):
        roster.put(f"shop/e{number}", None)
    roster.forget()

    assert not any(held for name, held in vars(roster).items() if name != "_node")
