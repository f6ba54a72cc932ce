"""Security identities: the numbers that policy uses instead of addresses."""

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
LOCAL = 1 << 24  # this bit set: a local identity, of a CIDR for example; no stamp bears it

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
    """Tell whether an identity belongs to endpoints, agreed in the cluster, so that stamps bear it."""
    return CLUSTER_MIN <= identity <= CLUSTER_MAX


def may_be_stamped(identity: int) -> bool:
    """Tell whether a stamp may bear this identity: that of an endpoint, or ``world``, which is trusted with nothing."""
    return travels(identity) or identity == WORLD


def derive(label_sets: Iterable[Labels]) -> dict[Labels, Identity]:
    """Return a number for each label set, the same on every node with the same sets.

    For clusters without a store: a number is the hash of the canonical labels (BLAKE2b, 32 bits, modulo the cluster
    range). Sets with the same hash get the next free number, in the order of their text.
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
