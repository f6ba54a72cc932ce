"""Fetch the JavaScript that the package ships, and compare it with the files in the repository.

``vendor.json`` pins each package of npm: its version, the integrity of its archive, and the SHA-256 of each file that
is shipped. The file in the repository has to be the file in the archive, byte for byte.

    tools/vendor.py            fetch each archive with npm, check it, compare the files; exit status 1 for a difference
    tools/vendor.py --write    the same, and write the files
"""

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VENDOR = Path(__file__).resolve().parents[1] / "nfq_enforcer/ui/assets/vendor"


def pinned() -> dict[str, Any]:
    """Return the pinned packages by name."""
    packages: dict[str, Any] = json.loads((VENDOR / "vendor.json").read_text())
    return packages


def shipped(name: str, package: dict[str, Any], file: str) -> Path:
    """Return the path in the repository of a file of a package."""
    return VENDOR / f"{name}-{package['version']}" / Path(file).name


def fetch(name: str, package: dict[str, Any], folder: Path) -> Path:
    """Return the archive of a package, as npm has it; raise SystemExit if it is another one than the pinned."""
    wanted = f"{name}@{package['version']}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", wanted, "--pack-destination", folder], check=True, stdout=subprocess.PIPE
    )
    archive = folder / packed.stdout.decode().split()[-1]
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{found}" != package["integrity"]:
        raise SystemExit(f"{wanted}: the archive has the integrity sha512-{found}, pinned is {package['integrity']}")
    return archive


def contents(archive: Path, package: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield each shipped file of an archive; raise SystemExit if one is another than the pinned."""
    with tarfile.open(archive) as tar:
        for file, digest in package["files"].items():
            member = tar.extractfile(f"package/{file}")
            content = member.read() if member else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise SystemExit(f"{file} in {archive.name} has another SHA-256 than the pinned one")
            yield file, content


def main() -> int:
    """Compare every file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files into the repository")
    write, status = parser.parse_args().write, 0
    for name, package in pinned().items():
        with TemporaryDirectory() as folder:
            for file, content in contents(fetch(name, package, Path(folder)), package):
                path = shipped(name, package, file)
                if write:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                same = path.exists() and path.read_bytes() == content
                print(f"{path.relative_to(VENDOR)}: {'as in the archive' if same else 'different'}")
                status |= not same
    return status


if __name__ == "__main__":
    sys.exit(main())
