"""Security identities: the numbers policy speaks of instead of addresses."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import NewType

from nfq_enforcer.core.labels import Label, Labels

Identity = NewType("Identity", int)

ANY = Identity(0)  # in a policy map: every peer
HOST = Identity(1)
WORLD = Identity(2)
UNMANAGED = Identity(3)
HEALTH = Identity(4)
INIT = Identity(5)
REMOTE_NODE = Identity(6)
KUBE_APISERVER = Identity(7)
INGRESS = Identity(8)

CLUSTER_MIN = 256
CLUSTER_MAX = (1 << 24) - 1
LOCAL = 1 << 24  # bit set: an identity that one node has given, to a CIDR for example; it never travels

_RESERVED_NAMES = {
    HOST: "host",
    WORLD: "world",
    UNMANAGED: "unmanaged",
    HEALTH: "health",
    INIT: "init",
    REMOTE_NODE: "remote-node",
    KUBE_APISERVER: "kube-apiserver",
    INGRESS: "ingress",
}

RESERVED: dict[Identity, Labels] = {
    number: Labels([Label("reserved", name, "")]) for number, name in _RESERVED_NAMES.items()
}


def travels(identity: int) -> bool:
    """Say whether a stamp may bear this identity: those of endpoints, agreed in the whole cluster."""
    return CLUSTER_MIN <= identity <= CLUSTER_MAX


def derive(label_sets: Iterable[Labels]) -> dict[Labels, Identity]:
    """Return a number for each set of labels, the same on every node that knows the same sets.

    For clusters without a store: a number is the hash of the canonical labels (BLAKE2b, 32 bits, into the cluster
    range). Sets that meet at one number are told apart by the next free one, in the order of their text.
    """
    span = CLUSTER_MAX - CLUSTER_MIN + 1
    numbers: dict[Labels, Identity] = {}
    taken: set[int] = set()
    for labels in sorted(set(label_sets), key=str):
        number = int.from_bytes(blake2b(str(labels).encode(), digest_size=4).digest(), "big") % span
        while number in taken:
            number = (number + 1) % span
        taken.add(number)
        numbers[labels] = Identity(CLUSTER_MIN + number)
    return numbers
