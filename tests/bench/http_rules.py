"""The proxy without an agent: one Envoy with a slot for each number of rules, so that only the rules differ.

The agent's part of the proxy detaches after it has set the rules: nobody reads the access log, and Envoy goes on. A
socket without a server takes Envoy's requests for news: refused, Envoy would repeat them with a ninth of a core.
"""

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nfq_enforcer.core.tables.l7 import HttpMatch
from nfq_enforcer.proxy.envoy import XDS
from nfq_enforcer.proxy.rule_set import RuleSet
from tests.bench.http_load import Client, serving
from tests.support.proxies import SERVER, SERVER_PORT, SLOTS, UID, ProxyLab, rule_set

NO_RULES = "no rules"
COUNTS = (1, 10, 100)
_LAST = "/userdata/[0-9]+"
_FIRST_SLOT = SLOTS  # the lab's own server does not listen on the ports of later slots


def name(count: int) -> str:
    """Return the name of a number of rules in tables."""
    return f"{count} rule" if count == 1 else f"{count} rules"


def _rules(count: int) -> RuleSet:
    """Return rules of which the last one allows the requests."""
    others = (HttpMatch("GET", f"/service{number}/[0-9]+") for number in range(1, count))
    return rule_set(*others, HttpMatch("GET", _LAST))


def _hosted(count: int) -> RuleSet:
    """Return rules that cannot share an expression, since each has a host of its own."""
    others = (HttpMatch("GET", _LAST, rf"service{number}\.example\.com") for number in range(1, count))
    return rule_set(*others, HttpMatch("GET", _LAST))


RULE_SETS: Mapping[str, RuleSet] = {
    NO_RULES: RuleSet((None,)),
    **{name(count): _rules(count) for count in COUNTS},
    f"{name(COUNTS[-1])}, each with a host": _hosted(COUNTS[-1]),
}


@contextmanager
def _silent(path: Path) -> Iterator[None]:
    """Take the proxy's connections to a socket, in place of the one that was there, and never answer."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        os.chown(path, UID, -1)
        listening.listen(1024)
        yield


@contextmanager
def clients() -> Iterator[dict[str, Client]]:
    """Run Envoy and a server; yield a client for each rule set, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        lab = ProxyLab(Path(folder, "proxy"))
        try:
            slots = dict(zip(RULE_SETS, range(_FIRST_SLOT, _FIRST_SLOT + len(RULE_SETS)), strict=True))
            for each, slot in slots.items():
                lab.open(slot, RULE_SETS[each])
            pid = lab.proxy.pid
            assert pid is not None
            lab.node.run(lab.proxy.detach())
            ports = {each: SERVER_PORT + slot for each, slot in slots.items()}
            with _silent(lab.directory / XDS), serving(lab.network.server, ports.values(), Path(folder, "nginx")):
                yield {each: Client(lab.network.client, SERVER[4], port, (pid,)) for each, port in ports.items()}
        finally:
            lab.close()
