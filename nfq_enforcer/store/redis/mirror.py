"""What one member holds of the store: every entry, understood as far as this program does. Pure.

A value that cannot be understood is left out and named, and what was known before stays. Entries are whole: with them
a member restarts while the store is away, and gives back what the store has lost.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, Placed, Record
from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.policy.documents import Namespace
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry

_MARKS = ("position", "serial", "revision")
_SKIPPED = 8
_PART = 1000  # entries: some ten milliseconds


class Mirror:
    """The entries, what follows from them for this node, and what has changed since somebody took the changes."""

    def __init__(self, node: str, relevant: LabelFilter) -> None:
        """Hold nothing yet; ``node`` is whose own endpoints are told apart, ``relevant`` what makes an identity."""
        self._node = node
        self._relevant = relevant
        self.entries: dict[Key, StoreEntry] = {}
        self.refused: dict[Key, str] = {}  # why each value is not understood
        self.own: dict[str, EndpointRecord] = {}  # the endpoints of this node
        self.namespaces: dict[str, Namespace] = {}
        self.numbers: dict[Labels, Identity] = {}
        self.labels: dict[Identity, Labels] = {}
        self.skipped: deque[tuple[str, str]] = deque(maxlen=_SKIPPED)  # the last foreign changes, each with the reason
        self.skips = 0  # how many there were
        self.position = 0  # id of the last change in the stream that is in here
        self.serial = 0  # its serial
        self._reach = 0  # id of the last change, of those made by this node before they came by in the stream
        self.revision = 0  # of the policy
        self.forks: frozenset[str] = frozenset()  # those that this node has seen, by their names
        self.resyncs = 0  # how often all entries were taken anew
        self._known_as: dict[Labels, Identity] = {}  # what labels of this node's endpoints have ever had
        self.whole = True  # not in the middle of being replaced
        self._changes: list[Change] = []
        self._unsaved: dict[Key, StoreEntry | None] | None = {}  # None: all

    def accept(self, key: Key, number: int, value: bytes | None) -> None:
        """Take a change that has this id; ``None``: the entry is gone. One that is not newer changes nothing."""
        self._reach = max(self._reach, number)
        known = self.entries.get(key)
        if known is not None and known.id >= number:
            return
        if value is None:
            self._forget(key)
        else:
            self._take(key, StoreEntry(number, value))

    def assume(self, key: Key, entry: StoreEntry | None) -> None:
        """Take what this node knows better than the store, whatever the id."""
        if entry is None:
            self._forget(key)
        else:
            self._take(key, entry)

    def _take(self, key: Key, entry: StoreEntry) -> None:
        try:
            record = schema.decode(*key, entry.value)
        except SchemaError as error:
            self.refused[key] = str(error)
            return
        self.refused.pop(key, None)
        self.entries[key] = entry
        self._note_unsaved(key, entry)
        self._note(key, record)

    def skip(self, what: str, reason: str) -> None:
        """Note something in the stream that is nobody's change."""
        self.skips += 1
        self.skipped.append((what, reason))

    def replacing(self, entries: Mapping[Key, StoreEntry], bad: Mapping[Key, str]) -> Iterator[None]:
        """Hold these entries and no others, but keep what is known where a value is not understood.

        ``bad`` are those of the store that are not even entries. It goes in parts, and yields after each, so that
        others have their turn meanwhile.
        """
        self.resyncs += 1
        self.whole = False
        self._unsaved = None
        for key in [key for key in self.entries if key not in entries and key not in bad]:
            self._forget(key)
        self.refused = dict(bad)
        yield from self._taking(entries)
        self.whole = True

    def _taking(self, entries: Mapping[Key, StoreEntry]) -> Iterator[None]:
        for count, (key, entry) in enumerate(entries.items(), 1):
            if self.entries.get(key) != entry:
                self._take(key, entry)
            if count % _PART == 0:
                yield

    def recalling(self, entries: Mapping[Key, StoreEntry], marks: Mapping[str, str]) -> Iterator[None]:
        """Hold what was saved; yield from time to time, as ``replacing`` does."""
        yield from self._taking(entries)
        self.position, self.serial, self.revision = (int(marks.get(name, "0")) for name in _MARKS)
        self.forks = frozenset(filter(None, marks.get("forks", "").split(",")))
        self._unsaved = {}

    @property
    def marks(self) -> dict[str, str]:
        """Return how far the entries go, to be saved with them."""
        numbers = (self.position, self.serial, self.revision)
        return {**dict(zip(_MARKS, map(str, numbers), strict=True)), "forks": ",".join(sorted(self.forks))}

    @property
    def reach(self) -> int:
        """Return the id of the last change that is known; of others between ``position`` and this, some may not be."""
        return max(self._reach, self.position)

    @property
    def changed(self) -> bool:
        """Say whether there are changes that nobody has taken."""
        return bool(self._changes)

    def take(self) -> list[Change]:
        """Return the changes since the last time, in their order."""
        taken, self._changes = self._changes, []
        return taken

    def take_unsaved(self) -> dict[Key, StoreEntry | None] | None:
        """Return the entries that have changed since the last time; None: all may have."""
        taken, self._unsaved = self._unsaved, {}
        return taken

    def is_own(self, key: Key) -> bool:
        """Say whether an entry is an endpoint of this node, or the identity of one."""
        kind, name = key
        if kind is Kind.IDENTITY:
            return any(str(one.identity) == name for one in self.own.values())
        return kind is Kind.ENDPOINT and name in self.own

    def knows(self, fork: int) -> bool:
        """Say whether this node has seen the fork that an entry of the stream, of this id, tells of."""
        return any(name.endswith(f"@{schema.write_id(fork)}") for name in self.forks)

    def placed(self, record: EndpointRecord, namespaces: Mapping[str, Namespace] | None = None) -> Placed:
        """Return an endpoint with the labels that make its identity, and the number that it has or shall have.

        ``namespaces`` by the names of their documents, if they are about to be others than those that are held.
        """
        labels = self._relevant.apply(record.all_labels(self.namespaces if namespaces is None else namespaces))
        known = self.numbers.get(labels) or self._known_as.get(labels)
        return Placed(record, labels, derive([labels])[labels] if known is None else known)

    def is_mislabelled(self, record: EndpointRecord) -> bool:
        """Say whether an endpoint has the identity of other labels than its own."""
        return self.placed(record).labels != self.labels.get(record.identity)

    def counts(self) -> dict[Kind, int]:
        """Return how many entries there are of each kind."""
        counts = dict.fromkeys(Kind, 0)
        for kind, _ in self.entries:
            counts[kind] += 1
        return counts

    def described_refusals(self, at_most: int) -> list[dict[str, str]]:
        """Return the first values that are not understood, each with its reason."""
        values = [(f"{schema.HASHES[kind]} {name}", reason) for (kind, name), reason in self.refused.items()]
        return [{"key": key, "reason": reason} for key, reason in [*values, *self.skipped][:at_most]]

    def _forget(self, key: Key) -> None:
        self.refused.pop(key, None)
        if self.entries.pop(key, None) is not None:
            self._note_unsaved(key, None)
            self._note(key, None)

    def _note_unsaved(self, key: Key, entry: StoreEntry | None) -> None:
        if self._unsaved is not None:
            self._unsaved[key] = entry

    def _note(self, key: Key, record: Record | None) -> None:
        kind, name = key
        self._changes.append(Change(kind, name, record))
        if kind is Kind.ENDPOINT:
            self.own.pop(name, None)
            if isinstance(record, EndpointRecord) and record.node == self._node:
                self.own[name] = record
                if record.identity in self.labels:
                    self._known_as[self.labels[record.identity]] = record.identity
        elif kind is Kind.IDENTITY:
            self._note_identity(Identity(int(name)), record)
        elif schema.is_namespace(key):
            self.namespaces.pop(name, None)
            if isinstance(record, Namespace):
                self.namespaces[name] = record

    def _note_identity(self, number: Identity, record: Record | None) -> None:
        before = self.labels.pop(number, None)
        if before is not None and self.numbers.get(before) == number:
            del self.numbers[before]
        if isinstance(record, Labels):
            self.labels[number] = record
            self.numbers[record] = number
