"""Source of workloads: the interface of all programs that name endpoints of this node."""

from collections.abc import Iterable
from typing import Any, Protocol


class WorkloadSource(Protocol):
    """Source of workloads: names the endpoints of this node to a registrar, and each change of them."""

    @property
    def name(self) -> str:
        """Return the word of the source, one of ``registrar.SOURCES``."""

    async def run(self) -> None:
        """Name all endpoints, then each change, and report problems to the registrar; never return."""

    def status(self) -> dict[str, Any]:
        """Return further fields of the source's status."""

    def problems(self) -> Iterable[str]:
        """Return sentences about everything that is not in force; they stand among the agent's problems."""

    def changing(self) -> Iterable[str]:
        """Return the endpoints that start or have just ended, by full name: their interfaces come and go."""
