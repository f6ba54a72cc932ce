"""Build and remove the lab's namespaces; run commands in them.

Promises: ``up`` builds the whole network or nothing. ``down`` works by the names alone, so it also removes the remains
of a crashed ``up``, ends no process outside of the lab's namespaces, and may be called any number of times.
"""

import os
import secrets
import select
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.topology import (
    BRIDGE,
    PREFIX,
    ROUTER,
    SEGMENT,
    UPLINK,
    IPAddress,
    Machine,
    Route,
    Topology,
    namespace_prefix,
)
from nfq_enforcer.workloads.cgroups import find_root

STATE = Path("/run/nfq-enforcer-lab")
_IPV6 = Path("/proc/sys/net/ipv6")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # the PATH of a plain user or of cron may lack these
_PACKAGES = {
    "ip": "iproute2",
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
    "redis-cli": "redis-tools",
}
_OWNER = "owner"  # file in a lab's state folder: the user who has built it
_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_ROUNDS = 2  # a supervisor may have started another child just before it received its signal
_COMMAND_TIMEOUT = 30.0

# Set in the new namespace before it has interfaces, so that every interface inherits these values.
_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/all/accept_dad": 0,  # the kernel uses the maximum of this and the interface's own value
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/all/accept_ra": 0,
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv4/conf/all/rp_filter": 0,  # a spoofed source must reach the engine, not be dropped before it
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/icmp_ratelimit": 0,  # tests wait for the ICMP errors "port unreachable" and "too big"
    "net/ipv6/icmp/ratelimit": 0,
}
_ROUTER_SYSCTLS = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1, "net/ipv6/conf/default/forwarding": 1}
# With br_netfilter loaded, a bridge passes frames to iptables; the segment must act as a plain wire.
_BRIDGE_SYSCTLS = {f"net/bridge/bridge-nf-call-{tables}": 0 for tables in ("iptables", "ip6tables", "arptables")}


class LabNetwork:
    """Network: the namespaces of one lab, and the Executor of its machines."""

    python = sys.executable

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.state = STATE / topology.run_id

    def address(self, machine: str, family: int = 4) -> IPAddress:
        """Return a machine's own address of IP version 4 or 6; raise BadInput with the known names."""
        return self.topology.address(machine, family)

    def find(self, name: str) -> str:
        """Return the path of a command; raise NfqError with the package that contains it."""
        return find_command(name)

    def up(self) -> None:
        """Build the network; on a failure remove the built part and raise NfqError."""
        _check_prerequisites()
        self._claim()
        try:
            self._build()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End the lab's processes and remove its namespaces and its state folder, if any exist."""
        remove(self.topology.run_id)

    def attach(self, name: str, node: str) -> None:
        """Build one more machine, a workload on this node, while the others run; it is removed with the lab."""
        topology = self.topology.attach(name, node)
        new, host = topology.machine(name), topology.machine(node)
        interface = topology.attached[-1].interface
        namespace, host_namespace = topology.namespace(name), topology.namespace(node)
        _batch([f"netns add {namespace}"])
        self.topology = topology
        _run(self.command(name, ["sh", "-c", _sysctl_script(new)]))
        _batch([f"link add {interface} netns {host_namespace} type veth peer name {UPLINK} netns {namespace}"])
        _batch(_set_up_port(host, interface), host_namespace)
        _batch(_set_up(new), namespace)

    def masquerade(self, on: bool) -> None:
        """Switch the router's masquerading of packets onto the segment; it affects new connections only."""
        rule = f"-A POSTROUTING -o {UPLINK} -j MASQUERADE\n" if on else ""
        # iptables-restore replaces the whole table, which holds no other rule.
        for restore in ("iptables-restore", "ip6tables-restore"):
            _run(self.command(ROUTER, [find_command(restore), "-w", "-T", "nat"]), f"*nat\n{rule}COMMIT\n")

    def command(self, machine: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command in a machine's namespace."""
        return [_ip(), "netns", "exec", self.topology.namespace(machine), *argv]

    def in_namespace(self, machine: str, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a command in a machine's namespace; ``options`` go to Popen."""
        return subprocess.Popen(self.command(machine, argv), **options)

    def _claim(self) -> None:
        run_id = self.topology.run_id
        try:
            _make_state(self.state)
            (self.state / _OWNER).write_text(current_user())
        except FileExistsError:
            raise NfqError(_taken(run_id)) from None
        except OSError as error:
            raise NfqError(f"the lab cannot make its folder {self.state}: {error.strerror}") from None
        if _namespaces(run_id):
            raise NfqError(_taken(run_id))

    def _build(self) -> None:
        machines = self.topology.machines.values()
        _batch([f"netns add {self.topology.namespace(machine.name)}" for machine in machines])
        for machine in machines:
            _run(self.command(machine.name, ["sh", "-c", _sysctl_script(machine)]))
        _batch(self._links())
        for machine in machines:
            _batch(_set_up(machine), self.topology.namespace(machine.name))

    def _links(self) -> list[str]:
        name = self.topology.namespace
        return [
            # Without STP a bridge forwards at once; without snooping it forwards all IPv6 multicast.
            f"link add {BRIDGE} netns {name(SEGMENT)} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            *(
                f"link add {c.a[1]} netns {name(c.a[0])} type veth peer name {c.b[1]} netns {name(c.b[0])}"
                for c in self.topology.cables
            ),
        ]


def _make_state(folder: Path) -> None:
    """Make a lab's folder, although the last of the other labs may remove STATE in between."""
    while True:
        STATE.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.mkdir()
            return


def new_run_id() -> str:
    """Return a run id that no lab on this machine has."""
    taken = list_labs()
    while True:
        run_id = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(6))
        if run_id not in taken:
            return run_id


def list_labs() -> list[str]:
    """Return the run ids of all labs with a namespace or a state folder, sorted."""
    by_namespace = {
        name.removeprefix(PREFIX).partition("-")[0] for name in _all_namespaces() if name.startswith(PREFIX)
    }
    try:
        by_folder = {folder.name for folder in STATE.iterdir()}
    except FileNotFoundError:  # no lab is up; the last one may have ended just now
        by_folder = set()
    return sorted(by_namespace | by_folder)


def is_own(run_id: str) -> bool:
    """Return whether this user has built the lab."""
    try:
        return (STATE / run_id / _OWNER).read_text() == current_user()
    except OSError:
        return False


def current_user() -> str:
    """Return the number of the user behind this process, also if the process runs by sudo."""
    return os.environ.get("SUDO_UID") or str(os.getuid())


def remove(run_id: str) -> None:
    """Remove a lab by its run id alone: its processes, its namespaces and its state folder."""
    _check_root()
    namespaces = _namespaces(run_id)
    for _ in range(_ROUNDS):
        _end(pid for namespace in namespaces for pid in _pids(namespace))
    _batch([f"netns del {namespace}" for namespace in namespaces])
    _remove_cgroups(processes_of(run_id))
    shutil.rmtree(STATE / run_id, ignore_errors=True)
    with suppress(OSError):  # it holds the folders of other labs, or does not exist
        STATE.rmdir()


def processes_of(run_id: str) -> str:
    """Return the start of the paths of the cgroups that the nodes of a lab make for processes."""
    return f"/nfqe-lab-{run_id}"


def _remove_cgroups(start: str) -> None:
    root = find_root()
    for folder in root.glob(f"{start.lstrip('/')}-*") if root else ():
        for each in (*folder.glob("*/"), folder):
            with suppress(OSError):  # it has processes that the lab has not started
                each.rmdir()


def _check_prerequisites() -> None:
    _check_root()
    _ip()
    if not _IPV6.is_dir():
        raise NfqError("the lab needs IPv6, which is off in this kernel: boot without ipv6.disable=1")


def _check_root() -> None:
    if os.geteuid() != 0:
        raise NfqError("the lab needs root to make network namespaces: run it with sudo")


def _taken(run_id: str) -> str:
    return f"a lab {run_id!r} is there already: remove it with `nfq-enforcer lab down`, or choose another run id"


def find_command(name: str) -> str:
    """Return the path of a command; raise NfqError with the package that contains it."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise NfqError(f"the lab needs the command `{name}`, which is not there: install {_PACKAGES.get(name, name)}")
    return path


def _ip() -> str:
    return find_command("ip")


def _sysctl_script(machine: Machine) -> str:
    values = _SYSCTLS | (_ROUTER_SYSCTLS if machine.forwards else {})
    writes = [f"echo {value} >/proc/sys/{key}" for key, value in values.items()]
    if machine.name == SEGMENT:
        writes += [
            f"[ ! -e /proc/sys/{key} ] || echo {value} >/proc/sys/{key}" for key, value in _BRIDGE_SYSCTLS.items()
        ]
    return "set -e\n" + "\n".join(writes)


def _set_up(machine: Machine) -> list[str]:
    """Return the ``ip`` commands that give a machine its addresses, links and routes, in order."""
    lines = ["link set lo up"]
    for interface in machine.interfaces:
        for address in interface.addresses:
            lines.append(f"address add {address} dev {interface.name}{' nodad' if address.version == 6 else ''}")
        port = f" master {BRIDGE}" if machine.name == SEGMENT and interface.name != BRIDGE else ""
        lines.append(f"link set {interface.name} mtu {interface.mtu}{port} up")
    return [*lines, *map(_route, machine.routes)]


def _set_up_port(machine: Machine, port: str) -> list[str]:
    """Return the commands for an interface that was added later to a machine, and for the routes through it."""
    interfaces = tuple(interface for interface in machine.interfaces if interface.name == port)
    routes = tuple(route for route in machine.routes if route.device == port)
    return _set_up(replace(machine, interfaces=interfaces, routes=routes))


def _route(route: Route) -> str:
    parts = {"via": route.via, "dev": route.device, "src": route.source, "mtu": route.mtu}
    return f"route add {route.to}" + "".join(f" {word} {value}" for word, value in parts.items() if value)


def _batch(lines: Sequence[str], namespace: str | None = None) -> None:
    if lines:
        option = ["-n", namespace] if namespace else []
        _run([_ip(), *option, "-batch", "-"], "\n".join(lines) + "\n")


def _run(argv: Sequence[str], text: str = "") -> str:
    """Run a command to its end; raise NfqError with its error output if it fails."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NfqError(f"the lab's network: {error}") from None
    if done.returncode != 0:
        raise NfqError(f"the lab's network: `{' '.join(argv)}` failed: {_error_text(done.stderr, text)}")
    return done.stdout


def _error_text(stderr: str, text: str) -> str:
    """Return the error output of a command, for a batch with the line that failed."""
    messages = [line for line in stderr.splitlines() if line.strip()]
    if messages and messages[-1].startswith("Command failed -:"):
        line = int(messages.pop().rpartition(":")[2])
        messages.append(f"in {text.splitlines()[line - 1]!r}")
    return "; ".join(messages) or "no error output"


def _all_namespaces() -> list[str]:
    return [line.split()[0] for line in _run([_ip(), "netns", "list"]).splitlines() if line]


def _namespaces(run_id: str) -> list[str]:
    return [name for name in _all_namespaces() if name.startswith(namespace_prefix(run_id))]


def _pids(namespace: str) -> list[int]:
    return [int(pid) for pid in _run([_ip(), "netns", "pids", namespace]).split()]


def _end(pids: Iterable[int]) -> None:
    """Send processes SIGTERM, wait, and kill the remaining ones; a pidfd never refers to a later process of a pid."""
    with ExitStack() as stack:
        exits = select.poll()
        running = set()
        for pid in set(pids) - {os.getpid()}:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                exits.register(pidfd, select.POLLIN)
                running.add(pidfd)
        for name in (signal.SIGTERM, signal.SIGKILL):
            for pidfd in running:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, name)
            _await_exit(exits, running)


def _await_exit(exits: "select.poll", running: set[int]) -> None:
    """Remove from ``running`` the processes that end within ``_GRACE``."""
    deadline = time.monotonic() + _GRACE
    while running and (left := deadline - time.monotonic()) > 0:
        for pidfd, _ in exits.poll(left * 1000):
            exits.unregister(pidfd)
            running.discard(pidfd)
