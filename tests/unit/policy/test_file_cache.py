"""FileCache: a load parses the files that have changed, and no others, with the same documents and errors."""

import os
import time
from pathlib import Path

import pytest

from nfq_enforcer.errors import DocumentErrors
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.file_cache import FileCache

ENDPOINT = """\
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {name: %s}
spec: {ips: [10.1.0.%d]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder of three files that nothing has written for longer than a file takes to be at rest."""
    for number in range(3):
        (tmp_path / f"e{number}.yaml").write_text(ENDPOINT % (f"e{number}", number + 1))
    at_rest(tmp_path)
    return tmp_path


def at_rest(folder: Path) -> None:
    """Return once the last change of every file is so old that the cache holds the file."""
    while max(file.stat().st_ctime for file in folder.iterdir()) + 0.12 > time.time():
        time.sleep(0.01)


def names(folder: Path, cache: FileCache) -> list[str]:
    return [endpoint.name for endpoint in loader.load([folder], cache=cache).endpoints]


def test_only_a_saved_file_is_parsed_again(folder: Path) -> None:
    cache = FileCache(time.time)
    assert names(folder, cache) == ["e0", "e1", "e2"]
    assert names(folder, cache) == ["e0", "e1", "e2"]
    assert cache.parsed == 3

    (folder / "e1.yaml").write_text(ENDPOINT % ("other", 2))
    at_rest(folder)
    assert names(folder, cache) == ["e0", "other", "e2"]
    assert cache.parsed == 4


def test_a_file_with_the_size_and_time_of_before_is_parsed_again(folder: Path) -> None:
    cache = FileCache(time.time)
    names(folder, cache)
    before = (folder / "e1.yaml").stat()
    (folder / "e1.yaml").write_text(ENDPOINT % ("e9", 2))
    os.utime(folder / "e1.yaml", ns=(before.st_atime_ns, before.st_mtime_ns))

    assert names(folder, cache) == ["e0", "e9", "e2"]


def test_a_file_that_may_still_be_being_written_is_parsed_at_each_load(folder: Path) -> None:
    changed = [file.stat().st_ctime for file in folder.iterdir()]
    now = [min(changed) + 0.05]
    cache = FileCache(lambda: now[0])
    for parsed in (3, 6):
        names(folder, cache)
        assert cache.parsed == parsed

    now[0] = max(changed) + 0.5
    for parsed in (9, 9):
        names(folder, cache)
        assert cache.parsed == parsed


def test_a_removed_file_is_forgotten(folder: Path) -> None:
    cache = FileCache(time.time)
    names(folder, cache)
    (folder / "e1.yaml").rename(folder / "e1.draft")
    assert names(folder, cache) == ["e0", "e2"]
    (folder / "e1.draft").rename(folder / "e1.yaml")
    at_rest(folder)

    assert names(folder, cache) == ["e0", "e1", "e2"]
    assert cache.parsed == 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (ENDPOINT % ("e0", 9), "{0}/e9.yaml:3:18: metadata.name: Endpoint default/e0 is already defined in {0}/e0"),
        (ENDPOINT % ("e9", 1), "{0}/e9.yaml:4:14: spec.ips[0]: 10.1.0.1 already belongs to Endpoint default/e0"),
        (ENDPOINT % ("e9", 9) + "more: 1", "{0}/e9.yaml:5:1: more: unknown field 'more'"),
    ],
)
def test_errors_have_their_places_at_each_load(folder: Path, text: str, error: str) -> None:
    (folder / "e9.yaml").write_text(text)
    at_rest(folder)
    cache = FileCache(time.time)
    for _ in range(2):
        with pytest.raises(DocumentErrors) as caught:
            loader.load([folder], cache=cache)
        assert str(caught.value).startswith(error.format(folder))
    assert cache.parsed == 4


def test_conflicts_between_the_items_of_a_list_have_their_places(folder: Path) -> None:
    item = "- {apiVersion: nfq-enforcer.io/v1, kind: Endpoint, metadata: {name: e9}, spec: {ips: [10.1.0.9]}}\n"
    (folder / "list.yaml").write_text(f"apiVersion: v1\nkind: List\nitems:\n{item}{item}")
    at_rest(folder)
    cache = FileCache(time.time)
    for _ in range(2):
        with pytest.raises(DocumentErrors, match=r"list.yaml:5:69: items\[1\].metadata.name: .*already defined"):
            loader.load([folder], cache=cache)


def test_an_unreadable_file_is_an_error_at_each_load(tmp_path: Path) -> None:
    cache = FileCache(time.time)
    for _ in range(2):
        with pytest.raises(DocumentErrors, match="cannot be read: No such file or directory"):
            loader.load([tmp_path / "missing.yaml"], cache=cache)
