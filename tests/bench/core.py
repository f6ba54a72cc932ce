"""What the core costs by itself: microseconds of one core for each decision, without queue and kernel."""

import time
from collections.abc import Callable
from statistics import median

from nfq_enforcer.core import stamp
from nfq_enforcer.core.conntrack import Conntrack
from nfq_enforcer.core.enforcer import Enforcer, Interface
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.ipcache import Ipcache, Peer
from nfq_enforcer.core.packet import UDP, parse
from nfq_enforcer.core.policymap import PolicyMap
from nfq_enforcer.core.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.stamp import Stamp

_LOCAL, _REMOTE, _WORLD = bytes([10, 0, 0, 1]), bytes([10, 0, 1, 1]), bytes([192, 0, 2, 1])
_VETH, _ETH = Interface("veth0", 1500), Interface("eth0", 1500)
_COUNT = 50_000


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return microseconds for each case, a figure a repetition, the cases interleaved."""
    cases: dict[str, Callable[[], object]] = {
        "parse alone": _parse_alone(),
        "known flow, judged only": _known(_datagram(_LOCAL, _WORLD), _VETH, _ETH),
        "known flow, stamped on the way out": _known(_datagram(_LOCAL, _REMOTE), _VETH, _ETH),
        "known flow, stamp read on the way in": _known(_stamped(_datagram(_REMOTE, _LOCAL)), _ETH, _VETH),
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


def _parse_alone() -> Callable[[], object]:
    packet = _datagram(_LOCAL, _WORLD)
    return lambda: parse(packet)


def _known(packet: bytes, indev: Interface, outdev: Interface) -> Callable[[], object]:
    everything = PolicyMap({}, enforced=False)
    endpoint = LocalEndpoint("default/a", Identity(300), _VETH.name, everything, everything)
    ipcache = Ipcache({_REMOTE: Peer(Identity(301), remote=True)})
    snapshot = Snapshot(1, {_LOCAL: endpoint}, ipcache, frozenset({_ETH.name}))
    enforcer = Enforcer(snapshot, Conntrack(1000, 0))
    enforcer.decide(packet, indev, outdev, 1.0)
    return lambda: enforcer.decide(packet, indev, outdev, 1.0)


def _stamped(packet: bytes) -> bytes:
    return stamp.write(packet, parse(packet), Stamp(Identity(301)))


def _datagram(source: bytes, target: bytes) -> bytes:
    data = bytes(64)
    udp = b"".join(number.to_bytes(2, "big") for number in (4242, 53, 8 + len(data), 0)) + data
    header = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes([64, UDP, 0, 0])
    return header + source + target + udp
