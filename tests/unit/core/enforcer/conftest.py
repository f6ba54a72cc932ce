"""Fixtures of the enforcer's tests: a node, and the addresses of each IP family."""

import pytest

from tests.support.nodes import FAMILIES, Addresses, Node


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses
