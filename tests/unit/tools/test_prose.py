"""The measure of the house language: which words count as prose, and which as occurrences."""

from pathlib import Path
from textwrap import dedent

import pytest

from tools.prose import (
    Count,
    Occurrence,
    Part,
    comment_prose,
    count,
    help_prose,
    listing,
    markdown_prose,
    occurrences,
    python_prose,
    sentence_prose,
    table,
    targeted,
)

PYTHON = dedent('''\
    #!/usr/bin/env python3
    """What a module does."""

    what = "who is not prose"  # There
    # is a comment over two lines, whose code `who()` is left out


    def who(what: int) -> str:
        """Return what ``who`` needs."""
        return "there is no docstring here"  # noqa: E501
    ''')


@pytest.mark.parametrize("word", ["what", "Who", "whom", "WHOSE", "whoever", "whatever", "what's", "who’s"])
def test_the_words_of_the_first_kind(word: str) -> None:
    assert count(f"know {word} now") == Count(words=3, what=1)


@pytest.mark.parametrize("words", ["there is", "There are", "there was", "there were", "there\n  is"])
def test_the_words_of_the_second_kind(words: str) -> None:
    assert count(f"and {words} more") == Count(words=4, there=1)


@pytest.mark.parametrize("contraction", ["there's", "There’s", "there're"])
def test_a_contraction_is_one_word(contraction: str) -> None:
    assert count(f"{contraction} more") == Count(words=2, there=1)


@pytest.mark.parametrize("text", ["somewhat", "whole", "whatnot", "up there", "there will be", "there isle"])
def test_other_words_are_no_occurrence(text: str) -> None:
    assert count(text) == Count(words=len(text.split()))


def test_numbers_and_signs_are_no_words() -> None:
    assert count("10.31.2.11 → 256: a node's TCP, a re-read (64 KiB)") == Count(words=6)


def test_prose_of_python_is_comments_and_docstrings() -> None:
    counted = count(python_prose(PYTHON))

    assert counted == Count(words=4 + 1 + 11 + 3, what=3, there=1)


def test_help_texts_are_strings_given_as_help() -> None:
    source = 'é = Option("--what", help="Of whose lab; " "there are several.")\nprint("who")\n'

    assert count(help_prose(source)) == Count(words=6, what=1, there=1)


def test_sentences_are_strings_that_end_with_a_period() -> None:
    source = '"""What it is."""\nf("worker_total", "Workers whose queue is full.", "no sentence")\n'

    assert count(sentence_prose(source)) == Count(words=5, what=1)


def test_prose_of_markdown_is_text_without_code_and_with_tables() -> None:
    source = "Who `whose`\n\n```sh\nwhat there is\n```\n\n| what | `who` |\n|---|---|\n| [there is](who.md) | a |\n"

    assert count(markdown_prose(source)) == Count(words=5, what=2, there=1)


def test_prose_of_a_script_is_its_comments() -> None:
    source = "#!/bin/bash\n# Who\nwhat=there#is  # whose\n# shellcheck disable=SC2086 # what\n"

    assert count(comment_prose(source)) == Count(words=2, what=2)


def test_an_occurrence_has_its_line_and_the_words_around_it() -> None:
    assert list(occurrences("one\n\ntwo there\nis three\nwho")) == [
        Occurrence(3, "one two there is three who"),
        Occurrence(5, "one two there is three who"),
    ]


def test_a_mask_keeps_the_places_of_the_file() -> None:
    assert len(python_prose(PYTHON)) == len(PYTHON)
    assert [one.line for one in occurrences(python_prose(PYTHON))] == [2, 4, 5, 9]


def test_files_and_folders_are_listed_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(PYTHON)
    (tmp_path / "two.md").write_text("Nothing.\n\nBut who?\n")

    found = list(listing([tmp_path, tmp_path / "two.md"]))

    assert [line.rpartition("/")[2].partition(": ")[0] for line in found] == [
        "one.py:2",
        "one.py:4",
        "one.py:5",
        "one.py:9",
        "two.md:3",
        "two.md:3",
    ]


@pytest.mark.parametrize(
    ("counted", "reached"),
    [
        (Count(1000, 2, 1), True),
        (Count(1000, 3, 1), False),
        (Count(1000, 2, 2), False),
        (Count(), True),
    ],
)
def test_a_count_is_on_target_below_both_rates(counted: Count, reached: bool) -> None:
    assert counted.on_target is reached


def test_only_targeted_parts_enter_the_total() -> None:
    parts = [
        Part("package", Count(500, 1, 0), targeted=True),
        Part("docs", Count(500, 90, 90)),
        Part("x", Count(500), True),
    ]

    assert targeted(parts) == Count(1000, 1, 0)
    assert table(parts).splitlines()[3].split() == ["total", "1000", "1.0", "0.0"]
