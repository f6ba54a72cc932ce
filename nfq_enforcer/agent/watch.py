"""Watch over the agent's own parts: its threads, its child processes, and the event loop.

A job in a thread is stuck once neither its thread nor a child process of the agent has used processor time for some
seconds: so a long compilation, or a long ``nft -f``, counts as work. The watch sends the heartbeat of
sd_notify(3) from the event loop, so a blocked loop sends none, and holds it back while a job is stuck for long. systemd
then restarts the agent; without systemd the status names the job.

While the event loop is blocked, no status can name it. Therefore a thread logs the function in which it is blocked, and
the status names the event loop for a minute afterwards.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer.agent import notify
from nfq_enforcer.dataplane.worker.liveness import parse_stat

_log = logging.getLogger(__name__)
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_THREADS = 8
Result = TypeVar("Result")


@dataclass(frozen=True)
class WatchTimings:
    """Watch timings, in seconds."""

    interval: float = 0.5  # between two looks
    idle_job: float = 5.0  # without processor time, until a job is stuck
    endless_job: float = 600.0  # of a job, until it is stuck although it uses processor time
    hold_back: float = 30.0  # for which a job is stuck, until systemd no longer receives heartbeats
    blocked_loop: float = 2.0  # until the event loop counts as blocked
    report_loop: float = 60.0  # for which the status names an event loop that was blocked


class StuckJob(NamedTuple):
    """Stuck job: a part of the agent that makes no progress."""

    part: str
    since: float  # s since the epoch
    reason: str


@dataclass
class _Job:
    name: str
    thread: int  # id of the thread in the kernel
    begun: float
    progress: float  # time of the last progress
    cpu: float = -1.0


class WatchedThreads(ThreadPoolExecutor):
    """Watched threads: the executor of ``asyncio.to_thread``, which knows its running jobs by name."""

    def __init__(self) -> None:
        """Start no thread yet."""
        super().__init__(_THREADS, "agent")
        self.running: dict[int, _Job] = {}

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """Run a function in a thread."""
        return super().submit(self._run, function, *args, **kwargs)

    def _run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        now, thread = time.monotonic(), threading.get_native_id()
        self.running[thread] = _Job(_name(function), thread, now, now)
        try:
            return function(*args, **kwargs)
        finally:
            del self.running[thread]


def _name(function: Callable[..., Any]) -> str:
    """Return the name of a function; ``asyncio.to_thread`` passes it as the first argument of ``Context.run``."""
    while isinstance(function, partial):
        function = function.args[0] if function.args else function.func
    return getattr(function, "__qualname__", type(function).__name__)


class Watch:
    """Watch: finds stuck jobs, measures the event loop's lag, and sends heartbeats to the service manager."""

    def __init__(self, workers: Callable[[], Collection[int]], timings: WatchTimings | None = None) -> None:
        """Watch nothing yet; ``workers`` returns the process ids of the workers, which have a watch of their own."""
        self.threads = WatchedThreads()
        self._workers = workers
        self._timings = timings or WatchTimings()
        self._children = 0.0  # processor time of the child processes at the last look
        self._turn = time.monotonic()  # the last turn of the event loop
        self._blocked: tuple[float, float] | None = None  # begin and end of the last time when it was blocked

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self.threads)
        stopped = threading.Event()
        threading.Thread(
            target=self._watch_loop, args=(threading.get_ident(), stopped), name="watch", daemon=True
        ).start()
        limit = notify.watchdog_limit()
        interval = min(self._timings.interval, limit / 4) if limit else self._timings.interval
        try:
            while True:
                self._turn = time.monotonic()
                await asyncio.sleep(interval)
                now = time.monotonic()
                if now - self._turn - interval >= self._timings.blocked_loop:
                    self._blocked = self._turn, now
                self.look(now)
                if limit and self._may_notify(now):
                    notify.watchdog()
        finally:
            stopped.set()

    def look(self, now: float) -> None:
        """Update the progress of each running job."""
        children = sum(cpu for _, _, cpu in self._child_processes())
        worked, self._children = children != self._children, children
        for job in tuple(self.threads.running.values()):
            cpu = _cpu(Path(f"/proc/self/task/{job.thread}/stat"))
            if cpu != job.cpu or worked:
                job.cpu, job.progress = cpu, now

    def stuck(self) -> Iterator[StuckJob]:
        """Yield the stuck jobs."""
        now, epoch = time.monotonic(), time.time() - time.monotonic()
        if self._blocked and now - self._blocked[1] < self._timings.report_loop:
            begin, end = self._blocked
            yield StuckJob("event loop", epoch + begin, f"was blocked for {end - begin:.1f} s")
        for job in tuple(self.threads.running.values()):
            if since := self._stuck_since(job, now):
                children = ", ".join(f"{name} (process {pid})" for pid, name, _ in self._child_processes())
                waits = f"; child processes: {children}" if children else ""
                yield StuckJob(f"thread {job.name}", epoch + since, f"has run for {now - job.begun:.0f} s{waits}")

    def _stuck_since(self, job: _Job, now: float) -> float | None:
        """Return the time since which a job is stuck, None for a job that makes progress."""
        if now - job.progress >= self._timings.idle_job:
            return job.progress
        return job.begun if now - job.begun >= self._timings.endless_job else None

    def _may_notify(self, now: float) -> bool:
        begins = (self._stuck_since(job, now) for job in tuple(self.threads.running.values()))
        return all(since is None or now - since < self._timings.hold_back for since in begins)

    def _child_processes(self) -> Iterator[tuple[int, str, float]]:
        """Yield process id, name and processor time of each child process that is no worker."""
        workers = self._workers()
        for children in Path("/proc/self/task").glob("*/children"):
            try:
                pids = [int(pid) for pid in children.read_text().split()]
            except OSError:  # the thread has ended
                continue
            for pid in pids:
                if pid not in workers and (cpu := _cpu(Path(f"/proc/{pid}/stat"))) >= 0:
                    yield pid, _command_name(pid), cpu

    def _watch_loop(self, thread: int, stopped: threading.Event) -> None:
        """Log, once, the place in which the event loop is blocked."""
        logged = 0.0
        while not stopped.wait(self._timings.interval):
            blocked = time.monotonic() - self._turn - self._timings.interval
            if blocked < self._timings.blocked_loop or logged == self._turn:
                continue
            logged = self._turn
            frame = sys._current_frames().get(thread)
            _log.warning("the event loop has been blocked for %.1f s, in %s", blocked, _place(frame))


def _cpu(stat: Path) -> float:
    try:
        return parse_stat(stat.read_text(), _CLOCK_TICKS).cpu
    except OSError:
        return -1.0


def _command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _place(frame: FrameType | None) -> str:
    """Return the innermost functions of a stack."""
    names: list[str] = []
    while frame is not None and len(names) < 4:
        names.append(f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})")
        frame = frame.f_back
    return ", called by ".join(names) or "an unknown place"
