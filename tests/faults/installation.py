"""Installation of nfq_enforcer that a test may upgrade: an environment of its own, with a copy of the package."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

import nfq_enforcer

_OTHERS = Path(yaml.__file__).parents[1]
_PACKAGE = Path(nfq_enforcer.__file__).parent


class Installation:
    """Installation: a Python environment with the package as files, and this environment's other packages."""

    def __init__(self, folder: Path) -> None:
        """Create the environment."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self._packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (self._packages / "others.pth").write_text(f"{_OTHERS}\n")
        self.install(nfq_enforcer.__version__)

    def install(self, version: str) -> None:
        """Replace the package by a copy with this version, as an upgrade does."""
        draft, target = self._packages / "draft", self._packages / _PACKAGE.name
        shutil.copytree(_PACKAGE, draft, ignore=shutil.ignore_patterns("__pycache__"))
        start = draft / "__init__.py"
        start.write_text(re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{version}"', start.read_text()))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
