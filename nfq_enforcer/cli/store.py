"""``nfq-enforcer store``: the store that the nodes of a cluster share."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import typer
from rich.text import Text

from nfq_enforcer import input_file
from nfq_enforcer.agent import client
from nfq_enforcer.cli import output, progress
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.errors import BadInput, DocumentError, NfqError
from nfq_enforcer.input_file import EXPORT_SIZE
from nfq_enforcer.observe.status import PendingEndpoint, RefusedValue, StoreStatus
from nfq_enforcer.text import printable

_BATCH = 4 << 20  # bytes of entries in one request to the API, which accepts four times as many
_HEADER = 1 << 16  # bytes that the first line of an export may have
_LONG = 300.0  # s for a result for which the whole store may be read or written

Entry = Mapping[str, Any]


def status(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """Show the store as this node sees it."""
    result = client.call(socket, "store_status")
    if result is None:
        raise NfqError("this node has no store to share: its configuration says 'store: memory:'")
    output.show(result, form, lambda result: output.properties(_rows(StoreStatus.from_json(result))))


def export(
    file: Annotated[Path, typer.Argument(help="File to write; '-' is standard output.")] = Path("-"),
    socket: Socket = DEFAULT,
) -> None:
    """Write the store's content as lines of JSON, for 'store import'; only the owner can read the file."""
    lines = (json.dumps(item) for item in _exported(socket))
    if file == Path("-"):
        for line in lines:
            output.line(line)
    else:
        count = _write(file, lines)
        output.line(f"{count - 1} entries written to {file}")


def import_(
    file: Annotated[Path, typer.Argument(help="File written by 'store export'; '-' is standard input.")],
    socket: Socket = DEFAULT,
) -> None:
    """Write an export into the store and keep its other entries; exit status 1 if an entry is refused."""
    written = unchanged = 0
    refused: list[RefusedValue] = []
    entries = _read(file)
    with progress.bar("writing entries", len(entries)) as advance:
        for batch in _batches(entries):
            imported = client.call(socket, "store_import", timeout=_LONG, entries=batch)
            written, unchanged = written + imported["written"], unchanged + imported["unchanged"]
            refused += map(RefusedValue.from_json, imported["refused"])
            advance(len(batch))
    output.line(f"{written} entries written, {unchanged} were there already")
    if refused:
        raise NfqError("\n".join([f"{len(refused)} entries refused:", *map(_refused, refused)]))


def gc(
    grace: Annotated[
        int | None,
        typer.Option("--grace", min=0, help="Only objects unused for so many seconds (default: the agent's)."),
    ] = None,
    socket: Socket = DEFAULT,
) -> None:
    """Remove unused identities, and lost nodes with their endpoints."""
    with progress.waiting("collecting"):
        removed = client.call(socket, "store_gc", timeout=_LONG, grace=grace)
    identities, endpoints, nodes = removed["identities"], removed["endpoints"], removed["nodes"]
    names = f" ({', '.join(nodes)})" if nodes else ""
    output.line(f"removed {identities} identities, {endpoints} endpoints, {len(nodes)} nodes{names}")


def summary(status: StoreStatus) -> Iterator[tuple[str, object]]:
    """Yield the rows of the store for ``nfq-enforcer status``: connection, failed saves, refused values."""
    if status.connected:
        yield "store", f"{status.store}, connected since {status.since}"
    else:
        since = f" since {status.since}" if status.since else ""
        reason = f" ({status.error})" if status.error else ""
        yield "store", Text(f"{status.store}, unreachable{since}{reason}; enforcing the last known state", "red")
    if status.unsaved:
        yield "state not saved", Text(f"since {status.unsaved.since}\n{printable(status.unsaved.error)}", "red")
    if status.refused and status.refused.count:
        lines = [str(status.refused.count), *map(_refused, status.refused.values)]
        yield "store values refused", [Text(printable(line), "red") for line in lines]


def _rows(status: StoreStatus) -> Iterator[tuple[str, object]]:
    yield from summary(status)
    for name, value in _properties(status):
        if value is not None:
            yield name, value
    if status.pending:
        yield "waiting to be written", [_pending(one) for one in status.pending]
    lag = status.lag_ms
    if lag and None not in (lag.p50, lag.p99):
        yield "lag of changes", f"median {lag.p50} ms, p99 {lag.p99} ms"


def _properties(status: StoreStatus) -> Iterator[tuple[str, object]]:
    yield "server", status.server
    yield "key prefix", status.prefix
    yield "schema", status.schema
    yield "policy revision", status.policy_revision
    yield "nodes", status.nodes
    yield "identities", status.identities
    yield "endpoints", status.endpoints
    yield "documents", status.documents
    yield "position", status.position
    yield "changes kept", status.changes_kept
    yield "commands sent", status.commands
    yield "times read anew", status.resyncs


def _pending(pending: PendingEndpoint) -> str:
    return f"{pending.endpoint}: {pending.reason}" if pending.reason else pending.endpoint


def _refused(value: RefusedValue) -> str:
    return f"{value.key}: {value.reason}"


def _exported(socket: Path) -> Iterator[Entry]:
    """Yield the header and the entries; raise NfqError if entries are missing at the end."""
    from nfq_enforcer.store.redis.backup import FORMAT, VERSION

    items = client.stream(socket, "store_export", _LONG)
    header = next(items, None)
    if not isinstance(header, dict) or header.get(FORMAT) != VERSION:
        raise NfqError(f"the agent at {socket} does not export in a format that is known here: is it of this version?")
    yield header
    count = 0
    with progress.bar("reading entries", header.get("entries", 0), prints=True) as advance:
        for item in items:
            yield item
            count += 1
            advance(1)
    _check_count(header, count, f"the export from {socket}")


def _check_count(header: Entry, count: int, what: str) -> None:
    if header.get("entries", count) != count:
        raise NfqError(f"{what} is not whole: it has {count} of {header['entries']} entries")


def _write(file: Path, lines: Iterable[str]) -> int:
    """Write a file as a whole or not at all, readable by its owner only; return the number of lines."""
    if file.exists() and not file.is_file():
        raise BadInput(f"{file}: cannot be written: it is there and is not a file")
    count = 0
    try:
        with NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", delete=False) as draft:
            try:
                for line in lines:
                    draft.write(f"{line}\n")
                    count += 1
                draft.flush()
                os.fsync(draft.fileno())
                Path(draft.name).replace(file)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(draft.name).unlink()
                raise
    except OSError as error:
        raise NfqError(f"{file}: cannot be written: {error.strerror}") from None
    return count


def _read(file: Path) -> list[Entry]:
    from nfq_enforcer.policy import yaml_source

    content, name = input_file.read(file, EXPORT_SIZE, standard_input=True), input_file.name_of(file)
    _check_header(content, name)
    text = yaml_source.decode(content, name)
    lines = [(number, _entry(line, name, number)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        _check_count(lines[0][1], len(lines) - 1, "the export")
    except NfqError as error:
        raise DocumentError(name, str(error), line=lines[-1][0], column=1) from None
    return [entry for _, entry in lines[1:]]


def _check_header(content: bytes, name: str) -> None:
    """Raise DocumentError for a file that is no export."""
    from nfq_enforcer.policy import yaml_source
    from nfq_enforcer.store.redis.backup import FORMAT, VERSION

    line = content[:_HEADER].partition(b"\n")[0]
    whole = 0 < len(line) < _HEADER
    if not whole or _entry(yaml_source.decode(line, name), name, 1).get(FORMAT) != VERSION:
        wanted = f"allowed: a file of 'nfq-enforcer store export', which begins with {{\"{FORMAT}\": {VERSION}, …}}"
        raise DocumentError(name, f"not an export of this version; {wanted}", line=1, column=1)


def _entry(line: str, file: str, number: int) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise DocumentError(file, "not JSON; an export has one object a line", line=number, column=1) from None
    if not isinstance(entry, dict):
        raise DocumentError(file, "not a JSON object; an export has one a line", line=number, column=1)
    return entry


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in batches that fit one request each; one empty batch without entries."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        more = len(json.dumps(entry))
        if batch and size + more > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += more
    yield batch
