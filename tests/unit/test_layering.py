"""The arrows of the package run one way, and what is said to be pure is pure."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nfq_enforcer"
CORE = sorted(PACKAGE.glob("core/**/*.py"))
POLICY = sorted(PACKAGE.glob("policy/**/*.py"))

IMPURE = {
    "asyncio",
    "datetime",
    "logging",
    "os",
    "pathlib",
    "random",
    "socket",
    "subprocess",
    "time",
}
IMPURE_CALLS = {"input", "open", "print"}
CLUSTER = sorted(PACKAGE.glob("cluster/**/*.py"))
READS_FILES = PACKAGE / "policy/loader.py"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """Return the full name of every module that a file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            names.add(".".join((*package, *filter(None, [node.module]))))
    return names


def called(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def test_imports_run_downward_only() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")

    run = subprocess.run(
        [lint_imports, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_core_imports_only_itself_and_the_standard_library(path: Path) -> None:
    own = {name for name in imported(path) if f"{name}.".startswith("nfq_enforcer.core.")}

    assert {name.partition(".")[0] for name in imported(path) - own} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", [*CORE, *POLICY, *CLUSTER], ids=relative)
def test_pure_rooms_reach_for_no_clock_socket_file_or_log(path: Path) -> None:
    allowed = {"os", "pathlib"} if path == READS_FILES else set()

    assert {name.partition(".")[0] for name in imported(path)} & IMPURE <= allowed
    assert path == READS_FILES or not IMPURE_CALLS & set(called(path))


def test_every_folder_of_the_package_is_installed_with_it() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}

    assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
