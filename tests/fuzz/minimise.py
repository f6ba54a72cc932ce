"""Minimise a corpus: the few short inputs that together cover most of the lines and branches that all of them cover."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nfq_enforcer

_PACKAGE = str(Path(nfq_enforcer.__file__).parent)

Step = tuple[CodeType, int, int]
"""From one line of a function of the program to the next."""


def covered(check: Callable[[bytes], None], data: bytes) -> frozenset[Step]:
    """Return the steps of the program that an input covers."""
    steps: set[Step] = set()

    def enter(frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        code, before = frame.f_code, frame.f_lineno
        if not code.co_filename.startswith(_PACKAGE):
            return None

        def step(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal before
            if event == "line":
                steps.add((code, before, frame.f_lineno))
                before = frame.f_lineno
            return step

        return step

    others = sys.gettrace()  # for example, of the coverage of the tests
    sys.settrace(enter)
    try:
        check(data)
    finally:
        sys.settrace(others)
    return frozenset(steps)


def minimise(check: Callable[[bytes], None], inputs: Iterable[bytes], max_bytes: int) -> list[bytes]:
    """Return inputs of at most ``max_bytes`` in all, those first that add most steps per byte."""
    candidates = {data: covered(check, data) for data in inputs}
    chosen: list[bytes] = []
    seen: set[Step] = set()
    while candidates:
        candidates = {
            data: new for data, steps in candidates.items() if (new := steps - seen) and len(data) <= max_bytes
        }
        if not candidates:
            break
        best = max(candidates, key=lambda data: len(candidates[data]) / (len(data) + 8))
        chosen.append(best)
        seen |= candidates[best]
        max_bytes -= len(best)
    return chosen
