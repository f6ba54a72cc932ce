"""Contenders of the data path: no netfilter, the kernel alone, minimal queue programs, and the engine.

Every contender has a lab of its own and runs there as long as the lab is up: so a run can switch between contenders at
once, and a contender that is not being measured is idle.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from nfq_enforcer.agent import client
from nfq_enforcer.errors import NfqError
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from nfq_enforcer.lab.topology import NODES
from tests.bench.generators import ACCEPT_ALL, ACCEPT_BATCHES, Programs
from tests.bench.places import PLACES
from tests.bench.population import HOST_ROLES, host_document, populate
from tests.bench.variants import Variant
from tests.support.labs import run_in

_QUEUE = 0
_HOOKS = ("INPUT", "FORWARD", "OUTPUT")
_ADDRESSES, _FIRST = 100_000, IPv4Address("10.64.0.0")
_SET = "bench"
_READY = "ready"
_TIMEOUT, _POLL_INTERVAL = 60.0, 0.1

NOTHING = "no netfilter"
KERNEL = f"stateful iptables, ipset of {_ADDRESSES:,}"
C_ACCEPT = "C, accepts every packet"
C_BATCH = "C, accepts batches, GSO"
NULL = "NetfilterQueue, null callback"
REFERENCES = (NOTHING, KERNEL, C_ACCEPT, C_BATCH, NULL)

Processes = Mapping[str, int]
"""By node: the process that decides verdicts there; its children count too."""


@dataclass(frozen=True)
class Contender:
    """Contender: one way to filter packets, set up on all nodes of a lab."""

    name: str
    begin: Callable[[Lab], Processes]  # sets the contender up in a lab, on all nodes


def references(programs: Programs) -> list[Contender]:
    """Return the contenders that the engine is compared with."""
    return [
        Contender(NOTHING, lambda lab: {}),
        Contender(KERNEL, _stateful),
        Contender(C_ACCEPT, partial(_loop, [programs.path(ACCEPT_ALL)])),
        Contender(C_BATCH, partial(_loop, [programs.path(ACCEPT_BATCHES)])),
        Contender(NULL, partial(_loop, [sys.executable, "-m", "tests.bench.nullqueue"])),
    ]


def engine(variant: Variant) -> Contender:
    """Return the engine in one of its variants."""
    return Contender(variant.name, partial(_engine, variant))


def _stateful(lab: Lab) -> Processes:
    """Accept packets of established connections, and new ones from the addresses of a set."""
    senders = {address for place in PLACES for address in _addresses(lab, place.source)}
    members = [*senders, *(_FIRST + number for number in range(_ADDRESSES - len(senders)))]
    lines = [f"create {_SET} hash:ip maxelem 1048576", *(f"add {_SET} {member}" for member in members)]
    rules = [
        rule
        for hook in _HOOKS
        for rule in (
            f"-A {hook} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            f"-A {hook} -m set --match-set {_SET} src -j ACCEPT",
            f"-A {hook} -j DROP",
        )
    ]
    for node in NODES:
        run_in(lab, node, "ipset", "restore", text="".join(f"{line}\n" for line in lines))
        _restore(lab, node, rules)
    return {}


def _addresses(lab: Lab, machine: str) -> set[IPv4Address]:
    addresses = {a.ip for interface in lab.topology.machine(machine).interfaces for a in interface.addresses}
    return {address for address in addresses if isinstance(address, IPv4Address)}


def _loop(argv: Sequence[str], lab: Lab) -> Processes:
    """Queue every packet to a program whose argument is the queue's number."""
    for node in NODES:
        _restore(lab, node, [f"-A {hook} -j NFQUEUE --queue-num {_QUEUE}" for hook in _HOOKS])
    return {node: _start(lab, node, [*argv, str(_QUEUE)]) for node in NODES}


def _start(lab: Lab, node: str, argv: Sequence[str]) -> int:
    process = lab.network.in_namespace(
        node, argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        if output.readline().strip() != _READY:
            raise NfqError(f"{argv[0]} does not start on {node}")
    return int(process.pid)


def _engine(variant: Variant, lab: Lab) -> Processes:
    """Start the nodes' agents one after the other: with many policies each agent compiles for a while."""
    lab.store.start()
    populate(lab, variant.policies)
    for node in lab.nodes.values():
        node.start(**variant.settings)
        node.wait_until_ready()
    lab.declare_endpoints()
    for name, role in HOST_ROLES.items():
        client.call(lab.nodes[name].socket, "apply", files=[("host.yaml", host_document(lab, name, role))])
    for name, node in lab.nodes.items():
        own = sum(endpoint.node == name for endpoint in lab.topology.endpoints) + (name in HOST_ROLES)
        _await_load(node, variant.policies, own)
    return {name: node.pid for name, node in lab.nodes.items()}


def _await_load(node: LabNode, policies: int, endpoints: int) -> None:
    """Wait until a node has so many policies and local endpoints; packets that are not queued would be too fast."""
    deadline = time.monotonic() + _TIMEOUT
    while (loaded := _loaded(node.status())) != (policies, endpoints):
        if time.monotonic() > deadline:
            raise NfqError(f"{node.name} has {loaded} policies and endpoints, not {(policies, endpoints)}")
        time.sleep(_POLL_INTERVAL)


def _loaded(status: Mapping[str, Any]) -> tuple[int, int]:
    return status["documents"]["policies"], status["endpoints"]


def _restore(lab: Lab, node: str, rules: Sequence[str]) -> None:
    run_in(lab, node, "iptables-restore", text="".join(f"{line}\n" for line in ("*filter", *rules, "COMMIT")))
