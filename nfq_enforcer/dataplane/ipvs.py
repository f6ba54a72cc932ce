"""IPVS: whether this host has virtual services, as kube-proxy makes them in its mode ipvs.

IPVS takes a packet for a virtual service in INPUT and sends it on in OUTPUT, without the interface by which it came. So
packets of this node's endpoints to such a service look like forged ones, and are dropped.
"""

from pathlib import Path

_TABLE = Path("/proc/net/ip_vs")
_SERVICES = ("TCP ", "UDP ", "SCTP", "FWM ")  # how lines of services begin (net/netfilter/ipvs/ip_vs_ctl.c)


def has_services() -> bool:
    """Return whether this host has a virtual service."""
    try:
        return any(line.startswith(_SERVICES) for line in _TABLE.read_text().splitlines())
    except OSError:  # without IPVS
        return False
