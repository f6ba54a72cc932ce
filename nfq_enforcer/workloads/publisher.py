"""Publisher: writes the policies and namespaces of an API server to the store, from every node that watches them.

All nodes of a cluster watch the same documents, and each writes each change, so that a change arrives whichever of them
is alive; equal values are not written twice. A node may be late, and must not undo a newer change with an older one:

- A document is written only over one with an older ``metadata.resourceVersion``, and deleted only if the stored version
  is not newer than the deletion. Versions are compared as numbers, as Kubernetes allows since 1.35 (KEP-5504); before,
  etcd's revisions were the same numbers.
- Only an event or a list of the API server leads to a write: a node that the API server does not answer writes nothing,
  and cannot bring back a document that has been deleted. A write that fails is repeated until it succeeds or the
  document changes again.
- A stored document of a listed kind that the API server no longer has, up to the newest version seen of that kind, is
  deleted. This is compared with each write, not only with the list: an agent that starts has its first list before it
  has the state of the store.
- A version without another content (a change of the object's status) is not written.
- A node that lags has the newer version soon. If it has not, the versions of the API server have gone back (etcd was
  restored from a backup), and ``problems`` says so.

A document that this version refuses is named with the reason (``on_refused``); the version before it, if the store has
one, stays in force.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from nfq_enforcer.cluster.source import Store
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors, NfqError
from nfq_enforcer.policy.documents import Namespace, PolicyDocument, title_of
from nfq_enforcer.policy.loader import File
from nfq_enforcer.workloads.endpoints import effective_metadata

_log = logging.getLogger(__name__)
_LATE = 60.0  # s for which the API server may have an older version than the store
Data = Mapping[str, Any]
Documents = Mapping[str, PolicyDocument | Namespace]
"""Documents by the names of their records."""


class _Due(NamedTuple):
    """_Due: a write that is due."""

    version: int | None  # of the document, or of its deletion; None: not comparable
    data: Data | None  # None: a deletion


class Publisher:
    """Publisher: the documents of one source, to be written to the store."""

    def __init__(
        self, source: str, store: Store, documents: Callable[[], Documents], changed: Callable[[], None]
    ) -> None:
        """Take the word of the source, the store, its documents as this node has them, and a call for new writes."""
        self._source = source
        self._store = store
        self._documents = documents
        self._changed = changed
        self._due: dict[str, _Due] = {}  # by the names of records
        self._names: dict[str, set[str]] = {}  # of the records that the API server has, by kind, once it is listed
        self._seen: dict[str, int | None] = {}  # newest version of each of these kinds
        self._overtaken: dict[str, float] = {}  # times of writes that were older than the store
        self.problems: dict[str, str] = {}  # reason for each refused document, by the title of the document
        self.on_refused: Callable[[Data, str], Awaitable[None]] = _ignore  # gets the data, and the reason

    # -- by the source ------------------------------------------------------------------------------------------------

    def put(self, data: Data) -> None:
        """Publish a document, as the API server has it, with ``apiVersion`` and ``kind``."""
        name = _record_name(data)
        self._due[name] = _Due(_version(data), _without_status(data))
        self._names.get(data["kind"], set()).add(name)
        self._see(data)
        self._changed()

    def remove(self, data: Data) -> None:
        """Delete a document; ``data`` is its last state, with the version of the deletion."""
        name = _record_name(data)
        self._due[name] = _Due(_version(data), None)
        self._names.get(data["kind"], set()).discard(name)
        self._see(data)
        self.problems.pop(_title(name), None)
        self._changed()

    def replace(self, kind: str, items: Iterable[Data], version: str) -> None:
        """Publish a list of all documents of a kind, of this ``resourceVersion``."""
        due = {_record_name(data): _Due(_version(data), _without_status(data)) for data in items}
        self._names[kind], self._seen[kind] = set(due), _number(version)
        self._due |= due
        self._changed()

    def _see(self, data: Data) -> None:
        kind, version = data["kind"], _version(data)
        seen = self._seen.get(kind)
        self._seen[kind] = version if seen is None or version is None else max(seen, version)

    # -- by the agent -------------------------------------------------------------------------------------------------

    async def write(self) -> bool:
        """Write all that is due; return whether anything was written. A write that fails stays due."""
        stored = self._documents()
        for name, document in stored.items():
            if self._has_ended(name, document):
                self._due.setdefault(name, _Due(self._seen[document.kind], None))
        self._note_overtaken()
        if not self._due:
            return False
        for name in [name for name, due in self._due.items() if self._is_older(due, stored.get(name))]:
            self._drop(name, stored.get(name))
        ended = {name: due for name, due in self._due.items() if due.data is None}
        new = {name: due for name, due in self._due.items() if due.data is not None}
        deleted = bool(ended) and await self._delete(ended)
        return await self._apply(new) or deleted if new else deleted

    def _drop(self, name: str, stored: PolicyDocument | Namespace | None) -> None:
        """Drop a write: the store has this content already, or a newer version."""
        data = self._due.pop(name).data
        self.problems.pop(_title(name), None)
        if data is not None and stored is not None and _content(data) != _content(stored.data):
            self._overtaken[name] = time.monotonic()

    def _note_overtaken(self) -> None:
        """Name the documents of which the API server has had an older version than the store for long."""
        for name in self._overtaken.keys() & self._due.keys():
            del self._overtaken[name]
        for name, since in self._overtaken.items():
            if time.monotonic() - since >= _LATE:
                self.problems[_title(name)] = (
                    "the store has a newer version of it than the API server: after a restore of etcd without "
                    "--bump-revision, delete it with 'policy delete --force' and change it at the API server"
                )

    def _has_ended(self, name: str, document: PolicyDocument | Namespace) -> bool:
        """Tell whether the API server no longer has a stored document of this source; a newer one is not seen yet."""
        if document.source != self._source or name in self._names.get(document.kind, {name}):
            return False
        held, seen = _version(document.data), self._seen[document.kind]
        return held is None or seen is None or held <= seen

    def _is_older(self, due: _Due, stored: PolicyDocument | Namespace | None) -> bool:
        """Tell whether the store has a newer version than a write that is due, or the same content."""
        if stored is None:
            return due.data is None
        if stored.source != self._source:
            return False
        if due.data is not None and _content(due.data) == _content(stored.data):
            return True
        held = _version(stored.data)
        if held is None or due.version is None:
            return False
        return held > due.version

    async def _delete(self, ended: Mapping[str, _Due]) -> bool:
        try:
            await self._store.delete_documents(list(ended), source=self._source)
        except BadInput:  # one of them has become a document of a person
            self._settle(ended)
            return False
        except NfqError as error:
            _log.warning("%d documents of %s are to be deleted: %s", len(ended), self._source, error)
            return False
        self._settle(ended)
        return True

    async def _apply(self, new: Mapping[str, _Due]) -> bool:
        """Write documents together or, if any is refused, in two halves; return whether any was written."""
        files = [File(f"{self._source} {_title(name)}", json.dumps(due.data)) for name, due in new.items()]
        try:
            await self._store.apply(files, source=self._source)
        except BadInput as error:
            if len(new) > 1:
                items, half = list(new.items()), len(new) // 2
                return any([await self._apply(dict(part)) for part in (items[:half], items[half:])])
            ((name, due),) = new.items()
            self._settle({name: due})
            await self._refuse(name, due.data or {}, _reason(error))
            return False
        except NfqError as error:
            _log.warning("%d documents of %s are to be written: %s", len(new), self._source, error)
            return False
        for name in new:
            self.problems.pop(_title(name), None)
        self._settle(new)
        return True

    def _settle(self, done: Mapping[str, _Due]) -> None:
        """Remove writes that are done, unless the document has changed meanwhile."""
        for name, due in done.items():
            if self._due.get(name) is due:
                del self._due[name]

    async def _refuse(self, name: str, data: Data, reason: str) -> None:
        title = _title(name)
        if self.problems.get(title) != reason:
            _log.error("%s of %s is not in force in its present form: %s", title, self._source, reason)
            self.problems[title] = reason
            await self.on_refused(data, reason)


async def _ignore(_data: Data, _reason: str) -> None:
    """Tell nobody."""


def _record_name(data: Data) -> str:
    metadata = data["metadata"]
    return f"{data['kind']}/{metadata.get('namespace') or ''}/{metadata['name']}"


def _title(name: str) -> str:
    return title_of(*name.split("/"))


def _version(data: Mapping[str, Any]) -> int | None:
    return _number(data["metadata"].get("resourceVersion"))


def _content(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a document without its version."""
    changing = ("resourceVersion", "generation")
    return {**data, "metadata": {key: value for key, value in data["metadata"].items() if key not in changing}}


def _reason(error: BadInput) -> str:
    """Return the reasons without places in a text that no person has written."""
    errors = error.errors if isinstance(error, DocumentError | DocumentErrors) else ()
    return "; ".join(f"{one.field}: {one.message}" if one.field else one.message for one in errors) or str(error)


def _number(version: object) -> int | None:
    return int(version) if isinstance(version, str) and version.isascii() and version.isdigit() else None


def _without_status(data: Data) -> Data:
    """Return a document with the fields that have an effect, and those that tell its version."""
    fields = {key: value for key, value in data.items() if key != "status"}
    return {**fields, "metadata": effective_metadata(data["metadata"])}
