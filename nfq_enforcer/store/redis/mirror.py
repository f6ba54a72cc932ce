"""One node's mirror of the store: all entries as the store holds them, and the records decoded from them. Pure.

A value that this version cannot decode is named and not applied; the entry before it stays. Entries are kept in full:
from them an agent restarts while the store is away, and restores entries that the store has lost.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from nfq_enforcer.cluster.records import Change, EndpointRecord, EndpointRequest, Kind, Record
from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.documents import Namespace
from nfq_enforcer.policy.fields import DEFAULT_CLUSTER
from nfq_enforcer.policy.label_filter import LabelFilter
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry
from nfq_enforcer.text import shorten

_MARKS = ("position", "serial", "revision")
_NAMED_FOREIGN = 8
_PART = 1000  # entries between two yields: some ten milliseconds


class Mirror:
    """Mirror: the store's entries, this node's indexes of them, and the changes not yet handed over or saved."""

    def __init__(self, node: str, relevant: LabelFilter, cluster: str = DEFAULT_CLUSTER) -> None:
        """Start empty; ``own`` holds the endpoints of ``node``, and ``relevant`` are the labels of an identity."""
        self._node = node
        self._cluster = cluster
        self._relevant = relevant
        self.entries: dict[Key, StoreEntry] = {}
        self.refused: dict[Key, str] = {}  # reason for each value that could not be decoded
        self.own: dict[str, EndpointRecord] = {}  # the endpoints of this node, by full name
        self.namespaces: dict[str, Namespace] = {}
        self.numbers: dict[Labels, Identity] = {}
        self.labels: dict[Identity, Labels] = {}
        self.foreign: deque[tuple[str, str]] = deque(
            maxlen=_NAMED_FOREIGN
        )  # the last foreign stream entries: id, reason
        self.foreign_count = 0  # of all foreign stream entries
        self.position = 0  # id of the last stream entry that was applied
        self.serial = 0  # of that entry
        self.revision = 0  # of the policy
        self.forks: frozenset[str] = frozenset()  # names of the forks that this node has seen
        self.resyncs = 0  # number of times that all entries were read anew
        self.complete = True  # False while all entries are being replaced
        self._last_accepted = 0  # id of the last accepted change; this node's own writes are ahead of ``position``
        self._own_numbers: dict[Labels, Identity] = {}  # every number that this node's endpoints have had, by labels
        self._changes: list[Change] = []
        self._unsaved: dict[Key, StoreEntry | None] | None = {}  # None: all entries

    def accept(self, key: Key, change_id: int, value: bytes | None) -> None:
        """Apply a change (None: the entry is deleted) unless the entry is of the same change or a later one."""
        self._last_accepted = max(self._last_accepted, change_id)
        held = self.entries.get(key)
        if held is not None and held.id >= change_id:
            return
        if value is None:
            self._delete(key)
        else:
            self._put(key, StoreEntry(change_id, value))

    def override(self, key: Key, entry: StoreEntry | None) -> None:
        """Apply a change for which this node is authoritative, also over a later one."""
        if entry is None:
            self._delete(key)
        else:
            self._put(key, entry)

    def _put(self, key: Key, entry: StoreEntry) -> None:
        try:
            record = schema.decode(*key, entry.value)
        except SchemaError as error:
            self.refused[key] = str(error)
            return
        self.refused.pop(key, None)
        self.entries[key] = entry
        self._mark_unsaved(key, entry)
        self._index(key, record)

    def note_foreign(self, entry: str, reason: str) -> None:
        """Record a stream entry that no nfq_enforcer of this version has written."""
        self.foreign_count += 1
        self.foreign.append((entry, reason))

    def replace_all(self, entries: Mapping[Key, StoreEntry], bad: Mapping[Key, str]) -> Iterator[None]:
        """Replace all entries by these, but keep an entry if its new value cannot be decoded.

        ``bad`` are the store's fields that are no entries, with the reasons. Yields after each part, so that other
        tasks can run.
        """
        self.resyncs += 1
        self.complete = False
        self._unsaved = None
        for key in [key for key in self.entries if key not in entries and key not in bad]:
            self._delete(key)
        self.refused = dict(bad)
        yield from self._put_all(entries)
        self.complete = True

    def _put_all(self, entries: Mapping[Key, StoreEntry]) -> Iterator[None]:
        for count, (key, entry) in enumerate(entries.items(), 1):
            if self.entries.get(key) != entry:
                self._put(key, entry)
            if count % _PART == 0:
                yield

    def load_saved(self, entries: Mapping[Key, StoreEntry], marks: Mapping[str, str]) -> Iterator[None]:
        """Load the entries and marks of the last known state; yields after each part, as ``replace_all`` does."""
        yield from self._put_all(entries)
        self.position, self.serial, self.revision = (int(marks.get(name, "0")) for name in _MARKS)
        if max(self.serial, self.revision) > schema.MAX_COUNT:  # saved by a version that accepted any number
            self.position = self.serial = self.revision = 0
        self.forks = frozenset(filter(None, marks.get("forks", "").split(",")))
        self._unsaved = {}

    @property
    def marks(self) -> dict[str, str]:
        """Return position, serial, revision and forks as texts, to be saved with the entries."""
        numbers = (self.position, self.serial, self.revision)
        return {**dict(zip(_MARKS, map(str, numbers), strict=True)), "forks": ",".join(sorted(self.forks))}

    @property
    def last_id(self) -> int:
        """Return the id of the last change in the mirror; other nodes' changes after ``position`` may be missing."""
        return max(self._last_accepted, self.position)

    @property
    def has_changes(self) -> bool:
        """Return whether changes wait to be handed over."""
        return bool(self._changes)

    def take_changes(self) -> list[Change]:
        """Return the changes since the last call, in their order."""
        taken, self._changes = self._changes, []
        return taken

    def take_unsaved(self) -> dict[Key, StoreEntry | None] | None:
        """Return the entries that have changed since the last call; None: any entry may have."""
        taken, self._unsaved = self._unsaved, {}
        return taken

    def is_own(self, key: Key) -> bool:
        """Return whether an entry is an endpoint of this node, or the identity of one."""
        kind, name = key
        if kind is Kind.IDENTITY:
            return any(str(record.identity) == name for record in self.own.values())
        return kind is Kind.ENDPOINT and name in self.own

    def has_seen_fork(self, marker: int) -> bool:
        """Return whether this node has seen the fork with this stream entry, by its id."""
        return any(name.endswith(f"@{schema.write_id(marker)}") for name in self.forks)

    def endpoint_request(
        self, record: EndpointRecord, namespaces: Mapping[str, Namespace] | None = None
    ) -> EndpointRequest:
        """Return an endpoint with its relevant labels, and the number of their identity or the number it prefers.

        ``namespaces`` by the names of their documents replace the mirror's, for a write that changes both.
        """
        labels = self._relevant.apply(
            record.all_labels(self.namespaces if namespaces is None else namespaces, self._cluster)
        )
        number = self.numbers.get(labels) or self._own_numbers.get(labels)
        return EndpointRequest(record, labels, derive([labels])[labels] if number is None else number)

    def is_mislabelled(self, record: EndpointRecord) -> bool:
        """Return whether an endpoint's identity stands for other labels than the endpoint's."""
        return self.endpoint_request(record).labels != self.labels.get(record.identity)

    def endpoint(self, name: str) -> EndpointRecord | None:
        """Return the record of an endpoint, by its full name; None for an unknown one."""
        entry = self.entries.get((Kind.ENDPOINT, name))
        record = self.own.get(name) or (schema.decode(Kind.ENDPOINT, name, entry.value) if entry is not None else None)
        return record if isinstance(record, EndpointRecord) else None

    def document_source(self, name: str) -> str | None:
        """Return the source of a document, by the name of its record; None for an unknown one."""
        entry = self.entries.get((Kind.DOCUMENT, name))
        return schema.document_source(entry.value) if entry is not None else None

    def counts(self) -> dict[Kind, int]:
        """Return the number of entries of each kind."""
        counts = dict.fromkeys(Kind, 0)
        for kind, _ in self.entries:
            counts[kind] += 1
        return counts

    def described_refusals(self, at_most: int) -> list[dict[str, str]]:
        """Return the first values that could not be decoded and the last foreign stream entries, with the reasons."""
        values = [(f"{schema.HASHES[kind]} {shorten(name)}", reason) for (kind, name), reason in self.refused.items()]
        return [{"key": key, "reason": reason} for key, reason in [*values, *self.foreign][:at_most]]

    def _delete(self, key: Key) -> None:
        self.refused.pop(key, None)
        if self.entries.pop(key, None) is not None:
            self._mark_unsaved(key, None)
            self._index(key, None)

    def _mark_unsaved(self, key: Key, entry: StoreEntry | None) -> None:
        if self._unsaved is not None:
            self._unsaved[key] = entry

    def _index(self, key: Key, record: Record | None) -> None:
        """Add a change to those to be handed over, and bring the indexes up to date with it."""
        kind, name = key
        self._changes.append(Change(kind, name, record))
        if kind is Kind.ENDPOINT:
            self.own.pop(name, None)
            if isinstance(record, EndpointRecord) and record.node == self._node:
                self.own[name] = record
                if record.identity in self.labels:
                    self._own_numbers[self.labels[record.identity]] = record.identity
        elif kind is Kind.IDENTITY:
            self._index_identity(Identity(int(name)), record)
        elif schema.is_namespace(key):
            self.namespaces.pop(name, None)
            if isinstance(record, Namespace):
                self.namespaces[name] = record

    def _index_identity(self, number: Identity, record: Record | None) -> None:
        before = self.labels.pop(number, None)
        if before is not None and self.numbers.get(before) == number:
            del self.numbers[before]
        if isinstance(record, Labels):
            self.labels[number] = record
            self.numbers[record] = number
