"""Exemption of the store: policy does not apply to connections from the host to the store, and to no others."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.policymap import PolicyMap
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules import iptables
from nfq_enforcer.dataplane.rules.address_marks import STORE as STORE_SETS
from nfq_enforcer.dataplane.rules.filter_table import TABLE
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6
from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.apart import run_apart
from tests.support.labs import (
    BRIEF,
    FAMILIES,
    HTTP,
    HTTPS,
    PATIENT,
    DatapathSettings,
    Policies,
    dropped,
    from_role,
    outcomes,
    passes,
    policy,
    run_in,
    to_role,
)
from tests.support.packets import packed

STORE = 6379  # without a listener, so that a client in the world can use it as its source port
EXEMPT = """
import sys
from ipaddress import ip_address
from nfq_enforcer.dataplane.rules import iptables

services = [one.rsplit(",", 1) for one in sys.argv[1:]]
rules = iptables.Rules(iptables.families(), fail_open=False, cluster_mtus={})
rules.exempt((ip_address(address), int(port)) for address, port in services)
"""
ASK = """
import socket, sys

source, port, target, timeout = sys.argv[1:]
connection = None
try:
    for _ in sys.stdin:
        connection = connection or socket.create_connection((target, 80), float(timeout), (source, int(port)))
        connection.sendall(b"?0 \\n")
        connection.recv(1000)
        print("ok", flush=True)
except TimeoutError:
    print("timeout", flush=True)
"""
MONITOR = policy("monitor", "monitor", egress=[to_role("backend")], ingress=[from_role("frontend")])
FRONTEND = policy("frontend", "frontend", egress=[to_role("backend")])

# ``nft`` of the agents: ``nft -j list set FAMILY TABLE NAME`` prints the file of this name instead, if it exists
KEPT_SETS = """#!/bin/sh
[ "$3" = set ] && [ -e {folder}/$6 ] && exec cat {folder}/$6
exec {nft} "$@"
"""

Exempt = Callable[..., None]


@pytest.fixture(scope="module")
def kept_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files with sets, which the rules guards of the agents take for those of the kernel.

    An agent restores its sets after a change by another program, which the fixture ``exempt`` is.
    """
    folder = tmp_path_factory.mktemp("sets")
    wrapper = folder / "nft"
    wrapper.write_text(KEPT_SETS.format(folder=folder, nft=shutil.which("nft")))
    wrapper.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def guarded(make_served: MakeLab, datapath: DatapathSettings, kept_sets: Path) -> Lab:
    """Run agents whose sets of the store a test may change."""
    lab = make_served()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{kept_sets}:{os.environ['PATH']}")
        lab.start_agents(**datapath.settings)
    for name in STORE_SETS:
        (kept_sets / name).write_text(run_in(lab, "n3", "nft", "-j", "list", "set", *TABLE.split(), name))
    return lab


@pytest.fixture
def exempt(guarded: Lab) -> Iterator[Exempt]:
    """Yield a function that exempts n3's connections to these ports of the world, or of other addresses.

    Those to the store stay exempt. The exemptions end after the test.
    """

    def exempt(*ports: int, at: Mapping[int, str] | None = None) -> None:
        addresses = at or {family: str(guarded.address("world", family)) for family in FAMILIES}
        services = [f"{addresses[family]},{port}" for family in FAMILIES for port in ports]
        services.append(f"{guarded.address('store')},{STORE}")
        run_in(guarded, "n3", sys.executable, "-P", "-c", EXEMPT, *services)

    yield exempt
    exempt()


@contextmanager
def asking(lab: Lab, port: int, family: int, timeout: float) -> Iterator[Callable[[], str]]:
    """Yield a function that asks n3 from this port of the world, on one connection, and returns the outcome."""
    ends = (str(lab.address("world", family)), str(port), str(lab.address("n3", family)))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with lab.network.in_namespace("world", [sys.executable, "-c", ASK, *ends, str(timeout)], **pipes) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        write, flush, read = client.stdin.write, client.stdin.flush, client.stdout.readline

        def ask() -> str:
            write("\n")
            flush()
            return str(read().strip())

        yield ask


async def test_the_host_reaches_what_is_exempt_and_nothing_else(
    guarded: Lab, policies: Policies, exempt: Exempt
) -> None:
    await policies.apply("closed", MONITOR)
    expected = dropped(["n3"], ["world"], ways=("80/TCP", "443/TCP"))
    assert await outcomes(guarded, expected) == expected

    exempt(HTTP, STORE)

    expected = (
        passes(["n3"], ["world"], ways=("80/TCP",))
        | dropped(["n3"], ["world"], ways=("443/TCP", "53/UDP", "ping"))
        | dropped(["n3"], ["n1"], ways=("80/TCP",))
    )
    assert await outcomes(guarded, expected) == expected


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_exempt_address_may_be_that_of_a_service(
    guarded: Lab, policies: Policies, exempt: Exempt, family: int
) -> None:
    """The rules of the host translate it, as those of kube-proxy do. Its server itself is not exempt."""
    services = {4: "10.96.0.1", 6: "fd00:96::1"}
    service, target = services[family], guarded.address("world", family)
    command, route = "iptables" if family == 4 else "ip6tables", ["ip", f"-{family}", "route"]
    rule = [command, "-t", "nat", "OUTPUT", "-d", service, "-j", "DNAT", "--to-destination", str(target)]
    run_in(guarded, "n3", *route, "add", service, "dev", "eth0")
    run_in(guarded, "n3", *rule[:3], "-A", *rule[3:])
    try:
        await policies.apply("closed", MONITOR)
        exempt(HTTP, at=services)

        host = guarded.host("n3")
        assert (await host.connect(ip_address(service), HTTP, PATIENT)).ok
        assert (await host.connect(ip_address(service), HTTPS, BRIEF)).status == "timeout"
        assert (await host.connect(target, HTTP, BRIEF)).status == "timeout"
    finally:
        run_in(guarded, "n3", *rule[:3], "-D", *rule[3:])
        run_in(guarded, "n3", *route, "del", service)


async def test_endpoints_behind_the_host_are_not_exempt(guarded: Lab, policies: Policies, exempt: Exempt) -> None:
    await policies.apply("closed", FRONTEND)
    exempt(HTTP)

    expected = dropped(["front3"], ["world"], ways=("80/TCP",)) | passes(["front3"], ["back1"], ways=("80/TCP",))
    assert await outcomes(guarded, expected) == expected


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_store_opens_no_connection_to_the_host_from_whatever_port(
    guarded: Lab, policies: Policies, exempt: Exempt, family: int
) -> None:
    exempt(STORE)
    await policies.apply("closed", MONITOR)

    for port in (STORE, STORE + 1):
        with asking(guarded, port, family, BRIEF) as ask:
            assert ask() == "timeout"


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_connection_that_the_store_was_allowed_to_open_is_cut_like_any_other(
    guarded: Lab, policies: Policies, exempt: Exempt, family: int
) -> None:
    exempt(STORE)
    with asking(guarded, STORE, family, PATIENT / 5) as ask:
        assert [ask(), ask()] == ["ok", "ok"]

        await policies.apply("closed", MONITOR)

        assert ask() == "timeout"


@pytest.mark.parametrize("family", FAMILIES)
async def test_what_is_exempt_no_longer_is_judged_again_and_cut(
    guarded: Lab, policies: Policies, exempt: Exempt, family: int
) -> None:
    await policies.apply("closed", MONITOR)
    exempt(HTTP)
    connection = await guarded.host("n3").hold(guarded.address("world", family), HTTP, PATIENT)
    assert (await connection.other_end(guarded.host("world")).talk(PATIENT)).answered_by == "n3"

    exempt(HTTPS)

    assert not (await connection.talk(BRIEF)).ok
    assert (await guarded.host("n3").connect(guarded.address("world", family), HTTPS, PATIENT)).ok


async def test_the_administrator_may_still_drop_what_is_exempt(
    guarded: Lab, policies: Policies, exempt: Exempt
) -> None:
    await policies.apply("closed", MONITOR)
    exempt(HTTP, HTTPS)
    rule = f"OUTPUT -p tcp --dport {HTTPS} -j DROP".split()
    for command in ("iptables", "ip6tables"):
        run_in(guarded, "n3", command, "-t", "security", "-A", *rule)
    try:
        expected = passes(["n3"], ["world"], ways=("80/TCP",)) | dropped(["n3"], ["world"], ways=("443/TCP",))
        assert await outcomes(guarded, expected) == expected
    finally:
        for command in ("iptables", "ip6tables"):
            run_in(guarded, "n3", command, "-t", "security", "-D", *rule)


def test_it_is_told_before_or_after_the_rules_are_installed_stays_and_goes_with_them(root: None) -> None:
    here = LocalEndpoint("default/a", Identity(300), None, *(PolicyMap({}, enforced=False),) * 2, is_host=True)
    snapshot = Snapshot(1, {packed("10.0.0.1"): here}, Ipcache({}))
    queues = allocate_queues(100, 1)
    one, other = (ip_address("192.0.2.1"), STORE), (ip_address("2001:db8::1"), STORE)

    async def scenario() -> list[list[str]]:
        rules = iptables.Rules((IPV4, IPV6), fail_open=False, cluster_mtus={})
        seen = []
        rules.exempt([one])
        seen.append(_members())
        for _ in range(2):
            rules.install(snapshot, queues)
            seen.append(_members())
        rules.exempt([other])
        seen.append(_members())
        iptables.Rules((IPV4, IPV6), fail_open=False, cluster_mtus={}).install(snapshot, queues)
        seen.append(_members())
        rules.remove()
        rules.exempt([one])  # as a connection to the store that is lost while the agent stops
        return [*seen, _nft("list", "tables", "inet")]

    first, second = ["store4 192.0.2.1 . 6379"], ["store6 2001:db8::1 . 6379"]
    local = ["ends4 10.0.0.1"]
    assert run_apart(scenario()) == [first, [*local, *first], [*local, *first], [*local, *second], local, []]


def _members() -> list[str]:
    return [
        f"{name} {members}"
        for name in ("ends4", *STORE_SETS)
        for members in re.findall(r"elements = { (.*) }", "".join(_nft("list", "set", *TABLE.split(), name)))
    ]


def _nft(*words: str) -> list[str]:
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True).stdout.splitlines()
