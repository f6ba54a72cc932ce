"""The file that names the machines of a site: real hosts that play the parts of the lab's.

::

    machines:
    - {name: n1, ips: [172.31.0.11, "fd00:31::11"]}                             # this host: no ssh
    - {name: n2, ssh: root@172.31.0.12, ips: [172.31.0.12, "fd00:31::12"]}
    - {name: front2, ssh: root@172.31.0.12, namespace: front2, ips: [10.31.2.10, "fd00:31:2::a"]}
    …

Every part of the lab is named: its nodes, its endpoints, the router and the world. Each has an IPv4 and an IPv6
address. What ssh needs to get in (keys, ports, other names) is for its own configuration to say.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors
from nfq_enforcer.lab.topology import ENDPOINTS, NODES, ROUTER, WORLD
from nfq_enforcer.policy import fields, yaml_source
from nfq_enforcer.policy.validation import Items, Part, validate
from nfq_enforcer.policy.yaml_source import YamlDocument

PARTS = tuple(dict.fromkeys((*NODES, *ENDPOINTS, ROUTER, WORLD)))

_DESTINATION = re.compile(r"[A-Za-z0-9_.@:%\[\]-]+")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]+")


def _part(name: str) -> str:
    if name not in PARTS:
        raise ValueError(f"'{name}' is no part of the lab; allowed: {', '.join(PARTS)}")
    return name


def _destination(written: str) -> str:
    if written.startswith("-") or not _DESTINATION.fullmatch(written):
        raise ValueError(f"'{written}' is no destination of ssh; allowed: HOST or USER@HOST")
    return written


def _namespace(name: str) -> str:
    if name.startswith((".", "-")) or not _NAMESPACE.fullmatch(name):
        raise ValueError(f"'{name}' is no name of a network namespace; allowed: one that 'ip netns list' shows")
    return name


class Machine(Part):
    """One part: where it is, and its own addresses."""

    name: Annotated[str, AfterValidator(_part)]
    ips: Items[fields.AddressField]
    ssh: Annotated[str, AfterValidator(_destination)] | None = None  # none: on this host
    namespace: Annotated[str, AfterValidator(_namespace)] | None = None  # none: the host itself
    socket: str = "/run/nfq-enforcer/agent.sock"  # of a node: its agent's API


class Inventory(Part):
    """All machines of a site."""

    machines: Items[Machine]
    program: str = "nfq-enforcer"  # what the command is called on the nodes


def read(path: Path) -> Inventory:
    """Return the machines that a file names; raise BadInput with every mistake in it."""
    try:
        text = yaml_source.decode(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    written = yaml_source.parse(text, str(path))
    if len(written) != 1:
        raise BadInput(f"{path}: a file of machines is one YAML document; this has {len(written)}")
    hosts = validate(Inventory, written[0].data, written[0])
    problems = list(_problems(hosts.machines, written[0]))
    if problems:
        raise DocumentErrors(problems)
    return hosts


def _problems(machines: Sequence[Machine], written: YamlDocument) -> Iterator[DocumentError]:
    names = [machine.name for machine in machines]
    for number, machine in enumerate(machines):
        if machine.name in names[:number]:
            yield written.error(("machines", number, "name"), f"'{machine.name}' is named twice; allowed: once")
        if sorted(address.version for address in machine.ips) != [4, 6]:
            message = "allowed: one IPv4 and one IPv6 address"
            yield written.error(("machines", number, "ips"), message)
    missing = [part for part in PARTS if part not in names]
    if missing:
        yield written.error(("machines",), f"missing: {', '.join(missing)}; the demo needs every part of the lab")
