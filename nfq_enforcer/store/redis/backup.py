"""A cluster written down and read back: ``nfq-enforcer store export`` and ``import``.

Identities keep their numbers. What is in the store just so already is left alone, what cannot be taken is named, and
the rest is taken. Nodes are not written down: each says itself where it is.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nfq_enforcer.cluster.records import EndpointRecord, Kind, NodeRecord, Record
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput
from nfq_enforcer.policy import enforceable
from nfq_enforcer.policy.documents import Namespace, PolicyDocument
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.commands import Request
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, SchemaError, StoreEntry
from nfq_enforcer.store.redis.session import Session

FORMAT, VERSION = "nfq_enforcer_export", 1  # the header's first field
_KINDS = (Kind.IDENTITY, Kind.DOCUMENT, Kind.ENDPOINT)
_OLDEST = 1  # an id below those of all changes: what is in the store wins


def export(entries: Mirror, store: str) -> Iterator[dict[str, Any]]:
    """Yield a header, then all that the cluster has agreed on; ``store`` says in the header where that was."""
    chosen = sorted((_KINDS.index(kind), name) for kind, name in entries.entries if kind in _KINDS)
    yield {
        FORMAT: VERSION,
        "schema": schema.VERSION,
        "store": store,
        "position": schema.write_id(entries.position),
        "policy_revision": entries.revision,
        "entries": len(chosen),
    }
    for place, name in chosen:
        key = _KINDS[place], name
        yield {"kind": key[0], "name": name, "value": json.loads(entries.entries[key].value)}


async def take_in(member: Session, exported: Iterable[Any]) -> dict[str, Any]:
    """Give the store what was exported; raise BadInput for what is no export at all, or StoreError."""
    records, refused = _understood(exported)
    held = {key: entry.value for key, entry in member.entries.entries.items()}
    news = {key: record for key, record in records.items() if held.get(key) != _value(record)}
    written = 0
    for taking in (_take_identities, _take_documents, _take_endpoints):
        taken, left = await taking(member, news)
        written += taken
        refused |= left
    return {
        "written": written,
        "unchanged": len(records) - len(news),
        "refused": [{"key": f"{schema.HASHES[kind]} {name}", "reason": why} for (kind, name), why in refused.items()],
    }


Taken = tuple[int, dict[Key, str]]
"""How many were written, and why others were not."""


async def _take_identities(member: Session, news: Mapping[Key, Record]) -> Taken:
    store = await member.reachable()
    entries = [(key, StoreEntry(_OLDEST, _value(one))) for key, one in news.items() if isinstance(one, Labels)]
    left = await store.restore(entries)
    reason = "its number, or its labels, belong to another identity"
    return len(entries) - len(left), dict.fromkeys(left, reason)


async def _take_documents(member: Session, news: Mapping[Key, Record]) -> Taken:
    documents = [
        (*key, _value(one).decode()) for key, one in news.items() if isinstance(one, PolicyDocument | Namespace)
    ]
    if documents:
        await member.write(Request(values=documents))
    return len(documents), {}


async def _take_endpoints(member: Session, news: Mapping[Key, Record]) -> Taken:
    namespaces = member.entries.namespaces | {
        name: one for (_, name), one in news.items() if isinstance(one, Namespace)
    }
    taken, left = 0, {}
    for key, one in news.items():
        if isinstance(one, EndpointRecord):
            try:
                await member.write(Request([member.entries.placed(one, namespaces)]))
                taken += 1
            except BadInput as error:
                left[key] = str(error)
    return taken, left


def _understood(exported: Iterable[Any]) -> tuple[dict[Key, Record], dict[Key, str]]:
    """Return the records of exported entries, and why others are not understood."""
    records: dict[Key, Record] = {}
    refused: dict[Key, str] = {}
    for number, one in enumerate(exported, 1):
        try:
            key, value = (Kind(one["kind"]), str(one["name"])), json.dumps(one["value"]).encode()
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"entry {number} is not one of an export: it has no kind, name and value") from None
        try:
            record = schema.decode(*key, value)
            enforceable.check([record] if isinstance(record, PolicyDocument) else [])
        except (SchemaError, BadInput) as error:
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
