"""Cost of the core alone: microseconds of one CPU core for each decision, without queue and kernel."""

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
    """Return microseconds for each case, one figure for each repetition, with the cases interleaved."""
    out, within, back = _datagram(_LOCAL, _REMOTE), _datagram(_LOCAL, _WORLD), _datagram(_REMOTE, _LOCAL)
    cases: dict[str, Callable[[], object]] = {
        "parse alone": lambda: parse(within),
        "fast parse alone": lambda: parse_fast(within),
        "known flow, verdict only": _known(within, _VETH, _ETH),
        "known flow, verdict only, slow path": _known(within, _VETH, _ETH, fast_path=False),
        "known flow, stamped on egress": _known(out, _VETH, _ETH),
        "known flow, stamped on egress, slow path": _known(out, _VETH, _ETH, fast_path=False),
        "known flow, stamp read on ingress": _known(_stamped(back), _ETH, _VETH),
        "known flow, stamp read on ingress, slow path": _known(_stamped(back), _ETH, _VETH, fast_path=False),
        "known flow, stamped, 65,000 bytes (GSO)": _bulk(_VETH, _ETH),
        "known flow, stamped, 1,400 bytes with an unfinished checksum": (
            _known(_datagram(_LOCAL, _REMOTE, 1372), _VETH, _ETH, skb=1)
        ),
        "new flow, evaluated and stamped": _new(_VETH, _ETH),
    }
    figures: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, case in cases.items():
            figures[name].append(_time(case))
    return figures


def table(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    """Return rows of name and figure."""
    return [(name, f"{median(times):.2f} µs ({min(times):.2f} to {max(times):.2f})") for name, times in figures.items()]


def _time(case: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(_COUNT):
        case()
    return (time.perf_counter() - begin) / _COUNT * 1e6


def _known(
    packet: bytes, indev: Interface, outdev: Interface, skb: int = 0, *, fast_path: bool = True
) -> Callable[[], object]:
    enforcer = _enforcer()
    decide = enforcer.decide if fast_path else enforcer.slow_path
    decide(packet, indev, outdev, 1.0, skb)
    return lambda: decide(packet, indev, outdev, 1.0, skb)


def _bulk(indev: Interface, outdev: Interface) -> Callable[[], object]:
    """Decide large packets of a TCP connection, as the kernel queues them before segmentation (GSO)."""
    ends = str(ip_address(_LOCAL)), str(ip_address(_REMOTE))
    decide, packet = _enforcer().decide, unfinished(request(*ends, data=bytes(64_960)))
    decide(syn(*ends), indev, outdev, 1.0)
    if decide(packet, indev, outdev, 1.0, 3).payload is None:
        raise RuntimeError("a large packet was not stamped as a whole")
    return lambda: decide(packet, indev, outdev, 1.0, 3)


def _new(indev: Interface, outdev: Interface) -> Callable[[], object]:
    """Decide the first packet of a new flow each time, with a full flow table."""
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
    """Return a datagram whose checksum covers the pseudo header only, as before checksum offload by a device."""
    size = 8 + data
    pseudo_header = 0xFFFF - checksum(source + target + bytes((0, UDP)) + size.to_bytes(2, "big"))
    udp = b"".join(number.to_bytes(2, "big") for number in (port, 53, size, pseudo_header)) + bytes(data)
    header = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes([64, UDP, 0, 0])
    return header + source + target + udp
