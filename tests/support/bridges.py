"""Bridges of nodes: endpoints become ports, and send to each other by the host or directly."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.support.labs import FAMILIES, run_in

BRIDGE = "br0"
PASSED = Path("/proc/sys/net/bridge")  # a directory of br_netfilter
ABSENT = f"no {PASSED}: the kernel has no br_netfilter, or the module is not loaded (modprobe br_netfilter)"


def bridge(lab: Lab, node: str, endpoints: Iterable[str]) -> None:
    """Make the interfaces of these endpoints ports of a bridge, which has the addresses of their gateways."""
    ports = {name: port_of(name) for name in endpoints}
    shown = run_in(lab, node, "ip", "-o", "address", "show", "dev", next(iter(ports.values())), "scope", "global")
    commands = [f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0", f"link set {BRIDGE} up"]
    for gateway in (line.split()[3] for line in shown.splitlines()):
        commands.append(f"address add {gateway} dev {BRIDGE}{' nodad' if ':' in gateway else ''}")
    for name, port in ports.items():
        commands += [f"address flush dev {port} scope global", f"link set {port} master {BRIDGE}"]
        commands += [
            f"route replace {lab.address(name, family)} dev {BRIDGE} src {lab.address(node, family)}"
            for family in FAMILIES
        ]
    run_in(lab, node, "ip", "-batch", "-", text="\n".join(commands))


def port_of(endpoint: str) -> str:
    """Return the interface of an endpoint at its node."""
    return f"veth-{endpoint}"


def pass_frames(lab: Lab, node: str, *, on: bool) -> None:
    """Switch the hooks of IP for the frames of bridges on or off."""
    for name in ("iptables", "ip6tables"):
        run_in(lab, node, "sh", "-c", f"echo {int(on)} >{PASSED}/bridge-nf-call-{name}")


@contextmanager
def switch(lab: Lab, one: str, other: str) -> Iterator[None]:
    """Let two machines on a bridge send to each other without the host, by neighbour discovery."""
    routes = [(machine, peer, family) for machine, peer in ((one, other), (other, one)) for family in FAMILIES]

    def change(action: str) -> None:
        for machine, peer, family in routes:
            direct = (str(lab.address(peer, family)), "dev", UPLINK)
            run_in(lab, machine, "ip", f"-{family}", "route", action, *direct)

    change("add")
    try:
        yield
    finally:
        change("del")
