"""Fuzz one target with coverage guidance: ``make fuzz ARGS="decide --seconds 600"``.

It starts from the corpus in the tree and the target's seeds, and prints each input that breaks the target's promise.
``--save`` writes the corpus anew, minimised.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from hashlib import sha1
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.minimise import minimise

_MAX_LENGTH = 2048  # bytes of an input
_SECONDS_FOR_ONE = 5  # an input that takes longer breaks the promise of every target


def main() -> int:
    """Fuzz the target; return 1 if an input broke its promise."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("target", choices=corpus.NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--save", action="store_true", help="write the corpus in the tree anew")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nfqe-fuzz-") as place:
        found = _fuzz(arguments.target, arguments.seconds, Path(place))
        if arguments.save and not found:
            _save(arguments.target, Path(place, "corpus"))
    for data in found:
        print(f"broken by: {data!r}")
    return 1 if found else 0


def _fuzz(name: str, seconds: int, place: Path) -> list[bytes]:
    """Return the inputs that broke the promise; leave all others in the folder ``corpus`` of this place."""
    inputs, broken, temporary = (place / folder for folder in ("corpus", "broken", "temporary"))
    for folder in (inputs, broken, temporary):
        folder.mkdir()
    for data in {*corpus.read(name), *corpus.target(name).seeds}:
        (inputs / sha1(data).hexdigest()).write_bytes(data)
    options = (
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_LENGTH}",
        f"-timeout={_SECONDS_FOR_ONE}",
        f"-artifact_prefix={broken}/",
        "-print_final_stats=1",
    )
    command = [sys.executable, "-m", "tests.fuzz.engine", name, *options, str(inputs)]
    # libFuzzer ends the process at once, so the target's own temporary files stay
    subprocess.run(command, check=False, env=os.environ | {"TMPDIR": str(temporary)})
    return [path.read_bytes() for path in sorted(broken.iterdir())]


def _save(name: str, folder: Path) -> None:
    inputs = [path.read_bytes() for path in sorted(folder.iterdir())]
    chosen = minimise(corpus.target(name).check, inputs, corpus.MAX_BYTES)
    corpus.write(name, chosen)
    print(f"corpus: {len(inputs)} inputs, {len(chosen)} of them saved ({sum(map(len, chosen))} bytes)")


if __name__ == "__main__":
    sys.exit(main())
