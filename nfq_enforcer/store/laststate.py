"""The last known state of a cluster on disk, so that an agent that starts while the store is away enforces it.

What ``load`` returns was saved, all of it, by one ``save`` after another: a kill in the middle of a save leaves the
state before it, and a power cut may take the last few. Anything else that is found (a torn page, a flipped bit, a lost
row, the file of another cluster, a format of a newer version) is refused as a whole and set aside: no state is better
than a wrong one.

It is a database of SQLite, which brings the atomic saves. SQLite does not notice a flipped bit inside of a value, so
each row has a digest of its own, and one row the count and the sum (XOR) of all of these: with it a missing row is
noticed, and a save still costs no more than what it changes. The digests are keyed with the name of the cluster.

Only one process at a time has the file open. An object is for one thread at a time, whichever it is.
"""

import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.records import Kind
from nfq_enforcer.store.schema import Entry

_FORMAT = 1
_APPLICATION = 0x6E667165  # "nfqe", in the header of the file
_RECORDS = (
    "CREATE TABLE record (kind TEXT NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL,"
    " digest BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID"
)
_WHOLE = "CREATE TABLE whole (count INTEGER NOT NULL, digest BLOB NOT NULL)"
_MARK, _PENDING = ".mark", ".pending"  # beside the kinds of records, none of which has a dot
_DIGEST_SIZE = 16
_PATIENCE = 5.0  # seconds for an agent that is just ending to let go of the file
_FILES = ("", "-wal")  # endings: the database and its write-ahead log
_MEMORY = "/dev/shm"
_LONGEST_LOG = 4 << 20  # bytes that the write-ahead log keeps between saves

# What is wrong with these is not the file; all else that SQLite complains of is.
_OF_THE_SYSTEM = {
    sqlite3.SQLITE_BUSY: "another process has it open",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk refused to read or write",
    sqlite3.SQLITE_LOCKED: "another process has it open",
    sqlite3.SQLITE_PERM: "the permissions do not allow it",
    sqlite3.SQLITE_READONLY: "it cannot be written to",
}


class State(NamedTuple):
    """All that was saved."""

    entries: dict[tuple[Kind, str], Entry]
    marks: dict[str, str]  # how far it goes: positions in streams and the like
    pending: list[tuple[str, bytes]]  # what this node has still to tell the store, in order


class _Damaged(Exception):
    """The file is not what a save has left; ``str`` says in which way."""


class _Row(NamedTuple):
    kind: str
    name: str
    id: str  # as text: a stream's numbers are longer than SQLite's 64 bits
    value: bytes


class LastState:
    """The file of one cluster in a folder.

    A save that failed leaves the file ``behind``: what it would have brought is missing, so until a save with
    ``replace`` succeeds all others are refused.
    """

    def __init__(self, folder: Path, cluster: str) -> None:
        """Take the folder, and the cluster's name, part of which the file's name shows; nothing is opened yet."""
        key = blake2b(cluster.encode(), digest_size=32)
        self.path = folder / f"{_readable(cluster)}-{key.hexdigest()[:16]}.state"
        self.problem: str | None = None  # what the last load found wrong, for the log
        self.behind = False
        self._cluster, self._key = cluster, key.digest()
        self._connection: sqlite3.Connection | None = None

    def load(self) -> State | None:
        """Return what was saved last; None if nothing was, or if it is damaged: see ``problem``. Or raise NfqError."""
        self.problem = None
        try:
            with self._telling():
                if self._connection is None and not self.path.exists():
                    return None
                if not os.access(self.path, os.W_OK):  # not even root may write on a disk that is read-only
                    return self._read_copy()
                return self._read(self._opened())
        except _Damaged as damage:
            self.problem = self._set_aside(damage)
            return None

    def save(
        self, changes: Iterable[tuple[Kind, str, Entry | None]], marks: Mapping[str, str], *, replace: bool = False
    ) -> None:
        """Save changes of entries (None: it is gone) and marks, all or nothing, or raise NfqError.

        With ``replace`` there are no other entries than these. Marks that are not given stay as they are.
        """
        if self.behind and not replace:
            raise NfqError(f"{self.path}: an earlier save failed, so it needs one of all entries before any other")
        self.behind = True
        with self._writing() as rows:
            if replace:
                rows.clear(str(kind) for kind in Kind)
            for kind, name, entry in changes:
                rows.remove(kind, name)
                if entry is not None:
                    rows.add(_Row(str(kind), name, str(entry.id), entry.value))
            for name, text in marks.items():
                rows.remove(_MARK, name)
                rows.add(_Row(_MARK, name, "", text.encode()))
        self.behind = False

    def save_pending(self, pending: Iterable[tuple[str, bytes]]) -> None:
        """Save what is pending now, in place of what was, or raise NfqError."""
        with self._writing() as rows:
            rows.clear([_PENDING])
            for place, (name, value) in enumerate(pending):
                rows.add(_Row(_PENDING, f"{place:09}", name, value))

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # what was saved is in the log, and is read from there
                connection.close()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._make_file()
            connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _read_copy(self) -> State | None:
        """Return what is on a disk that is read-only, where SQLite would not read the log."""
        self.close()
        with TemporaryDirectory(dir=_MEMORY) as folder:
            copy = LastState(Path(folder), self._cluster)
            for ending in _FILES:
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{self.path}{ending}", f"{copy.path}{ending}")
            try:
                return copy._read(copy._opened())
            finally:
                copy.close()

    def _make_file(self) -> None:
        """Have a file that only its owner reads; SQLite gives those beside it the same mode."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if self.path.stat().st_mode & 0o777 != 0o600:
            self.path.chmod(0o600)

    def _read(self, connection: sqlite3.Connection) -> State | None:
        verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _Damaged(verdict)
        state, rows = State({}, {}, []), _Rows(connection, self._key)
        for row in rows.checked():
            if row.kind == _MARK:
                state.marks[row.name] = row.value.decode()
            elif row.kind == _PENDING:
                state.pending.append((row.id, row.value))
            else:
                state.entries[Kind(row.kind), row.name] = Entry(int(row.id), row.value)
        return state if rows.were_saved else None

    @contextmanager
    def _writing(self) -> "Iterator[_Rows]":
        """Begin a transaction, and end it: well, or as if it had never been."""
        try:
            with self._telling():
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    rows = _Rows(connection, self._key)
                    yield rows
                    rows.write_sum()
                    connection.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):  # SQLite may have done so itself
                        connection.execute("ROLLBACK")
                    raise
        except _Damaged as damage:
            self.behind = True
            raise NfqError(self._set_aside(damage)) from None

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say what failed: raise NfqError for what is wrong around the file, _Damaged for what is wrong in it."""
        try:
            yield
        except sqlite3.Error as error:
            reason = _OF_THE_SYSTEM.get(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF)
            if reason is None:
                raise _Damaged(str(error)) from None
            if os.access(self.path, os.F_OK) and not os.access(self.path, os.W_OK):
                reason = "the disk is read-only"
            raise NfqError(f"{self.path}: the last known state of the cluster is not to be had: {reason}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise NfqError(f"{self.path}: the last known state of the cluster is not to be had: {reason}") from None

    def _set_aside(self, damage: _Damaged) -> str:
        """Rename the file and its log, so that neither is read again; return the sentence that says so."""
        self.close()
        aside = self.path.with_suffix(".corrupt")
        try:
            for ending in _FILES:
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{ending}").rename(f"{aside}{ending}")
            now = f"it is now {aside.name}"
        except OSError as error:
            now = f"it cannot be renamed: {error.strerror}"
        return f"{self.path}: is no last known state of this cluster ({damage}); {now}"


class _Rows:
    """The rows of an open file, and the sum of their digests as it becomes in a transaction."""

    def __init__(self, connection: sqlite3.Connection, key: bytes) -> None:
        self._execute = connection.execute
        self._key = key
        found = self._execute("SELECT count, digest FROM whole").fetchall()
        if len(found) > 1:
            raise _Damaged("it has two sums")
        self.were_saved = bool(found)
        count, digest = found[0] if found else (0, bytes(_DIGEST_SIZE))
        if not isinstance(count, int):
            raise _Damaged("its count of rows is not one")
        self._count, self._sum = count, _number(digest)

    def checked(self) -> Iterator[_Row]:
        """Yield all rows; raise _Damaged as soon as one is wrong, or after the last if one is missing."""
        count = total = 0
        for *fields, digest in self._execute("SELECT kind, name, id, value, digest FROM record ORDER BY kind, name"):
            row = _Row(*fields)
            if self._digest(row) != digest:
                raise _Damaged(f"{row.kind} {row.name!r} is not as it was saved")
            count, total = count + 1, total ^ _number(digest)
            yield row
        if (count, total) != (self._count, self._sum):
            raise _Damaged("rows are missing")

    def add(self, row: _Row) -> None:
        digest = self._digest(row)
        self._execute("INSERT INTO record VALUES (?, ?, ?, ?, ?)", (*row, digest))
        self._count, self._sum = self._count + 1, self._sum ^ _number(digest)

    def remove(self, kind: str, name: str) -> None:
        self._forget(self._execute("DELETE FROM record WHERE kind = ? AND name = ? RETURNING digest", (kind, name)))

    def clear(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self._forget(self._execute("DELETE FROM record WHERE kind = ? RETURNING digest", (kind,)))

    def write_sum(self) -> None:
        self._execute("DELETE FROM whole")
        self._execute("INSERT INTO whole VALUES (?, ?)", (self._count, self._sum.to_bytes(_DIGEST_SIZE)))

    def _forget(self, digests: Iterable[tuple[bytes]]) -> None:
        for (digest,) in digests:
            self._count, self._sum = self._count - 1, self._sum ^ _number(digest)

    def _digest(self, row: _Row) -> bytes:
        # With types: a flipped bit makes a text of a blob that is otherwise the same.
        parts = (f"{type(field).__name__} {field!r}" for field in row)
        return blake2b("\0".join(parts).encode(), digest_size=_DIGEST_SIZE, key=self._key).digest()


def _number(digest: object) -> int:
    if not (isinstance(digest, bytes) and len(digest) == _DIGEST_SIZE):
        raise _Damaged("a digest is not one")
    return int.from_bytes(digest)


def _readable(cluster: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", cluster).strip("-")[:40] or "cluster"


def _prepare(connection: sqlite3.Connection) -> None:
    """Set an open file up, with empty tables if it is new; raise _Damaged for one that is not ours."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # and so the log's index is in memory, not in a third file
    _check_kind(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_LONGEST_LOG}")
    if not _tables(connection):
        _create(connection)


def _check_kind(connection: sqlite3.Connection) -> None:
    try:
        tables = _tables(connection)
    except UnicodeDecodeError:  # SQLite quotes in its complaint what is no text
        raise _Damaged("its tables have no names") from None
    application, written = (connection.execute(f"PRAGMA {n}").fetchone()[0] for n in ("application_id", "user_version"))
    if not tables and not application and not written:
        return
    if application != _APPLICATION:
        raise _Damaged("it was made by another program")
    if written != _FORMAT:
        raise _Damaged(f"it has format {written}; this version knows format {_FORMAT}")
    if tables != [_RECORDS, _WHOLE]:
        raise _Damaged("its tables are not as they were made")


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master ORDER BY name")]


def _create(connection: sqlite3.Connection) -> None:
    for step in (
        "BEGIN IMMEDIATE",
        _RECORDS,
        _WHOLE,
        f"PRAGMA application_id = {_APPLICATION}",
        f"PRAGMA user_version = {_FORMAT}",
        "COMMIT",
    ):
        connection.execute(step)
