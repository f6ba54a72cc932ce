"""Assets of the page: complete, as pinned, and without any way for data to become code."""

import hashlib
import re

import pytest

from nfq_enforcer.ui import static
from tools.vendor import VENDOR, pinned, shipped

OWN = {path: asset.body.decode() for path, asset in static.load().items() if "/vendor/" not in path}


@pytest.mark.parametrize("name", pinned())
def test_a_vendored_library_is_the_pinned_one_with_its_licence(name: str) -> None:
    package = pinned()[name]

    found = {file: hashlib.sha256(shipped(name, package, file).read_bytes()).hexdigest() for file in package["files"]}

    assert found == package["files"]
    assert "LICENSE" in found


def test_every_vendored_file_is_pinned() -> None:
    known = {shipped(name, package, file) for name, package in pinned().items() for file in package["files"]}

    assert set(VENDOR.rglob("*")) - known - {VENDOR / "vendor.json"} == {path.parent for path in known}


def test_every_file_that_the_page_names_is_served() -> None:
    named = {path for text in OWN.values() for path in re.findall(r'"(/assets/[^"]+)"', text)}

    assert named - static.load().keys() == set()
    assert static.load().keys() - named == {"/"}


@pytest.mark.parametrize("path", [path for path in OWN if path.endswith(".js")])
def test_no_script_turns_text_into_markup_or_code(path: str) -> None:
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|Function\("
    )

    assert not re.search(ways, OWN[path])


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = OWN["/"]

    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|https?://", page)
    assert re.findall(r"<script[^>]*>[^<]*", page) == ['<script type="module" src="/assets/page.js">']
