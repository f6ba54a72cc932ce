"""Settings of a node: defaults from the host, and warnings about it."""

from ipaddress import IPv4Address, IPv6Address, ip_address

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


def address(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


@pytest.mark.parametrize(
    ("before", "host", "now"),
    [
        (["10.0.0.1"], ["10.0.0.9", "10.0.0.1"], ["10.0.0.1"]),
        (["10.0.0.1", "fd00::1"], ["10.0.0.9", "fd00::9"], ["10.0.0.9", "fd00::9"]),
        (["10.0.0.1"], ["fd00::1", "10.0.0.1"], ["10.0.0.1", "fd00::1"]),
        (["10.0.0.1"], [], []),
    ],
)
def test_the_address_of_a_node_stays_while_its_host_has_it(
    before: list[str], host: list[str], now: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_settings, "host_addresses", lambda: [("eth0", address(one)) for one in host])
    old = NodeSettings("n1", tuple(map(address, before)), cluster_interfaces=frozenset({"eth0"}))

    new = node_settings.with_present_addresses(old, Config())

    assert (list(map(str, new.addresses)), new.own_addresses) == (now, frozenset(map(address, host)))
    assert new.cluster_interfaces == old.cluster_interfaces


def test_configured_addresses_stay_whichever_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_settings, "host_addresses", lambda: [("eth0", address("10.0.0.9"))])
    config = Config.model_validate({"node": {"ips": ["192.0.2.1"]}})

    new = node_settings.with_present_addresses(NodeSettings("n1", config.node.ips), config)

    assert list(map(str, new.registered_addresses)) == ["192.0.2.1", "10.0.0.9"]


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
