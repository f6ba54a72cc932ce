"""The locks pin everything that setup.cfg asks for, by version and hash, wherever the packages come from."""

import re
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BUILD, RUN, DEV, FUZZ = (ROOT / "requirements" / f"{name}.txt" for name in ("build", "run", "dev", "fuzz"))


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


def applies(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize("python", ["3.11.2", "3.12.0", "3.13.0"])
@pytest.mark.parametrize(
    ("lock", "section"),
    [
        (RUN, ("options", "install_requires")),
        (DEV, ("options.extras_require", "dev")),
        (FUZZ, ("options.extras_require", "fuzz")),
    ],
)
def test_what_setup_cfg_asks_for_is_pinned_in_the_range_it_allows(
    lock: Path, section: tuple[str, str], python: str
) -> None:
    pins = pinned(lock)

    for one in (requirement for requirement in wanted(*section) if applies(requirement, python)):
        chosen = [pin for pin in pins[canonicalize_name(one.name)] if applies(pin, python)]
        assert len(chosen) == 1, one
        assert one.specifier.contains(next(iter(chosen[0].specifier)).version), one


def test_the_program_runs_on_the_versions_that_it_is_developed_with() -> None:
    run, dev, fuzz = pinned(RUN), pinned(DEV), pinned(FUZZ)

    assert {name: [str(pin) for pin in dev[name]] for name in run} == {n: [str(pin) for pin in run[n]] for n in run}
    assert {name: fuzz[name] for name in run} == run


def with_extras(names: Iterator[str]) -> Iterator[Requirement]:
    """Yield the requirements, of these installed packages, on extras of another package."""
    for name in names:
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.extras and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                yield requirement


def test_an_extra_that_a_package_asks_for_is_pinned_with_it() -> None:
    """To Debian 12's pip, ``coverage==7.1`` does not pin ``coverage[toml]`` once 7.2 has been released."""
    pins = pinned(DEV)
    asked = list(with_extras(name for name in pins if any(pin.marker is None for pin in pins[name])))

    assert asked
    for one in asked:
        assert all(one.extras <= pin.extras for pin in pins[canonicalize_name(one.name)]), one


@pytest.mark.parametrize("lock", [BUILD, RUN, DEV, FUZZ], ids=lambda lock: lock.name)
def test_each_line_of_a_lock_is_a_pin_or_its_hash(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]

    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith(" "):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)
        else:
            assert re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[a-z0-9.]+( ; [\w .<>!='()]+)? \\", line)
            assert following.startswith("    --hash=")
