"""Interfaces of endpoints: a missing one is returned, logged once, and cleared when it exists."""

import logging

import pytest

from nfq_enforcer.agent.interface_check import InterfaceCheck
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint

OPEN = PolicyMap({}, enforced=False)


def endpoint(name: str, interface: str | None, *, is_host: bool = False) -> LocalEndpoint:
    return LocalEndpoint(f"default/{name}", Identity(300), interface, OPEN, OPEN, is_host)


def test_a_missing_interface_is_logged_once_and_cleared_when_it_exists(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoints, interfaces = (
        [endpoint("web", "veth-web"), endpoint("db", "veth-db"), endpoint("n1", None, is_host=True)],
        {"veth-db"},
    )
    check = InterfaceCheck(lambda: endpoints, lambda: frozenset(interfaces))

    assert check.check() == check.check() == {"default/web": "veth-web"}
    interfaces.add("veth-web")
    assert check.check() == check.check() == {}
    assert [record.message for record in caplog.records] == [
        "endpoint default/web is on interface veth-web, which does not exist on this node",
        "interface veth-web of endpoint default/web exists now",
    ]


def test_thousands_of_missing_interfaces_are_one_line_and_one_problem(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoints = [endpoint(f"web{number:04}", f"veth{number:04}") for number in range(5000)]
    interfaces: set[str] = set()
    check = InterfaceCheck(lambda: endpoints, lambda: frozenset(interfaces))
    some = "default/web0000 (veth0000), default/web0001 (veth0001), default/web0002 (veth0002)"
    sentence = f"5000 endpoints are on interfaces that do not exist on this node: {some} and 4997 more"

    assert check.problems() == check.problems() == [sentence]
    assert len(check.check()) == 5000
    interfaces.update(f"veth{number:04}" for number in range(4998))
    assert list(check.check()) == ["default/web4998", "default/web4999"]
    assert check.problems() == [
        "2 endpoints are on interfaces that do not exist on this node: "
        "default/web4998 (veth4998), default/web4999 (veth4999)"
    ]
    interfaces.clear()
    check.check()
    assert [record.message for record in caplog.records] == [
        sentence,
        f"interfaces of 4998 endpoints exist now: {some} and 4995 more",
        f"4998 endpoints are on interfaces that do not exist on this node: {some} and 4995 more",
    ]


def test_an_interface_that_is_gone_again_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    interfaces = {"veth-web"}
    check = InterfaceCheck(lambda: [endpoint("web", "veth-web")], lambda: frozenset(interfaces))

    assert check.check() == {}
    interfaces.clear()
    assert check.check() == {"default/web": "veth-web"}
    assert len(caplog.records) == 1


def test_a_deleted_endpoint_has_no_problem(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoints = [endpoint("web", "veth-web")]
    check = InterfaceCheck(lambda: endpoints, frozenset)

    assert check.check() == {"default/web": "veth-web"}
    endpoints.clear()
    assert check.check() == {}
    assert len(caplog.records) == 1


def test_the_hosts_own_interfaces_are_read() -> None:
    check = InterfaceCheck(lambda: [endpoint("web", "lo"), endpoint("db", "none-such")])

    assert check.check() == {"default/db": "none-such"}
    assert check.problems() == ["endpoint default/db is on interface none-such, which does not exist on this node"]


def test_endpoints_without_an_interface_are_one_problem_and_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoints = [endpoint(f"web{number}", None) for number in range(7)]
    check = InterfaceCheck(lambda: [*endpoints, endpoint("n1", None, is_host=True)])
    sentence = (
        "endpoints without an interface: default/web0, default/web1, default/web2, default/web3, default/web4 and 2 "
        "more; other workloads of their node can send from their addresses (only a node itself needs no interface)"
    )

    assert check.problems() == check.problems() == [sentence]
    assert check.unnamed == {one.name for one in endpoints}
    endpoints.clear()
    assert check.problems() == []
    assert [record.message for record in caplog.records] == [sentence]


def test_endpoints_of_workloads_that_start_or_have_just_ended_are_no_problem(caplog: pytest.LogCaptureFixture) -> None:
    endpoints, changing = [endpoint("new", None), endpoint("old", "veth-old")], {"default/new", "default/old"}
    check = InterfaceCheck(lambda: endpoints, frozenset, lambda: changing)

    assert check.problems() == []
    assert caplog.records == []
    changing.clear()
    assert len(check.problems()) == 2
