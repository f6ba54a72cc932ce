"""Engine: runs atheris on one target with the arguments of libFuzzer, in a process that ``__main__`` starts."""

import sys

import atheris

from tests.fuzz import corpus


def main() -> None:
    """Fuzz the target that the first argument names."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["nfq_enforcer"]):
        check = corpus.target(name).check
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
