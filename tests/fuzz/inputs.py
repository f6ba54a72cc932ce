"""Input: choices and byte strings, taken one after another from the bytes of a fuzzer."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Input:
    """Input: reads bytes in order; after their end, every number is 0 and every string empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def has_more(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        return int.from_bytes(self.take(1))

    def choose(self, values: Sequence[T]) -> T:
        return values[self.byte() % len(values)]

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def string(self) -> bytes:
        """Return a string whose length precedes it in one byte."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        return self.take(len(self._data))


def string(data: bytes) -> bytes:
    """Return a string as ``Input.string`` reads it, cut to the 255 bytes that it may have."""
    return bytes((len(data[:255]),)) + data[:255]
