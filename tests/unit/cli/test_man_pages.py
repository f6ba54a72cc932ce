"""Man pages: one for each command, with the words of its help, and without a warning of mandoc or groff."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_enforcer.cli import man_pages
from nfq_enforcer.cli.commands import COMMANDS, GROUPS

DATE = "2026-11-26"
PATHS = ["", *GROUPS, *COMMANDS]


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all pages."""
    folder = tmp_path_factory.mktemp("man") / "man1"
    man_pages.write(folder)
    return folder


def test_each_command_has_its_page_and_no_other_page_is_made() -> None:
    assert set(man_pages.pages(DATE)) == {f"{'-'.join(['nfq-enforcer', *path.split()])}.1" for path in PATHS}


@needs("mandoc")
def test_mandoc_has_no_warning(folder: Path) -> None:
    done = run("mandoc", "-T", "lint", "-W", "warning", *sorted(folder.iterdir()))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs("groff")
def test_groff_has_no_warning(folder: Path) -> None:
    done = run("groff", "-man", "-ww", "-Tutf8", "-z", *sorted(folder.iterdir()))

    assert (done.returncode, done.stderr) == (0, "")


@needs("man")
def test_man_shows_a_page_with_the_options_the_examples_and_the_pages_beside_it(folder: Path) -> None:
    done = run("man", "--warnings", "-l", folder / "nfq-enforcer-policy-diff.1", MANWIDTH="200", MAN_KEEP_FORMATTING="")
    text = re.sub(r".\x08", "", done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert "nfq-enforcer policy diff [OPTIONS]" in text
    assert re.search(
        r"^ +--endpoints PATH\n +File or folder of Endpoint and Namespace documents; repeatable\.", text, re.M
    )
    assert f"\n       {COMMANDS['policy diff'].examples[0]}\n" in text
    assert "\n       nfq-enforcer-policy(1)\n" in text


@needs("man")
def test_a_group_lists_its_commands(folder: Path) -> None:
    text = re.sub(r".\x08", "", run("man", "-l", folder / "nfq-enforcer-store.1", MANWIDTH="200").stdout)

    for name in ("status", "export", "import", "gc"):
        assert re.search(rf"^       {name}\s", text, re.M)
        assert f"nfq-enforcer-store-{name}(1)" in text


def test_pages_are_the_same_again_with_the_date_of_the_source(tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = run(sys.executable, "-m", "nfq_enforcer.cli.man_pages", tmp_path / name, SOURCE_DATE_EPOCH="1795651338")
        assert (done.returncode, done.stdout) == (0, f"{len(PATHS)} man pages written to {tmp_path / name}\n")

    page = "nfq-enforcer-observe.1"
    assert (tmp_path / "a" / page).read_text() == (tmp_path / "b" / page).read_text()
    assert f' 1 "{DATE}" ' in (tmp_path / "a" / page).read_text()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (".SH \\fB", "\\&.SH \\efB"),
        ("'--x'", "\\&\\(aq\\-\\-x\\(aq"),
        ('a "b" ~^` ✓ 🙂', "a \\(dqb\\(dq \\(ti\\(ha\\(ga \\[u2713] \\[u1F642]"),
    ],
)
def test_no_text_is_read_as_a_macro(text: str, source: str) -> None:
    assert man_pages.line(text) == source


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_without_its_folder_it_says_so(arguments: list[str]) -> None:
    done = run(sys.executable, "-m", "nfq_enforcer.cli.man_pages", *arguments)

    assert (done.returncode, done.stderr) == (2, "nfq-enforcer: give the folder for the pages, as in build/man/man1\n")


def test_a_folder_that_cannot_be_made_is_one_sentence() -> None:
    done = run(sys.executable, "-m", "nfq_enforcer.cli.man_pages", "/dev/null/man1")

    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"nfq-enforcer: /dev/null/man1: cannot be written: .+\n", done.stderr)
