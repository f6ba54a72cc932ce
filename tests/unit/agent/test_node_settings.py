"""Settings of a node: defaults from the host, and warnings about it."""

import pytest

from nfq_enforcer.agent import node_settings
from nfq_enforcer.agent.config import Config
from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.dataplane.interfaces import mtu
from nfq_enforcer.dataplane.queue.library_queue import COPY_RANGE
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6
from nfq_enforcer.errors import BadInput

LOOPBACK = "lo"


def settings(*interfaces: str) -> NodeSettings:
    return NodeSettings("n1", cluster_interfaces=frozenset(interfaces))


@pytest.mark.parametrize(("source", "relaxed"), [("stamp", False), ("stamp-or-ipcache", True)])
def test_the_configuration_decides_where_it_says_something(source: str, relaxed: bool) -> None:
    config = Config.model_validate(
        {"node": {"name": "n1", "ips": ["10.0.0.1"], "cluster_interfaces": [LOOPBACK]}, "identity_source": source}
    )

    read = node_settings.read(config)

    assert (read.name, [str(address) for address in read.addresses]) == ("n1", ["10.0.0.1"])
    assert (read.cluster_interfaces, read.trust_ipcache) == (frozenset({LOOPBACK}), relaxed)


def test_an_interface_that_does_not_exist_is_refused() -> None:
    config = Config.model_validate({"node": {"cluster_interfaces": ["nfqe-none"]}})

    with pytest.raises(BadInput, match=r"^node\.cluster_interfaces: there is no interface 'nfqe-none'; there are: "):
        node_settings.read(config)


def test_a_host_with_both_families_and_an_interface_needs_no_warning() -> None:
    assert list(node_settings.host_warnings(settings(LOOPBACK), (IPV4, IPV6))) == []


def test_a_missing_family_and_a_missing_interface_are_a_warning_each() -> None:
    no_ipv6, no_interface = node_settings.host_warnings(settings(), (IPV4,))

    assert no_ipv6.startswith("IPv6 is switched off on this host")
    assert no_interface.startswith("this host has no global address yet")


def test_the_library_cannot_copy_the_longest_packets_of_an_interface() -> None:
    (warning,) = node_settings.driver_warnings(settings(LOOPBACK), Driver.NETFILTERQUEUE)

    assert mtu(LOOPBACK) >= COPY_RANGE
    assert warning.startswith(f"interface lo has an MTU of {mtu(LOOPBACK)}, but the driver netfilterqueue copies ")
    assert list(node_settings.driver_warnings(settings(LOOPBACK), Driver.NETLINK)) == []
