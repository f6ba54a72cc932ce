"""Log of the agent on standard error: formats without control characters, and a limit for repeated messages.

Messages of one kind differ only in their arguments. The first few of a kind are written as they come; after them, one
line for each interval has the number of those that were left out. So a flood of one kind (a client that fails, a store
that refuses) fills neither disk nor journal, and hides no message of another kind.
"""

import asyncio
import errno
import json
import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TextIO

from nfq_enforcer.text import printable_lines

_log = logging.getLogger(__name__)
_NO_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
INTERVAL = 30.0  # s for one count of the messages that were left out
BURST = 5  # messages of one kind that are written as they come
_INDENT = "\n    "  # of all lines of a message but the first, so that no line of a value looks like a message


@dataclass
class _Kind:
    began: float  # s; the beginning of the interval
    room: int  # messages still to be written in this interval
    omitted: int = 0
    last: logging.LogRecord | None = None  # the last omitted one


class Omitted(NamedTuple):
    """Omitted: the last message of a kind that was left out, and the number of those in the interval."""

    last: logging.LogRecord
    number: int


class RateLimit:
    """Rate limit: admits the first messages of each kind in an interval, and counts the others. Pure."""

    def __init__(self, burst: int = BURST, interval: float = INTERVAL) -> None:
        """Set the messages of a kind that are admitted at first, and the seconds of an interval."""
        self._burst = burst
        self._interval = interval
        self._kinds: dict[Hashable, _Kind] = {}

    def admit(self, record: logging.LogRecord, now: float) -> bool:
        """Return whether to write a message; count it otherwise. ``due`` must have been called for ``now``."""
        key = record.name, record.levelno, record.msg if isinstance(record.msg, str) else str(type(record.msg))
        kind = self._kinds.setdefault(key, _Kind(now, self._burst))
        if kind.room > 0:
            kind.room -= 1
            return True
        kind.omitted += 1
        kind.last = record
        return False

    def due(self, now: float) -> list[Omitted]:
        """Return the counts of the intervals that have ended, and begin new intervals.

        A kind with omitted messages gets no new room until an interval without any.
        """
        ended = [(key, kind) for key, kind in self._kinds.items() if now >= kind.began + self._interval]
        omitted = []
        for key, kind in ended:
            if kind.last is None:
                del self._kinds[key]
            else:
                omitted.append(Omitted(kind.last, kind.omitted))
                self._kinds[key] = _Kind(now, 0)
        return omitted

    @property
    def waiting(self) -> bool:
        """Return whether omitted messages have not been counted in the log yet."""
        return any(kind.omitted for kind in self._kinds.values())


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Limited handler: writes messages to a stream, within a rate limit for each kind."""

    def __init__(
        self, stream: TextIO | None = None, limit: RateLimit | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the stream (standard error by default)."""
        super().__init__(stream)
        self._limit = limit or RateLimit()
        self._clock = clock
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or count it; write the counts that are due before it."""
        self._write_counts()
        if record.levelno <= logging.DEBUG or self._limit.admit(record, self._clock()):
            super().emit(record)
        self._schedule()

    def _write_counts(self) -> None:
        for last, number in self._limit.due(self._clock()):
            summary = logging.makeLogRecord(last.__dict__)
            summary.msg, summary.args = f"{last.getMessage()} ({number} such messages in {INTERVAL:.0f} s)", None
            summary.exc_info = summary.exc_text = None
            super().emit(summary)

    def _schedule(self) -> None:
        """Have the counts written at the end of the interval, also without another message."""
        if self._timer is None and self._limit.waiting:
            self._timer = threading.Timer(INTERVAL, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        with self.lock or threading.RLock():
            self._timer = None
            self._write_counts()
            self._schedule()

    def close(self) -> None:
        """Cancel the timer, and close."""
        if self._timer is not None:
            self._timer.cancel()
        super().close()


class TextFormatter(logging.Formatter):
    """Text formatter: time, level and message; further lines of a message are indented."""

    def __init__(self) -> None:
        """Set the form of a line."""
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the message without control characters."""
        return printable_lines(super().format(record)).replace("\n", _INDENT)


class JsonFormatter(logging.Formatter):
    """JSON formatter: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, message, and the traceback of an exception."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of the event loop: one line for a client that finds no descriptor left, others as asyncio does.

    asyncio accepts no client for a second then; its own message has a traceback.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _NO_RESOURCES and "socket" in context:
        _log.error("a client cannot be accepted: %s", error.strerror)
    else:
        loop.default_exception_handler(context)


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Write the messages of this process from a level upward to standard error."""
    handler = LimitedHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
