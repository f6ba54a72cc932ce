"""Last known state on disk: a load returns exactly a saved state, or none."""

import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.redis.last_state import LastState, SavedState
from nfq_enforcer.store.redis.schema import StoreEntry

CLUSTER = "redis://store:6379/0 production"
WEB, DB, DOCUMENT = (Kind.ENDPOINT, "default/web"), (Kind.ENDPOINT, "default/db"), (Kind.DOCUMENT, "Namespace//shop")
LATE = 1_900_000_000_000 << 32 | 7  # an id of the stream: more than 64 bits
ENTRIES = {
    WEB: StoreEntry(LATE, b"web"),
    DB: StoreEntry(2, b"\0\xff"),
    DOCUMENT: StoreEntry(3, b"x" * 6000),
    (Kind.NODE, "n1"): StoreEntry(0, b""),
}
MARKS = {"position": "1900000000000-7", "empty": ""}
PENDING = [("default/new", b"1"), ("default/old", b""), ("default/new", b"2")]
WHOLE = SavedState(ENTRIES, MARKS, PENDING)


def fill(state: LastState) -> None:
    """Save ``WHOLE``."""
    state.save([(*key, entry) for key, entry in ENTRIES.items()], MARKS, replace=True)
    state.save_pending(PENDING)


def reopened(folder: Path) -> tuple[SavedState | None, str | None]:
    """Return the state that another process would load, and the damage that it would find."""
    state = LastState(folder, CLUSTER)
    try:
        return state.load(), state.problem
    finally:
        state.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[LastState]:
    """Give the state of ``CLUSTER`` in an empty folder."""
    state = LastState(tmp_path, CLUSTER)
    yield state
    state.close()


@pytest.fixture
def file(state: LastState) -> Path:
    """Give a closed file with ``WHOLE`` in it."""
    fill(state)
    state.close()
    return state.path


def reopened_after_close(state: LastState) -> tuple[SavedState | None, str | None]:
    state.close()
    return reopened(state.path.parent)


def test_where_nothing_was_saved_there_is_nothing(state: LastState, tmp_path: Path) -> None:
    assert state.load() is None
    assert state.problem is None
    assert not list(tmp_path.iterdir())


def test_what_was_saved_comes_back(state: LastState, file: Path) -> None:
    assert state.load() == WHOLE
    assert reopened_after_close(state) == (WHOLE, None)


def test_changes_add_replace_and_remove(state: LastState) -> None:
    fill(state)

    state.save(
        [(*WEB, StoreEntry(9, b"changed")), (*DB, None), (*DB, None), (Kind.NODE, "n2", StoreEntry(4, b"n"))],
        {"position": "9"},
    )

    entries = {**ENTRIES, WEB: StoreEntry(9, b"changed"), (Kind.NODE, "n2"): StoreEntry(4, b"n")}
    del entries[DB]
    assert reopened_after_close(state) == (SavedState(entries, {**MARKS, "position": "9"}, PENDING), None)


def test_one_thing_may_change_more_than_once_in_a_save(state: LastState) -> None:
    state.save([(*WEB, StoreEntry(1, b"a")), (*WEB, None), (*WEB, StoreEntry(2, b"b"))], {})

    assert reopened_after_close(state) == (SavedState({WEB: StoreEntry(2, b"b")}, {}, []), None)


def test_replace_leaves_no_other_entry(state: LastState) -> None:
    fill(state)

    state.save([(*DB, StoreEntry(5, b"only"))], {"position": "5"}, replace=True)

    assert reopened_after_close(state) == (
        SavedState({DB: StoreEntry(5, b"only")}, {**MARKS, "position": "5"}, PENDING),
        None,
    )


def test_an_empty_cluster_is_a_state_too(state: LastState) -> None:
    state.save([], {}, replace=True)

    assert reopened_after_close(state) == (SavedState({}, {}, []), None)


def test_what_is_pending_replaces_what_was(state: LastState) -> None:
    fill(state)

    state.save_pending(iter([("b", b"2"), ("a", b"1")]))
    assert state.load() == WHOLE._replace(pending=[("b", b"2"), ("a", b"1")])

    state.save_pending([])
    assert reopened_after_close(state) == (WHOLE._replace(pending=[]), None)


def test_each_cluster_has_its_own_file(state: LastState, tmp_path: Path) -> None:
    fill(state)

    other = LastState(tmp_path, CLUSTER + "2")

    assert other.load() is None
    assert other.path.name.startswith("redis-store-6379-0-production2-")
    assert LastState(tmp_path, "…").path.name.startswith("cluster-")


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = LastState(tmp_path / "var" / "state", CLUSTER)
        fill(state)
    finally:
        os.umask(before)

    files = {file.name.rpartition(".")[2]: file.stat().st_mode & 0o777 for file in state.path.parent.iterdir()}
    assert files == {"state": 0o600, "state-wal": 0o600}
    assert state.path.parent.stat().st_mode & 0o777 == 0o700
    state.close()


def test_a_file_that_others_can_read_is_closed_to_them(file: Path) -> None:
    file.chmod(0o644)

    assert reopened(file.parent) == (WHOLE, None)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_save_that_fails_half_way_leaves_what_was(state: LastState) -> None:
    fill(state)

    with pytest.raises(ZeroDivisionError):
        state.save(((Kind.NODE, f"n{n}", StoreEntry(1 // (2 - n), b"")) for n in range(3)), {"position": "later"})

    assert state.behind
    assert state.load() == WHOLE


def test_after_a_failed_save_only_one_of_everything_is_taken(state: LastState) -> None:
    fill(state)
    with pytest.raises(ZeroDivisionError):
        state.save(((*WEB, StoreEntry(1 // 0, b"")) for _ in range(1)), {})

    with pytest.raises(NfqError, match=r"an earlier save failed, so it needs one of all entries before any other$"):
        state.save([(*DB, None)], {"position": "later"})
    assert state.load() == WHOLE

    state.save([(*DB, StoreEntry(8, b"8"))], {}, replace=True)
    state.save([(*WEB, StoreEntry(9, b"9"))], {})
    assert not state.behind
    assert reopened_after_close(state)[0] == SavedState(
        {DB: StoreEntry(8, b"8"), WEB: StoreEntry(9, b"9")}, MARKS, PENDING
    )


def test_a_full_disk_is_said_and_what_was_is_kept(state: LastState) -> None:
    fill(state)
    limit_size(state, pages=20)

    with pytest.raises(NfqError, match=r"the disk is full$"):
        state.save([(*WEB, StoreEntry(1, b"x" * 1_000_000))], {})
    assert state.load() == WHOLE
    assert reopened_after_close(state) == (WHOLE, None)


def limit_size(state: LastState, pages: int) -> None:
    """Limit the size of the file, as on a full disk: SQLite raises the same error for both."""
    assert state._connection is not None
    state._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state = LastState(tmp_path / "file" / "folder", CLUSTER)

    with pytest.raises(NfqError, match=f"is not to be had: {re.escape(os.strerror(errno.ENOTDIR))}$"):
        state.save([], {}, replace=True)
    with pytest.raises(NfqError, match=f"is not to be had: {re.escape(os.strerror(errno.ENOTDIR))}$"):
        state.save_pending([])


def test_a_file_that_another_process_has_open_is_said_and_left_alone(state: LastState) -> None:
    fill(state)
    script = f"""
from pathlib import Path
from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.redis.last_state import LastState
try:
    LastState(Path({str(state.path.parent)!r}), {CLUSTER!r}, lock_timeout=0).load()
except NfqError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert output.strip().endswith("is not to be had: another process has it open")
    assert state.load() == WHOLE


@pytest.mark.parametrize(
    "sql, reason",
    [
        ("PRAGMA application_id = 1", "made by another program"),
        ("PRAGMA user_version = 2", "it has format 2; this version knows format 1"),
        ("CREATE TABLE other (a)", "its tables are not as they were made"),
        ("DELETE FROM record WHERE name = 'default/db'", "rows are missing"),
        ("DELETE FROM record", "rows are missing"),
        ("DELETE FROM whole", "rows are missing"),
        ("INSERT INTO whole VALUES (0, x'')", "it has two sums"),
        ("UPDATE whole SET digest = 'text'", "a digest is not one"),
        ("UPDATE record SET value = x'00' WHERE name = 'default/db'", "endpoint 'default/db' is not as it was saved"),
        (
            "UPDATE record SET value = CAST(value AS TEXT) WHERE name = 'default/web'",
            "'default/web' is not as it was saved",
        ),
        ("UPDATE record SET name = CAST(x'ff' AS TEXT) WHERE name = 'default/web'", "decode"),
    ],
)
def test_what_no_save_has_left_is_refused_and_set_aside(file: Path, sql: str, reason: str) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(sql)
    connection.close()

    loaded, problem = reopened(file.parent)

    assert loaded is None
    assert problem is not None and reason in problem
    assert problem.endswith(f"it is now {file.stem}.corrupt")
    assert file.with_suffix(".corrupt").exists()
    assert reopened(file.parent) == (None, None)


def test_the_file_of_another_cluster_is_refused(file: Path) -> None:
    other = LastState(file.parent, "another cluster")
    file.rename(other.path)

    assert other.load() is None
    assert other.problem is not None and "is not as it was saved" in other.problem


def test_after_damage_a_new_state_is_kept(file: Path) -> None:
    file.write_bytes(b"not a database" * 1000)
    state = LastState(file.parent, CLUSTER)

    assert state.load() is None
    fill(state)

    assert reopened_after_close(state) == (WHOLE, None)


def test_damage_that_a_save_meets_is_said_and_nothing_partial_is_kept(file: Path) -> None:
    file.write_bytes(b"not a database" * 1000)
    state = LastState(file.parent, CLUSTER)

    with pytest.raises(NfqError, match=r"file is not a database.*it is now .*\.corrupt$"):
        state.save_pending(PENDING)
    with pytest.raises(NfqError, match="needs one of all entries"):
        state.save([(*WEB, StoreEntry(1, b""))], {})
    fill(state)

    assert reopened_after_close(state) == (WHOLE, None)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE whole SET count = 'many'",
        "UPDATE whole SET digest = zeroblob(17)",
        "UPDATE record SET digest = zeroblob(17)",
        "UPDATE record SET digest = 'text'",
        "INSERT INTO whole VALUES (0, x'')",
    ],
)
def test_a_save_makes_no_whole_of_what_is_damaged(state: LastState, file: Path, sql: str) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(sql)
    connection.close()

    with pytest.raises(NfqError, match=r"is no last known state of this cluster .*\.corrupt$"):
        state.save([(*DB, None)], {})
    assert state.behind
    assert reopened_after_close(state) == (None, None)


def test_a_file_cut_off_anywhere_is_refused(file: Path) -> None:
    content = file.read_bytes()

    for size in {*range(512, len(content), 509), len(content) - 1}:
        file.write_bytes(content[:size])
        loaded, problem = reopened(file.parent)
        assert (loaded is None) == (problem is not None), size
        assert loaded is None or (loaded == WHOLE and not any(content[size:])), size  # the cut was of length zero
    for size in (0, 1):
        file.write_bytes(content[:size])
        assert reopened(file.parent) == (None, None), size  # an empty file counts as a new one


def test_no_flipped_byte_makes_a_wrong_state(file: Path) -> None:
    content = file.read_bytes()
    outcomes = {position: flipped(file, content, position) for position in places(content)}

    wrong = {position: loaded for position, loaded in outcomes.items() if loaded not in (None, WHOLE)}
    assert not wrong
    assert sum(loaded is None for loaded in outcomes.values()) > 500  # else the flipped bit was not part of the content


def places(content: bytes) -> list[int]:
    """Return every position with content, and some of the empty space between."""
    return [position for position, byte in enumerate(content) if byte not in b"\0x" or position % 101 == 0]


def flipped(file: Path, content: bytes, position: int) -> SavedState | None:
    """Return the loaded state with one bit of the byte at this position flipped; the bit depends on the position."""
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    file.write_bytes(changed)
    return reopened(file.parent)[0]


def test_no_flipped_byte_in_the_log_makes_a_state_that_never_was(state: LastState, tmp_path: Path) -> None:
    steps = [SavedState({WEB: StoreEntry(step, b"%d" % step)}, {"position": str(step)}, []) for step in range(3)]
    for step in steps:
        state.save([(*key, entry) for key, entry in step.entries.items()], step.marks)
    copy = tmp_path / "copy"
    log = Path(f"{state.path}-wal").read_bytes()
    file, beside = copy / state.path.name, copy / f"{state.path.name}-wal"

    for position in range(0, len(log), 157):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copy(state.path, file)
        beside.write_bytes(log[:position] + bytes([log[position] ^ 0x10]) + log[position + 1 :])
        assert reopened(copy)[0] in (None, *steps), position


_SAVES_FOR_EVER = """
import itertools, sys
from pathlib import Path
from nfq_enforcer.store.redis.last_state import LastState
from nfq_enforcer.cluster.records import Kind
from nfq_enforcer.store.redis.schema import StoreEntry

state = LastState(Path(sys.argv[1]), sys.argv[2])
loaded = state.load()
for number in itertools.count(int(loaded.marks["position"]) + 1 if loaded else 1):
    entries = [(Kind.NODE, f"n{n}", StoreEntry(number, b"%d" % number * 500)) for n in range(20)]
    state.save(entries, {"position": str(number)})
    state.save_pending([("saved", b"%d" % number)])
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_a_whole_state(tmp_path: Path) -> None:
    for saves in (1, 3, 8, 20):
        printed = killed_after(saves, tmp_path)
        loaded, problem = reopened(tmp_path)

        assert problem is None
        assert loaded is not None
        position = int(loaded.marks["position"])
        assert position in (printed, printed + 1)  # the last save may have ended without being printed
        assert set(loaded.entries.values()) == {StoreEntry(position, b"%d" % position * 500)}
        assert loaded.pending[0][1] in (b"%d" % position, b"%d" % (position - 1))


def killed_after(saves: int, folder: Path) -> int:
    """Kill a process during its saves; return the number of the last save that it printed."""
    command = [sys.executable, "-c", _SAVES_FOR_EVER, str(folder), CLUSTER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(saves)]
        process.kill()
        lines += process.stdout.readlines()
    return int([line for line in lines if line.endswith("\n")][-1])
