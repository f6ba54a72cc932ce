"""Effort: the share of the examples that a run tries, by Hypothesis profile (``pytest --hypothesis-profile=check``)."""

from hypothesis import settings

FULL = 100  # examples in Hypothesis's own default profile


def scaled(full: int) -> int:
    """Return the share of this number of examples that the profile of the run tries."""
    return max(1, full * settings().max_examples // FULL)
