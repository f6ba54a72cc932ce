"""Source of an agent's cluster: the interface that every store implements."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from nfq_enforcer.cluster.records import Address, Change
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.documents import PolicyDocument
from nfq_enforcer.policy.loader import File
from nfq_enforcer.policy.progress import Progress


class ChangeBatch(NamedTuple):
    """ChangeBatch: changes that a store delivers together."""

    changes: list[Change]
    revision: int  # of the policy, with these changes; 0 for a store without an agreed revision
    written: float | None = None  # time of another node's write of the first change, on this node's clock


class Started(NamedTuple):
    """Started: an endpoint that was written, and its identity."""

    endpoint: str
    identity: Identity
    labels: Labels  # those that make the identity
    new: bool  # no endpoint had this identity before


class Applied(NamedTuple):
    """Applied: the documents of files that were written, and the endpoints among them."""

    documents: tuple[str, ...]
    endpoints: tuple[Started, ...]
    policies: tuple[PolicyDocument, ...] = ()


class NodeStatus(NamedTuple):
    """NodeStatus: a node, as of its last heartbeat."""

    name: str
    live: bool | None  # None: unknown, because the store is not reachable
    seen: float | None = None  # time of the last heartbeat, in seconds since the epoch on the store's clock
    revision: int | None = None  # of the policy that it enforces


class Mail(Protocol):
    """Mail: messages between the agents of one cluster, by way of their store, which keeps none of them.

    Anyone with the store's credentials can read every message, and send one in the name of any node.
    """

    def receive_by(self, receive: Callable[[bytes], None]) -> None:
        """Set the function that receives the messages to this node."""

    async def send(self, node: str, message: bytes) -> bool:
        """Send a message; return whether an agent received it; raise NfqError if the store cannot be reached."""


class Store(Protocol):
    """Store: the source of an agent's cluster.

    Changes by ``apply``, ``delete_policy`` and ``delete_endpoints`` are in the next batch of ``poll``.
    """

    @property
    def progress(self) -> Progress:
        """Return the progress of reading documents."""

    @property
    def refused(self) -> tuple[float, str] | None:
        """Return the time since which, and the reason for which, documents are refused; None if none are."""

    @property
    def revision(self) -> int | None:
        """Return the revision of the policy that the nodes agree on; None for a store without one."""

    @property
    def mail(self) -> Mail | None:
        """Return the messages between the agents; None for a store of one node."""

    async def start(self) -> None:
        """Return when a first state is available; raise NfqError if none can be."""

    async def stop(self) -> None:
        """Leave the store."""

    async def wait(self) -> None:
        """Return when changes are available."""

    def poll(self) -> ChangeBatch:
        """Return the changes since the last poll."""

    def acknowledge(self, batch: ChangeBatch) -> None:
        """Record that a batch is enforced on this node."""

    def set_enforcing(self, *, enforcing: bool) -> None:
        """Record whether this node enforces what was acknowledged: not while its rules are missing in the kernel."""

    async def register(self, addresses: tuple[Address, ...]) -> None:
        """Register this node under other addresses, as soon as the store is reachable."""

    async def apply(self, files: Sequence[File], *, ignore_other_kinds: bool = False, source: str = "") -> Applied:
        """Write the documents of files, all or nothing; raise BadInput with every error in them.

        ``ignore_other_kinds``: leave out documents of kinds that have nothing to do with policy. ``source``: the source
        that the documents come from; no other source, and no person, can change or delete them.
        """

    async def delete_policy(self, namespace: str, name: str, *, force: bool = False) -> None:
        """Delete a policy; raise BadInput if it cannot be deleted.

        ``force``: also one that comes from a source, which brings it back if it still has it.
        """

    async def delete_endpoints(self, names: Sequence[str], *, source: str = "") -> list[str]:
        """Delete endpoints; return those that existed; raise BadInput for one that comes from another source.

        With a source, an endpoint that has moved to another node stays.
        """

    async def delete_documents(self, names: Sequence[str], *, source: str) -> None:
        """Delete documents of a source, by the names of their records; one that does not exist is ignored.

        Raise BadInput for one that comes from another source.
        """

    async def enforced_by(self, revision: int, patience: float) -> list[NodeStatus]:
        """Return the nodes once every live one enforces this policy revision, or after ``patience`` seconds."""

    async def status(self) -> dict[str, Any] | None:
        """Return the status of the connection, and counts of the content; None for a store without one."""

    def connection(self) -> dict[str, Any] | None:
        """Return the part of the status that needs no count of the content; None for a store without a connection."""
