"""Tasks of asyncio: cancelled and awaited, or run to their end without regard to their caller."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
_AGAIN = 1.0  # s until a task that has not ended is cancelled again


async def cancel(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel tasks, and return when they have ended; their results and errors are ignored, and None is no task.

    A task that goes on is cancelled again: redis-py can swallow a cancellation that meets an arriving answer.
    """
    cancelled = [task for task in tasks if task is not None]
    pending = set(cancelled)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
    for task in cancelled:
        if not task.cancelled():
            task.exception()  # asyncio would log that nobody retrieved it


class Works:
    """Works: tasks that run to their end, even if their callers are cancelled."""

    def __init__(self) -> None:
        """Start without tasks."""
        self.running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run work as a task, and return its result; a cancelled caller leaves the task running."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Run work as a task."""
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self.running.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have been cancelled; asyncio would log that nobody retrieved it
