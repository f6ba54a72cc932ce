"""Address scopes, compared with the standard library's."""

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.core.wire.scopes import depends_on_link, has_only_groups, is_group, is_link_local, is_unspecified
from tests.support.packets import packed

EDGES = (
    *("0.0.0.0", "223.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
    *("::", "fe7f:ffff::", "fe80::", "febf:ffff::", "fec0::", "feff::", "ff00::", "ffff::", "254.128.0.1"),
)


def check(address: bytes) -> None:
    known = ip_address(address)
    group = known.is_multicast or known == IPv4Address("255.255.255.255")
    link_local = known.version == 6 and known.is_link_local

    assert is_group(address) is group
    assert is_link_local(address) is link_local
    assert is_unspecified(address) is known.is_unspecified
    assert depends_on_link(address) is (group or link_local)


@pytest.mark.parametrize("address", EDGES)
def test_the_scope_at_the_edges_of_each_range(address: str) -> None:
    check(packed(address))


@given(st.ip_addresses())
def test_the_scope_of_any_address(address: IPv4Address) -> None:
    check(address.packed)


@pytest.mark.parametrize(
    ("network", "groups"),
    [
        ("224.0.0.0/4", True),
        ("224.0.0.0/3", False),
        ("239.1.1.1/32", True),
        ("223.0.0.0/8", False),
        ("255.255.255.255/32", True),
        ("0.0.0.0/0", False),
        ("ff00::/8", True),
        ("fe00::/7", False),
        ("ff02::fb/128", True),
        ("fe80::/10", False),
        ("::/0", False),
    ],
)
def test_a_network_of_groups_has_no_unicast_address(network: str, groups: bool) -> None:
    assert has_only_groups(ip_network(network)) is groups
