"""Files of the state folder are written whole, for root alone."""

from pathlib import Path

import pytest

from nfq_enforcer.state_file import replace_text


def test_a_file_is_replaced_whole_and_readable_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "x.json"
    replace_text(file, "first")
    replace_text(file, "second")

    assert file.read_text() == "second"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["x.json"]


def test_a_failure_leaves_the_content_before(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    replace_text(file, "first")
    (tmp_path / "x.json.new").mkdir()  # in the way of the draft

    with pytest.raises(OSError, match="Is a directory"):
        replace_text(file, "second")
    assert file.read_text() == "first"
