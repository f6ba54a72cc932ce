"""Notifications of the kernel, for tasks of the agent that also look at an interval."""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from nfq_enforcer.agent.timings import LookTimings
from nfq_enforcer.dataplane.rules import kernel_watch


@contextmanager
def notified(
    open_socket: Callable[[], socket.socket], changed: asyncio.Event, log: logging.Logger, lost: str
) -> Iterator[None]:
    """Set the event after each notification; log ``lost``, with the reason in its place, if none can be received."""
    try:
        notifications = open_socket()
    except OSError as error:
        log.warning(lost, error)
        yield
        return

    def on_notification() -> None:
        kernel_watch.discard(notifications)
        changed.set()

    loop = asyncio.get_running_loop()
    with notifications:
        loop.add_reader(notifications, on_notification)
        try:
            yield
        finally:
            loop.remove_reader(notifications)


async def look_repeatedly(
    look: Callable[[], Awaitable[None]],
    open_socket: Callable[[], socket.socket],
    log: logging.Logger,
    lost: str,
    timings: LookTimings,
) -> None:
    """Look after each notification, and at an interval; never return."""
    changed = asyncio.Event()
    with notified(open_socket, changed, log, lost):
        while True:
            changed.clear()
            begun = time.monotonic()
            await look()
            await asyncio.sleep(max(timings.pause, (time.monotonic() - begun) / timings.busy))
            try:
                async with asyncio.timeout(timings.interval):
                    await changed.wait()
            except TimeoutError:
                pass
