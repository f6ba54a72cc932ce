"""Interfaces of endpoints: a missing one is returned, logged once, and cleared when it exists."""

import logging

import pytest

from nfq_enforcer.agent.interface_check import InterfaceCheck, problem
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint

OPEN = PolicyMap({}, enforced=False)


def endpoint(name: str, interface: str | None) -> LocalEndpoint:
    return LocalEndpoint(f"default/{name}", Identity(300), interface, OPEN, OPEN)


def test_a_missing_interface_is_logged_once_and_cleared_when_it_exists(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoints, interfaces = [endpoint("web", "veth-web"), endpoint("db", "veth-db"), endpoint("n1", None)], {"veth-db"}
    check = InterfaceCheck(lambda: endpoints, lambda: frozenset(interfaces))

    assert check.check() == check.check() == {"default/web": "veth-web"}
    interfaces.add("veth-web")
    assert check.check() == check.check() == {}
    assert [record.message for record in caplog.records] == [
        "endpoint default/web is on interface veth-web, which does not exist on this node",
        "interface veth-web of endpoint default/web exists now",
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
    assert InterfaceCheck(lambda: [endpoint("web", "lo"), endpoint("db", "none-such")]).check() == {
        "default/db": "none-such"
    }
    assert problem("default/db", "x") == "endpoint default/db is on interface x, which does not exist on this node"
