"""Workloads of this node: the sources that the configuration names, and the registrar of their endpoints."""

import asyncio
import logging
from collections.abc import Iterator, Sequence

from nfq_enforcer.observe.status import WorkloadSourceStatus, WorkloadsStatus
from nfq_enforcer.tasks import cancel
from nfq_enforcer.workloads.registrar import Registrar
from nfq_enforcer.workloads.source import WorkloadSource

_log = logging.getLogger(__name__)
_FIRST = 3.0  # s that the start of the agent waits for the sources' first endpoints


class Workloads:
    """Workloads: runs sources, and the registrar that writes their endpoints to the store."""

    def __init__(self, registrar: Registrar, sources: Sequence[WorkloadSource]) -> None:
        """Set the registrar and the sources; nothing runs yet."""
        self.registrar = registrar
        self._sources = sources
        self._tasks: list[asyncio.Task[None]] = []
        registrar.sources = tuple(source.name for source in sources)

    async def start(self) -> None:
        """Start the sources; return once their first endpoints are in the store, to be enforced with its first state.

        A source that takes long names its endpoints later; those that the store has meanwhile are in force.
        """
        self._tasks = [asyncio.create_task(self._run(source)) for source in self._sources]
        if self._sources:
            await self.registrar.wait_named(_FIRST)
            await self.registrar.write()

    async def run(self) -> None:
        """Write each change; never return."""
        await self.registrar.run()

    async def stop(self) -> None:
        """Stop the sources; their endpoints stay in the store."""
        await cancel(*self._tasks)

    async def _run(self, source: WorkloadSource) -> None:
        try:
            await source.run()
        except Exception:  # the entry point of a task: an internal error must not go unsaid
            _log.exception("source %s of workloads failed", source.name)
            self.registrar.note_problem(source.name, "an internal error; the log of the agent has it")

    def status(self) -> WorkloadsStatus | None:
        """Return the status of all sources, None without any."""
        if not self._sources:
            return None
        counts = self.registrar.counts()
        return WorkloadsStatus(
            sources=[
                WorkloadSourceStatus(
                    source.name, counts[source.name], self.registrar.away.get(source.name), source.status()
                )
                for source in self._sources
            ],
            refused=dict(sorted((self._document_problems() | self.registrar.problems).items())),
        )

    def _document_problems(self) -> dict[str, str]:
        return self.registrar.publisher.problems if self.registrar.publisher else {}

    def changing(self) -> frozenset[str]:
        """Return the endpoints of workloads that start or have just ended: their interfaces come and go."""
        return frozenset(name for source in self._sources for name in source.changing())

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each source that is away, each endpoint or document not in force, and of the sources."""
        for source, reason in self.registrar.away.items():
            yield f"source {source} of workloads is away, its last endpoints stay in force: {reason}"
        yield from self.endpoint_problems()
        yield from self.document_problems()
        yield from self.source_problems()

    def endpoint_problems(self) -> Iterator[str]:
        """Yield a sentence for each endpoint that a source names and that is not in force."""
        for name, reason in sorted(self.registrar.problems.items()):
            yield f"endpoint {name} is not in force: {reason}"

    def document_problems(self) -> Iterator[str]:
        """Yield a sentence for each document of a source that is not in force."""
        for title, reason in sorted(self._document_problems().items()):
            yield f"{title} is not in force in its present form: {reason}"

    def source_problems(self) -> Iterator[str]:
        """Yield the sentences of the sources: workloads that are no endpoints, traffic that policy does not see."""
        for each in self._sources:
            yield from each.problems()
