"""EndpointIndex: common fields of endpoints are held once, until the last endpoint is deleted."""

from ipaddress import ip_network
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
    """Return a record with field objects of its own."""
    labels, ports = Labels.parse({"app": "web"}), frozenset({NamedPort("http", TCP, 80)})
    address = packed(f"10.3.0.{number}")
    made = EndpointRecord("shop", f"e{number}", "n2", WEB, (address,), None, labels, "default", ports)
    return made._replace(**more)


@pytest.fixture
def index() -> EndpointIndex:
    """Give the index of n1, with three endpoints of equal template."""
    index = EndpointIndex("n1")
    for number in range(3):
        index.put(f"shop/e{number}", record(number))
    return index


def test_what_endpoints_have_in_common_is_held_once(index: EndpointIndex) -> None:
    held = list(index.endpoints.values())

    assert held == [record(number) for number in range(3)]
    assert len({id(one.labels) for one in held}) == len({id(one.ports) for one in held}) == 1
    assert all(index.owners[one.addresses[0]] is one for one in held)


def test_names_for_ports_are_known_while_an_endpoint_has_them(index: EndpointIndex) -> None:
    index.put("shop/e3", record(3, ports=frozenset()))
    assert index.ports == {WEB: {record(0).ports, frozenset()}}

    for number in range(3):
        index.put(f"shop/e{number}", None)
    assert index.ports == {}


def test_it_notes_what_has_changed_until_it_forgets(index: EndpointIndex) -> None:
    changes = index.changes()
    assert (set(changes.touched), changes.local, changes.ports) == (
        {packed(f"10.3.0.{n}") for n in range(3)},
        False,
        True,
    )
    index.reset_changes()
    assert index.changes() == ({}, False, False)

    index.put("shop/e1", record(1, node="n1"))
    changes = index.changes()
    assert (list(changes.touched), changes.local, changes.ports) == ([packed("10.3.0.1")], True, False)


def test_hosted_endpoints_are_those_on_this_node(index: EndpointIndex) -> None:
    assert index.hosted == {}

    index.put("shop/e1", record(1, node="n1"))
    index.put("shop/e9", record(9, node="n1", cgroup="/nfqe/e9", addresses=()))
    assert index.hosted == {"shop/e1": index.endpoints["shop/e1"], "shop/e9": index.endpoints["shop/e9"]}
    index.put("shop/e1", record(1))
    index.put("shop/e9", None)
    assert index.hosted == {} and index.processes == {}


def test_remote_networks_have_the_endpoints_of_other_nodes_and_no_others(index: EndpointIndex) -> None:
    assert index.remote_networks == {ip_network("10.3.0.0/24")}

    index.put("shop/e9", replace_addresses(record(9), "10.4.0.1", "fd04::1"))
    index.put("shop/e8", replace_addresses(record(8), "10.4.0.2"))
    assert index.remote_networks == set(map(ip_network, ("10.3.0.0/24", "10.4.0.0/24", "fd04::/64")))
    index.put("shop/e9", None)
    assert index.remote_networks == set(map(ip_network, ("10.3.0.0/24", "10.4.0.0/24")))
    index.put("shop/e8", replace_addresses(record(8, node="n1"), "10.4.0.2"))
    assert index.remote_networks == {ip_network("10.3.0.0/24")}


def replace_addresses(endpoint: EndpointRecord, *addresses: str) -> EndpointRecord:
    return endpoint._replace(addresses=tuple(map(packed, addresses)))


def test_nothing_is_held_of_who_is_gone(index: EndpointIndex) -> None:
    for number in range(3):
        index.put(f"shop/e{number}", None)
    index.reset_changes()
    index.touched_identities.clear()

    assert not any(held for name, held in vars(index).items() if name != "_node")
