"""Last known state of a cluster on disk: an agent that starts while the store is away enforces it.

``load`` returns exactly the state after one of the saves: a kill in the middle of a save leaves the state before it,
and a power cut may lose the last few saves. Any other content (a torn page, a flipped bit, a lost row, the file of
another cluster, a newer format) is refused as a whole and set aside: no state is better than a wrong one.

The file is an SQLite database, for its atomic transactions. SQLite does not detect a flipped bit inside of a value, so
each row has a digest, and one row has the count and the sum (XOR) of all digests. The sum detects a missing row, and a
save still costs only as much as it changes. The digests are keyed with the name of the cluster.

Only one process at a time has the file open. An object is for one thread at a time, which need not be the same one.
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

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.redis.schema import StoreEntry

_FORMAT = 1
_APPLICATION = 0x6E667165  # "nfqe", in the header of the file
_RECORDS = (
    "CREATE TABLE record (kind TEXT NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL,"
    " digest BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID"
)
_WHOLE = "CREATE TABLE whole (count INTEGER NOT NULL, digest BLOB NOT NULL)"
_MARK, _PENDING = ".mark", ".pending"  # kinds of rows; the dot tells them from the kinds of records
_DIGEST_SIZE = 16
_LOCK_TIMEOUT = 5.0  # seconds; an agent that is just ending may still have the file open
_FILES = ("", "-wal")  # suffixes of the database and its write-ahead log
_MEMORY = "/dev/shm"
_LONGEST_LOG = 4 << 20  # bytes of the write-ahead log that are kept between saves

# These errors are the system's, with an intact file; every other error of SQLite means a damaged file.
_SYSTEM_ERRORS = {
    sqlite3.SQLITE_BUSY: "another process has it open",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk refused to read or write",
    sqlite3.SQLITE_LOCKED: "another process has it open",
    sqlite3.SQLITE_PERM: "the permissions do not allow it",
    sqlite3.SQLITE_READONLY: "it cannot be written to",
}


class SavedState(NamedTuple):
    """SavedState: the content of the file."""

    entries: dict[tuple[Kind, str], StoreEntry]
    marks: dict[str, str]  # the mirror's marks: position, serial, revision, forks
    pending: list[tuple[str, bytes]]  # names and values of the pending endpoints, in order


class _Damaged(Exception):
    """The file's content is not that of a save; ``str`` is the damage."""


class _Row(NamedTuple):
    kind: str
    name: str
    id: str  # text, because an id of the stream is longer than SQLite's 64-bit integers
    value: bytes


class LastState:
    """LastState: the file of one cluster in a folder.

    A failed save leaves the file ``behind``: its changes are missing, so every further save is refused until one with
    ``replace`` succeeds.
    """

    def __init__(self, folder: Path, cluster: str, lock_timeout: float = _LOCK_TIMEOUT) -> None:
        """Take the folder, the cluster's name, and the seconds to wait for another process to close the file.

        The file's name shows a part of the cluster's name. Nothing is opened yet.
        """
        key = blake2b(cluster.encode(), digest_size=32)
        self.path = folder / f"{_readable(cluster)}-{key.hexdigest()[:16]}.state"
        self.problem: str | None = None  # the damage that the last load found, as a sentence for the log
        self.behind = False
        self._cluster, self._key = cluster, key.digest()
        self._lock_timeout = lock_timeout
        self._connection: sqlite3.Connection | None = None

    def load(self) -> SavedState | None:
        """Return the last saved state; None if nothing was saved, or if it is damaged: see ``problem``.

        Raise NfqError if the system does not allow to read it.
        """
        self.problem = None
        try:
            with self._translated_errors():
                if self._connection is None and not self.path.exists():
                    return None
                if not os.access(self.path, os.W_OK):  # false even for root on a read-only disk
                    return self._read_copy()
                return self._read(self._opened())
        except _Damaged as damage:
            self.problem = self._set_aside(damage)
            return None

    def save(
        self, changes: Iterable[tuple[Kind, str, StoreEntry | None]], marks: Mapping[str, str], *, replace: bool = False
    ) -> None:
        """Save changes of entries (None: deleted) and marks, all or nothing, or raise NfqError.

        With ``replace`` all other entries are deleted. Other marks stay as they are.
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
        """Save the pending endpoints in place of those saved before, or raise NfqError."""
        with self._writing() as rows:
            rows.clear([_PENDING])
            for order, (name, value) in enumerate(pending):
                rows.add(_Row(_PENDING, f"{order:09}", name, value))

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # committed saves are in the log, and the next load reads it
                connection.close()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._make_file()
            connection = sqlite3.connect(
                self.path, timeout=self._lock_timeout, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _read_copy(self) -> SavedState | None:
        """Return the state on a read-only disk, read from a copy: SQLite does not read the log there."""
        self.close()
        with TemporaryDirectory(dir=_MEMORY) as folder:
            copy = LastState(Path(folder), self._cluster)
            for suffix in _FILES:
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{self.path}{suffix}", f"{copy.path}{suffix}")
            try:
                return copy._read(copy._opened())
            finally:
                copy.close()

    def _make_file(self) -> None:
        """Make a file that only its owner can read; SQLite gives the log and the index the same mode."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if self.path.stat().st_mode & 0o777 != 0o600:
            self.path.chmod(0o600)

    def _read(self, connection: sqlite3.Connection) -> SavedState | None:
        verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _Damaged(verdict)
        state, rows = SavedState({}, {}, []), _Rows(connection, self._key)
        for row in rows.checked():
            if row.kind == _MARK:
                state.marks[row.name] = row.value.decode()
            elif row.kind == _PENDING:
                state.pending.append((row.id, row.value))
            else:
                state.entries[Kind(row.kind), row.name] = StoreEntry(int(row.id), row.value)
        return state if rows.were_saved else None

    @contextmanager
    def _writing(self) -> "Iterator[_Rows]":
        """Begin a transaction, and commit it, or roll it back after an error."""
        try:
            with self._translated_errors():
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    rows = _Rows(connection, self._key)
                    yield rows
                    rows.write_sum()
                    connection.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                        connection.execute("ROLLBACK")
                    raise
        except _Damaged as damage:
            self.behind = True
            raise NfqError(self._set_aside(damage)) from None

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate errors: raise NfqError for an error of the system, _Damaged for a damaged file."""
        try:
            yield
        except sqlite3.Error as error:
            reason = _SYSTEM_ERRORS.get(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF)
            if reason is None:
                raise _Damaged(str(error)) from None
            if os.access(self.path, os.F_OK) and not os.access(self.path, os.W_OK):
                reason = "the disk is read-only"
            raise NfqError(f"{self.path}: the last known state of the cluster is not to be had: {reason}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise NfqError(f"{self.path}: the last known state of the cluster is not to be had: {reason}") from None

    def _set_aside(self, damage: _Damaged) -> str:
        """Rename the file and its log, so that neither is read again; return the sentence for the log or the error."""
        self.close()
        aside = self.path.with_suffix(".corrupt")
        try:
            for suffix in _FILES:
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
            outcome = f"it is now {aside.name}"
        except OSError as error:
            outcome = f"it cannot be renamed: {error.strerror}"
        return f"{self.path}: is no last known state of this cluster ({damage}); {outcome}"


class _Rows:
    """_Rows: the rows of an open file, with the count and the sum of their digests during a transaction."""

    def __init__(self, connection: sqlite3.Connection, key: bytes) -> None:
        self._execute = connection.execute
        self._key = key
        sums = self._execute("SELECT count, digest FROM whole").fetchall()
        if len(sums) > 1:
            raise _Damaged("it has two sums")
        self.were_saved = bool(sums)
        count, digest = sums[0] if sums else (0, bytes(_DIGEST_SIZE))
        if not isinstance(count, int):
            raise _Damaged("its count of rows is not one")
        self._count, self._sum = count, _number(digest)

    def checked(self) -> Iterator[_Row]:
        """Yield all rows; raise _Damaged for a row with a wrong digest, or after the last if one is missing."""
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
        self._subtract(self._execute("DELETE FROM record WHERE kind = ? AND name = ? RETURNING digest", (kind, name)))

    def clear(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self._subtract(self._execute("DELETE FROM record WHERE kind = ? RETURNING digest", (kind,)))

    def write_sum(self) -> None:
        self._execute("DELETE FROM whole")
        self._execute("INSERT INTO whole VALUES (?, ?)", (self._count, self._sum.to_bytes(_DIGEST_SIZE)))

    def _subtract(self, digests: Iterable[tuple[bytes]]) -> None:
        for (digest,) in digests:
            self._count, self._sum = self._count - 1, self._sum ^ _number(digest)

    def _digest(self, row: _Row) -> bytes:
        # With the types: a flipped bit can turn a blob into a text of the same bytes.
        parts = (f"{type(field).__name__} {field!r}" for field in row)
        return blake2b("\0".join(parts).encode(), digest_size=_DIGEST_SIZE, key=self._key).digest()


def _number(digest: object) -> int:
    if not (isinstance(digest, bytes) and len(digest) == _DIGEST_SIZE):
        raise _Damaged("a digest is not one")
    return int.from_bytes(digest)


def _readable(cluster: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", cluster).strip("-")[:40] or "cluster"


def _prepare(connection: sqlite3.Connection) -> None:
    """Set the options of an open file and create its tables if it is new; raise _Damaged for a foreign file."""
    connection.execute(
        "PRAGMA locking_mode = EXCLUSIVE"
    )  # with it the index of the log is in memory, not in a third file
    _check_kind(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_LONGEST_LOG}")
    if not _tables(connection):
        _create(connection)


def _check_kind(connection: sqlite3.Connection) -> None:
    try:
        tables = _tables(connection)
    except UnicodeDecodeError:  # raised for SQLite's error text, which quotes the damaged bytes
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
