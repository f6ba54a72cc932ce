"""Backup of a cluster: ``nfq-enforcer store export`` and ``import``.

Identities keep their numbers. An import leaves entries with equal values as they are, names the entries that it cannot
write, and writes the rest. Nodes are not exported: each agent registers its own node.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nfq_enforcer.cluster.records import EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.commands import Request
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry
from nfq_enforcer.store.redis.session import Session

FORMAT, VERSION = "nfq_enforcer_export", 1  # the header's first field
_KINDS = (Kind.IDENTITY, Kind.DOCUMENT, Kind.ENDPOINT)  # in the order of an import
_OLDEST = 1  # an id before those of all changes, so an entry of the store wins over an imported one


def export(mirror: Mirror, store: str) -> Iterator[dict[str, Any]]:
    """Yield a header, then all identities, documents and endpoints; ``store`` is the store's address in the header."""
    exported = sorted((_KINDS.index(kind), name) for kind, name in mirror.entries if kind in _KINDS)
    yield {
        FORMAT: VERSION,
        "schema": schema.VERSION,
        "store": store,
        "position": schema.write_id(mirror.position),
        "policy_revision": mirror.revision,
        "entries": len(exported),
    }
    for order, name in exported:
        key = _KINDS[order], name
        yield {"kind": key[0], "name": name, "value": json.loads(mirror.entries[key].value)}


async def import_entries(session: Session, exported: Iterable[Any]) -> dict[str, Any]:
    """Write exported entries to the store; raise BadInput for input that is no export, or StoreError."""
    records, refused = _decoded(exported)
    held = {key: entry.value for key, entry in session.mirror.entries.items()}
    different = {key: record for key, record in records.items() if held.get(key) != _value(record)}
    written = 0
    for import_kind in (_import_identities, _import_documents, _import_endpoints):
        count, left = await import_kind(session, different)
        written += count
        refused |= left
    return {
        "written": written,
        "unchanged": len(records) - len(different),
        "refused": [
            {"key": f"{schema.HASHES[kind]} {name}", "reason": reason} for (kind, name), reason in refused.items()
        ],
    }


Imported = tuple[int, dict[Key, str]]
"""The number of written entries, and the reasons for those that were not written."""


async def _import_identities(session: Session, records: Mapping[Key, Record]) -> Imported:
    commands = await session.reachability.wait_reachable()
    entries = [
        (key, StoreEntry(_OLDEST, _value(record))) for key, record in records.items() if isinstance(record, Labels)
    ]
    left = await commands.restore(entries)
    reason = "its number, or its labels, belong to another identity"
    return len(entries) - len(left), dict.fromkeys(left, reason)


async def _import_documents(session: Session, records: Mapping[Key, Record]) -> Imported:
    documents = [
        (*key, _value(record).decode())
        for key, record in records.items()
        if isinstance(record, PolicyDocument | Namespace)
    ]
    if documents:
        await session.writer.write(Request(values=documents))
    return len(documents), {}


async def _import_endpoints(session: Session, records: Mapping[Key, Record]) -> Imported:
    namespaces = session.mirror.namespaces | {
        name: record for (_, name), record in records.items() if isinstance(record, Namespace)
    }
    count, left = 0, {}
    for key, record in records.items():
        if isinstance(record, EndpointRecord):
            try:
                await session.writer.write(Request([session.mirror.endpoint_request(record, namespaces)]))
                count += 1
            except BadInput as error:
                left[key] = str(error)
    return count, left


def _decoded(exported: Iterable[Any]) -> tuple[dict[Key, Record], dict[Key, str]]:
    """Return the records of exported entries, and the reasons for those that cannot be decoded."""
    records: dict[Key, Record] = {}
    refused: dict[Key, str] = {}
    for number, entry in enumerate(exported, 1):
        try:
            key, value = (Kind(entry["kind"]), str(entry["name"])), json.dumps(entry["value"]).encode()
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"entry {number} is not one of an export: it has no kind, name and value") from None
        try:
            record = schema.decode(*key, value)
        except SchemaError as error:
            refused[key] = str(error)
        else:
            if not isinstance(record, NodeRecord):
                records[key] = record
    return records, refused


def _value(record: Record) -> bytes:
    if isinstance(record, Labels):
        return schema.encode_identity(record).encode()
    if isinstance(record, EndpointRecord):
        return schema.encode_endpoint(record).encode()
    assert not isinstance(record, NodeRecord)
    return schema.encode_document(record).encode()
