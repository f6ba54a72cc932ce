"""Tasks are cancelled and awaited, or run to their end without regard to their caller."""

import asyncio
from contextlib import suppress

import pytest

from nfq_enforcer import tasks
from nfq_enforcer.tasks import Works, cancel


def test_cancelled_tasks_have_ended_and_their_errors_are_ignored() -> None:
    async def scenario() -> None:
        async def fail() -> None:
            raise ValueError

        failed, waiting = asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)

        await cancel(failed, None, waiting)

        assert waiting.cancelled()
        assert isinstance(failed.exception(), ValueError)

    asyncio.run(scenario())


def test_work_goes_on_without_its_caller() -> None:
    async def scenario() -> None:
        works, begun, go_on, done = Works(), asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await go_on.wait()
            done.set()

        caller = asyncio.create_task(works.run(work()))
        await begun.wait()
        await cancel(caller)
        assert works.running
        go_on.set()
        await done.wait()
        await asyncio.sleep(0)

        assert not works.running

    asyncio.run(scenario())


def test_the_caller_gets_the_error_of_the_work() -> None:
    async def scenario() -> None:
        async def fail() -> None:
            raise ValueError("refused")

        with pytest.raises(ValueError, match="refused"):
            await Works().run(fail())

    asyncio.run(scenario())


def test_an_error_without_a_caller_is_retrieved() -> None:
    async def scenario() -> None:
        works, begun, go_on = Works(), asyncio.Event(), asyncio.Event()
        unretrieved: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))

        async def fail() -> None:
            begun.set()
            await go_on.wait()
            raise ValueError

        caller = asyncio.create_task(works.run(fail()))
        await begun.wait()
        await cancel(caller)
        go_on.set()
        while works.running:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert unretrieved == []

    asyncio.run(scenario())


def test_a_task_that_swallows_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_AGAIN", 0.01)

    async def scenario() -> None:
        async def go_on() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            await asyncio.sleep(3600)

        task = asyncio.create_task(go_on())
        await asyncio.sleep(0)
        await cancel(task)

        assert task.cancelled()

    asyncio.run(scenario())


def test_nothing_to_cancel_is_cancelled_at_once() -> None:
    asyncio.run(cancel())
    asyncio.run(cancel(None))
