"""The locks pin everything that setup.cfg asks for, by version and hash, wherever the packages come from."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BUILD, RUN, DEV = (ROOT / "requirements" / f"{name}.txt" for name in ("build", "run", "dev"))


def wanted(*path: str) -> list[Requirement]:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    lines = parser.get(*path).splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pinned(lock: Path) -> dict[str, list[Requirement]]:
    """Return what a lock pins by name: one version, or one for each of several kinds of Python."""
    found: dict[str, list[Requirement]] = {}
    for line in lock.read_text().splitlines():
        if re.match("[a-z0-9]", line):
            requirement = Requirement(line.removesuffix("\\"))
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


@pytest.mark.parametrize(
    ("lock", "section"), [(RUN, ("options", "install_requires")), (DEV, ("options.extras_require", "dev"))]
)
def test_what_setup_cfg_asks_for_is_pinned_in_the_range_it_allows(lock: Path, section: tuple[str, str]) -> None:
    pins = pinned(lock)

    for one in wanted(*section):
        versions = [next(iter(pin.specifier)).version for pin in pins[canonicalize_name(one.name)]]
        assert all(one.specifier.contains(version) for version in versions), one


def test_the_program_runs_on_the_versions_that_it_is_developed_with() -> None:
    run, dev = pinned(RUN), pinned(DEV)

    assert {name: [str(pin) for pin in dev[name]] for name in run} == {n: [str(pin) for pin in run[n]] for n in run}


@pytest.mark.parametrize("lock", [BUILD, RUN, DEV], ids=lambda lock: lock.name)
def test_each_line_of_a_lock_is_a_pin_or_its_hash(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]

    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith(" "):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)
        else:
            assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; [\w .<>!='()]+)? \\", line)
            assert following.startswith("    --hash=")
