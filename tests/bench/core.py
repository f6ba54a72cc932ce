"""What the core costs by itself: microseconds of one core for each decision, without queue and kernel."""

import time
from collections.abc import Callable
from ipaddress import ip_address
from itertools import cycle
from statistics import median

from nfq_enforcer.core.context import Interface
from nfq_enforcer.core.enforcer import Enforcer
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.fast_parse import parse_fast
from nfq_enforcer.core.wire.packet import UDP, checksum, parse
from nfq_enforcer.core.wire.stamp import Stamp
from tests.support.packets import request, syn, unfinished

_LOCAL, _REMOTE, _WORLD = bytes([10, 0, 0, 1]), bytes([10, 0, 1, 1]), bytes([192, 0, 2, 1])
_VETH, _ETH = Interface("veth0", 1500), Interface("eth0", 1500)
_COUNT = 20_000


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return microseconds for each case, a figure a repetition, the cases interleaved."""
    out, within, back = _datagram(_LOCAL, _REMOTE), _datagram(_LOCAL, _WORLD), _datagram(_REMOTE, _LOCAL)
    cases: dict[str, Callable[[], object]] = {
        "parse alone": lambda: parse(within),
        "a glance alone": lambda: parse_fast(within),
        "known flow, judged only": _known(within, _VETH, _ETH),
        "known flow, judged only, without a glance": _known(within, _VETH, _ETH, fast=False),
        "known flow, stamped on the way out": _known(out, _VETH, _ETH),
        "known flow, stamped on the way out, without a glance": _known(out, _VETH, _ETH, fast=False),
        "known flow, stamp read on the way in": _known(_stamped(back), _ETH, _VETH),
        "known flow, stamp read on the way in, without a glance": _known(_stamped(back), _ETH, _VETH, fast=False),
        "known flow, stamped, 65,000 bytes to be cut": _bulk(_VETH, _ETH),
        "known flow, stamped, 1,400 bytes with a checksum to finish": (
            _known(_datagram(_LOCAL, _REMOTE, 1372), _VETH, _ETH, skb=1)
        ),
        "new flow, judged and stamped": _new(_VETH, _ETH),
    }
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, case in cases.items():
            figures[name].append(_time(case))
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [(name, f"{median(of):.2f} µs ({min(of):.2f} to {max(of):.2f})") for name, of in figures.items()]


def _time(case: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(_COUNT):
        case()
    return (time.perf_counter() - begin) / _COUNT * 1e6


def _known(
    packet: bytes, indev: Interface, outdev: Interface, skb: int = 0, *, fast: bool = True
) -> Callable[[], object]:
    enforcer = _enforcer()
    decide = enforcer.decide if fast else enforcer.slow_path
    decide(packet, indev, outdev, 1.0, skb)
    return lambda: decide(packet, indev, outdev, 1.0, skb)


def _bulk(indev: Interface, outdev: Interface) -> Callable[[], object]:
    """Send large pieces of a TCP connection, as the kernel hands them over before it cuts them."""
    ends = str(ip_address(_LOCAL)), str(ip_address(_REMOTE))
    decide, piece = _enforcer().decide, unfinished(request(*ends, data=bytes(64_960)))
    decide(syn(*ends), indev, outdev, 1.0)
    if decide(piece, indev, outdev, 1.0, 3).payload is None:
        raise RuntimeError("a large piece was not stamped in one")
    return lambda: decide(piece, indev, outdev, 1.0, 3)


def _new(indev: Interface, outdev: Interface) -> Callable[[], object]:
    """Open a flow from another port each time, in a table that is full."""
    decide = _enforcer().decide
    packets = cycle([_datagram(_LOCAL, _REMOTE, port=port) for port in range(1, 2001)])
    return lambda: decide(next(packets), indev, outdev, 1.0)


def _enforcer() -> Enforcer:
    everything = PolicyMap({}, enforced=False)
    endpoint = LocalEndpoint("default/a", Identity(300), _VETH.name, everything, everything)
    ipcache = Ipcache({_REMOTE: Peer(Identity(301), remote=True)})
    return Enforcer(Snapshot(1, {_LOCAL: endpoint}, ipcache, frozenset({_ETH.name})), Conntrack(1000, 0))


def _stamped(packet: bytes) -> bytes:
    return stamp.write(packet, parse(packet), Stamp(Identity(301)))


def _datagram(source: bytes, target: bytes, data: int = 64, port: int = 4242) -> bytes:
    """Return a datagram whose checksum covers the pseudo header only, as one is that a device is to finish."""
    size = 8 + data
    pseudo_header = 0xFFFF - checksum(source + target + bytes((0, UDP)) + size.to_bytes(2, "big"))
    udp = b"".join(number.to_bytes(2, "big") for number in (port, 53, size, pseudo_header)) + bytes(data)
    header = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes([64, UDP, 0, 0])
    return header + source + target + udp
