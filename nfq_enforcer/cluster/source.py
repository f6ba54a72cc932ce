"""Where an agent has its cluster from: what every store offers it, whichever it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from nfq_enforcer.cluster.records import Change
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.loader import File


class ChangeBatch(NamedTuple):
    """What a store hands over."""

    changes: list[Change]
    revision: int  # of the policy, with these changes; 0 where the nodes have not agreed on one
    written: float | None = None  # when another node wrote the first of them, on this node's clock


class Started(NamedTuple):
    """An endpoint that was written, and the identity that it has got."""

    endpoint: str
    identity: Identity
    labels: Labels  # those that make the identity
    new: bool  # no endpoint had this identity before


class Applied(NamedTuple):
    """What was written of files."""

    documents: tuple[str, ...]
    endpoints: tuple[Started, ...]


class NodeStatus(NamedTuple):
    """A node, as the store has heard of it."""

    name: str
    live: bool | None  # None: without the store nobody knows
    seen: float | None = None  # seconds since the epoch, on the store's clock
    revision: int | None = None  # of the policy that it enforces


class Store(Protocol):
    """What an agent asks of its store. Whoever applies or deletes takes what follows of it next."""

    @property
    def refused(self) -> tuple[float, str] | None:
        """Return since when, and why, documents are not taken; None if all are."""

    @property
    def revision(self) -> int | None:
        """Return the revision of the policy that the nodes have agreed on; None where they do not."""

    async def start(self) -> None:
        """Return when there is a first state to take; raise NfqError if there can be none."""

    async def stop(self) -> None:
        """Leave the store."""

    async def wait(self) -> None:
        """Return when there are changes to take."""

    def poll(self) -> ChangeBatch:
        """Return the changes since the last time."""

    def acknowledge(self, handed: ChangeBatch) -> None:
        """Note that what was handed over is in force on this node."""

    async def apply(self, files: Sequence[File]) -> Applied:
        """Take files of documents, all or nothing; raise BadInput for all that is wrong with them."""

    async def delete_policy(self, namespace: str, name: str) -> None:
        """Take a policy out; raise BadInput if that cannot be."""

    async def delete_endpoints(self, names: Sequence[str]) -> list[str]:
        """Take endpoints out; return those that there were."""

    async def enforced_by(self, revision: int, patience: float) -> list[NodeStatus]:
        """Return the nodes once every live one enforces this revision of the policy, or patience has run out."""

    async def status(self) -> dict[str, Any] | None:
        """Return what there is to say of the connection; None where there is none."""
