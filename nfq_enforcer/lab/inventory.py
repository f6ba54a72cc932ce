"""Inventory file of a remote lab: the real machines, each with its role in the lab.

::

    machines:
    - {name: n1, ips: [172.31.0.11, "fd00:31::11"]}                             # this host: no ssh
    - {name: n2, ssh: root@172.31.0.12, ips: [172.31.0.12, "fd00:31::12"]}
    - {name: front2, ssh: root@172.31.0.12, namespace: front2, ips: [10.31.2.10, "fd00:31:2::a"]}
    …

The file names every role of the lab: its nodes, its endpoints, the router and the world. Each has an IPv4 and an IPv6
address. The settings of ssh (keys, ports, other names) stay in its own configuration.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from nfq_enforcer import input_file
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors
from nfq_enforcer.input_file import SETTINGS_SIZE
from nfq_enforcer.lab.topology import ENDPOINTS, NODES, ROUTER, WORLD
from nfq_enforcer.policy import fields, yaml_source
from nfq_enforcer.policy.validation import Items, Part, validate
from nfq_enforcer.policy.yaml_source import YamlDocument

ROLES = tuple(dict.fromkeys((*NODES, *ENDPOINTS, ROUTER, WORLD)))

_DESTINATION = re.compile(r"[A-Za-z0-9_.@:%\[\]-]+")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]+")


def _role(name: str) -> str:
    if name not in ROLES:
        raise ValueError(f"'{name}' is no part of the lab; allowed: {', '.join(ROLES)}")
    return name


def _destination(text: str) -> str:
    if text.startswith("-") or not _DESTINATION.fullmatch(text):
        raise ValueError(f"'{text}' is no destination of ssh; allowed: HOST or USER@HOST")
    return text


def _namespace(name: str) -> str:
    if name.startswith((".", "-")) or not _NAMESPACE.fullmatch(name):
        raise ValueError(f"'{name}' is no name of a network namespace; allowed: one that 'ip netns list' shows")
    return name


class RemoteMachine(Part):
    """RemoteMachine: one role of the lab, the place of its machine, and the machine's own addresses."""

    name: Annotated[str, AfterValidator(_role)]
    ips: Items[fields.AddressField]
    ssh: Annotated[str, AfterValidator(_destination)] | None = None  # None: on this host
    namespace: Annotated[str, AfterValidator(_namespace)] | None = None  # None: the host itself
    socket: str = "/run/nfq-enforcer/agent.sock"  # of a node: its agent's API


class Inventory(Part):
    """Inventory: all machines of a remote lab."""

    machines: Items[RemoteMachine]
    program: str = "nfq-enforcer"  # name or path of the command on the nodes


def read(path: Path) -> Inventory:
    """Read an inventory file; raise BadInput with every mistake in it."""
    text = yaml_source.decode(input_file.read(path, SETTINGS_SIZE), str(path))
    sources = yaml_source.parse(text, str(path))
    if len(sources) != 1:
        raise BadInput(f"{path}: a file of machines is one YAML document; this has {len(sources)}")
    inventory = validate(Inventory, sources[0].data, sources[0])
    errors = list(_errors(inventory.machines, sources[0]))
    if errors:
        raise DocumentErrors(errors)
    return inventory


def _errors(machines: Sequence[RemoteMachine], source: YamlDocument) -> Iterator[DocumentError]:
    names = [machine.name for machine in machines]
    for number, machine in enumerate(machines):
        if machine.name in names[:number]:
            yield source.error(("machines", number, "name"), f"'{machine.name}' is named twice; allowed: once")
        if sorted(address.version for address in machine.ips) != [4, 6]:
            message = "allowed: one IPv4 and one IPv6 address"
            yield source.error(("machines", number, "ips"), message)
    missing = [role for role in ROLES if role not in names]
    if missing:
        yield source.error(("machines",), f"missing: {', '.join(missing)}; the demo needs every part of the lab")
