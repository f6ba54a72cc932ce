"""Settings of this node: the configuration, completed with the host's addresses and interfaces; warnings about both."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from nfq_enforcer.agent.config import Config
from nfq_enforcer.cluster.records import Address
from nfq_enforcer.cluster.replica import NodeSettings
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.modes import Driver, IdentitySource
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.dataplane.interfaces import host_addresses, mtu
from nfq_enforcer.dataplane.queue.library_queue import COPY_RANGE
from nfq_enforcer.dataplane.rules.ruleset import AddressFamily
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.label_filter import LabelFilter

_MIN_IPV6_MTU = 1280  # RFC 8200 section 5


def read(config: Config) -> NodeSettings:
    """Return the settings of this node, with the host's addresses and interface as defaults; raise BadInput."""
    host = host_addresses()
    addresses = config.node.ips or _first_of_each_family(address for _, address in host)
    interfaces = frozenset(config.node.cluster_interfaces) or _interfaces_with(addresses[:1], host)
    for name in interfaces:
        try:
            mtu(name)
        except OSError:
            names = ", ".join(sorted({interface for interface, _ in host}))
            raise BadInput(f"node.cluster_interfaces: there is no interface '{name}'; there are: {names}") from None
    return NodeSettings(
        config.node.name,
        addresses,
        frozenset(address for _, address in host),
        interfaces,
        config.node.cluster_cidrs,
        config.mode,
        audit=config.audit,
        allow_localhost=config.allow_localhost == "always",
        trust_ipcache=config.identity_source is IdentitySource.STAMP_OR_IPCACHE,
        relevant=LabelFilter(config.identity_labels),
        datapath=config.datapath,
        cluster=config.cluster,
        kube_apiserver=frozenset(config.kube_apiserver),
        labels=Labels.parse(config.node.labels),
        process_cgroup=config.processes.cgroup,
    )


def with_present_addresses(settings: NodeSettings, config: Config) -> NodeSettings:
    """Return the settings with the addresses that the host has now; cluster interfaces stay those of the start.

    An address by which other nodes reach this one is replaced only once the host no longer has it.
    """
    present = [address for _, address in host_addresses()]
    kept = [address for address in settings.addresses if address in present]
    addresses = config.node.ips or _first_of_each_family([*kept, *present])
    return replace(settings, addresses=addresses, own_addresses=frozenset(present))


def _first_of_each_family(addresses: Iterable[Address]) -> tuple[Address, ...]:
    first: dict[int, Address] = {}
    for address in addresses:
        first.setdefault(address.version, address)
    return tuple(first[version] for version in sorted(first))


def _interfaces_with(addresses: tuple[Address, ...], host: Sequence[tuple[str, Address]]) -> frozenset[str]:
    return frozenset(interface for interface, address in host if address in addresses)


def host_warnings(settings: NodeSettings, families: Sequence[AddressFamily]) -> Iterator[str]:
    """Yield a sentence for each property of the host that limits enforcement."""
    if len(families) == 1:
        yield "IPv6 is switched off on this host: IPv6 rules are left out, only IPv4 packets are queued"
    if not settings.cluster_interfaces:
        yield (
            "this host has no global address yet, so no interface on which stamps are accepted: endpoints of other "
            "nodes count as world until the agent is restarted; node.cluster_interfaces can name an interface"
        )
    room = stamp.overhead(6)
    for name in sorted(settings.cluster_interfaces):
        size = mtu(name)
        if size < _MIN_IPV6_MTU + room:
            yield (
                f"interface {name} has an MTU of {size}: IPv6 needs {_MIN_IPV6_MTU} and a stamp {room} more, so "
                "full-size IPv6 packets of endpoints cannot leave through it"
            )


def driver_warnings(settings: NodeSettings, driver: str) -> Iterator[str]:
    """Yield a sentence for each cluster interface with packets too long for the driver to copy whole."""
    if driver != Driver.NETFILTERQUEUE:
        return
    longest = COPY_RANGE - stamp.overhead(6)
    for name in sorted(settings.cluster_interfaces):
        if (size := mtu(name)) > longest:
            yield (
                f"interface {name} has an MTU of {size}, but the driver {driver} copies {COPY_RANGE} bytes of a "
                f"packet: longer packets that need a stamp are dropped (PAYLOAD_TOO_LONG); an MTU of {longest} or "
                "less avoids it"
            )
