"""Sources of workloads in the status of an agent."""

from collections.abc import Mapping
from typing import Any


def source(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the status of a source."""
    (found,) = (one for one in status["workloads"]["sources"] if one["source"] == name)
    result: Mapping[str, Any] = found
    return result
