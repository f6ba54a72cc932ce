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

from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.options import DEFAULT, Format, Output, Socket
from nfq_enforcer.errors import BadInput, DocumentError, NfqError
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.store.redis.backup import FORMAT, VERSION

app = typer.Typer(help="The store that the nodes of a cluster share.", no_args_is_help=True)

_BATCH = 4 << 20  # bytes of entries in one request to the API, which takes four times as much
_LONG = 300.0  # seconds for an answer that all of the store may be read or written for

_PROPERTIES = {  # of a store's status, by what people call them
    "server": "server",
    "prefix": "key prefix",
    "schema": "schema",
    "policy_revision": "policy revision",
    "nodes": "nodes",
    "identities": "identities",
    "endpoints": "endpoints",
    "documents": "documents",
    "position": "position",
    "changes_kept": "changes kept",
    "commands": "commands sent",
    "resyncs": "times read anew",
}

Entry = Mapping[str, Any]


@app.callback()
def store() -> None:
    """Ask and keep the store."""


@app.command()
def status(form: Output = Format.TABLE, socket: Socket = DEFAULT) -> None:
    """Show the store as this node sees it."""
    seen = client.call(socket, "store_status")
    if seen is None:
        raise NfqError("this node has no store to share: its configuration says 'store: memory:'")
    output.show(seen, form, lambda seen: output.properties(_rows(seen)))


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write; '-' is standard output.")] = Path("-"),
    socket: Socket = DEFAULT,
) -> None:
    """Write all that the store holds, as lines of JSON that 'store import' reads; the file is for its owner's eyes."""
    lines = (json.dumps(item) for item in _exported(socket))
    if file == Path("-"):
        for line in lines:
            print(line)
    else:
        count = _write(file, lines)
        print(f"{count - 1} entries written to {file}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What 'store export' has written.")],
    socket: Socket = DEFAULT,
) -> None:
    """Write an export into the store, beside what it holds; exit status 1 if an entry is refused."""
    written = unchanged = 0
    refused: list[Mapping[str, str]] = []
    for batch in _batches(_read(file)):
        done = client.call(socket, "store_import", timeout=_LONG, entries=batch)
        written, unchanged = written + done["written"], unchanged + done["unchanged"]
        refused += done["refused"]
    print(f"{written} entries written, {unchanged} were there already")
    if refused:
        raise NfqError("\n".join([f"{len(refused)} entries refused:", *map(_reason, refused)]))


@app.command()
def gc(
    grace: Annotated[
        int | None, typer.Option("--grace", min=0, help="Seconds that it must have been unused (default: the agent's).")
    ] = None,
    socket: Socket = DEFAULT,
) -> None:
    """Remove what nobody uses any more: identities, and nodes that are gone with their endpoints."""
    done = client.call(socket, "store_gc", timeout=_LONG, grace=grace)
    nodes = f" ({', '.join(done['nodes'])})" if done["nodes"] else ""
    print(f"removed {done['identities']} identities, {done['endpoints']} endpoints, {len(done['nodes'])} nodes{nodes}")


def summary(seen: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the rows that ``nfq-enforcer status`` has of the store: whether it is reached, and what is wrong in it."""
    if seen["connected"]:
        yield "store", f"{seen['store']}, connected since {seen['since']}"
    else:
        since = f" since {seen['since']}" if seen.get("since") else ""
        reason = f" ({seen['error']})" if seen.get("error") else ""
        yield "store", Text(f"{seen['store']}, unreachable{since}{reason}; enforcing the last known state", "red")
    refused = seen.get("refused")
    if refused and refused["count"]:
        lines = map(_reason, refused["values"])
        yield "store values refused", Text("\n".join([str(refused["count"]), *lines]), "red")


def _rows(seen: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield from summary(seen)
    for key, name in _PROPERTIES.items():
        if seen.get(key) is not None:
            yield name, seen[key]
    if seen.get("pending"):
        yield "waiting to be written", "\n".join(map(_waiting, seen["pending"]))
    lag = seen.get("lag_ms")
    if lag and None not in (lag["p50"], lag["p99"]):
        yield "lag of changes", f"median {lag['p50']} ms, p99 {lag['p99']} ms"


def _waiting(one: Mapping[str, Any]) -> str:
    return f"{one['endpoint']}: {one['reason']}" if one.get("reason") else str(one["endpoint"])


def _reason(refused: Mapping[str, str]) -> str:
    return f"{refused['key']}: {refused['reason']}"


def _exported(socket: Path) -> Iterator[Entry]:
    """Yield the header and the entries; raise NfqError if they end before all are there."""
    items = client.stream(socket, "store_export", _LONG)
    header = next(items, None)
    if not isinstance(header, dict) or header.get(FORMAT) != VERSION:
        raise NfqError(f"the agent at {socket} does not export in a format that is known here: is it of this version?")
    yield header
    count = 0
    for item in items:
        yield item
        count += 1
    _check_count(header, count, f"the export from {socket}")


def _check_count(header: Entry, count: int, what: str) -> None:
    if header.get("entries", count) != count:
        raise NfqError(f"{what} is not whole: it has {count} of {header['entries']} entries")


def _write(file: Path, lines: Iterable[str]) -> int:
    """Write a file whole or not at all, readable by its owner only; return the number of lines."""
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
    try:
        text = yaml_source.decode(file.read_bytes(), str(file))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    lines = [
        (number, _entry(line, str(file), number)) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    header = lines[0][1] if lines else {}
    if header.get(FORMAT) != VERSION:
        wanted = f"allowed: what 'nfq-enforcer store export' writes, which begins with {{\"{FORMAT}\": {VERSION}, …}}"
        raise DocumentError(str(file), f"not an export of this version; {wanted}", line=1, column=1)
    try:
        _check_count(header, len(lines) - 1, "the export")
    except NfqError as error:
        raise DocumentError(str(file), str(error), line=lines[-1][0], column=1) from None
    return [entry for _, entry in lines[1:]]


def _entry(line: str, file: str, number: int) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise DocumentError(file, "not JSON; an export has one object a line", line=number, column=1) from None
    if not isinstance(entry, dict):
        raise DocumentError(file, "not a JSON object; an export has one a line", line=number, column=1)
    return entry


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in lots that one request can hold; one lot if there are none."""
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
