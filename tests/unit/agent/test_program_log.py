"""Log of the agent: no control characters, and no flood of one message."""

import asyncio
import errno
import io
import json
import logging
import os
import sys

import pytest

from nfq_enforcer.agent.program_log import (
    INTERVAL,
    JsonFormatter,
    LimitedHandler,
    RateLimit,
    TextFormatter,
    on_loop_error,
)

CLOCK_START = 1000.0


class Log:
    """Log into a string, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = CLOCK_START
        self._stream = io.StringIO()
        self._handler = LimitedHandler(self._stream, RateLimit(), lambda: self.now)
        self._handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self.logger = logging.Logger("test")
        self.logger.addHandler(self._handler)

    @property
    def lines(self) -> list[str]:
        """Return the lines so far."""
        return self._stream.getvalue().splitlines()

    def close(self) -> None:
        """Cancel the timer."""
        self._handler.close()


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("test", logging.ERROR, "file", 1, message, arguments, None)


def test_a_flood_of_one_kind_is_a_few_lines_then_one_with_a_count_for_each_interval() -> None:
    log = Log()
    for second in range(90):
        log.now = CLOCK_START + second
        for attempt in range(100):
            log.logger.error("client %d failed", 100 * second + attempt)
    log.close()

    assert log.lines == [
        *(f"ERROR client {number} failed" for number in range(5)),
        f"ERROR client 2999 failed (2995 such messages in {INTERVAL:.0f} s)",
        f"ERROR client 5999 failed (3000 such messages in {INTERVAL:.0f} s)",
    ]


def test_a_flood_of_one_kind_hides_no_other() -> None:
    log = Log()
    for _ in range(1000):
        log.logger.error("client failed")
    log.logger.warning("the store is unreachable: %s", "no route")
    log.close()

    assert log.lines[5:] == ["WARNING the store is unreachable: no route"]


def test_after_an_interval_of_silence_messages_are_written_as_they_come() -> None:
    limit = RateLimit(burst=1, interval=10.0)

    def logged(now: float) -> tuple[int, bool]:
        return sum(omitted.number for omitted in limit.due(now)), limit.admit(record("m"), now)

    assert [logged(now) for now in (0.0, 1.0, 9.0, 10.0, 21.0, 32.0)] == [
        (0, True),
        (0, False),
        (0, False),
        (2, False),
        (1, False),
        (1, False),
    ]
    assert [omitted.number for omitted in limit.due(43.0)] == [1]
    assert logged(54.0) == (0, True)


def test_the_count_is_written_without_another_message() -> None:
    limit = RateLimit(burst=1, interval=10.0)
    limit.admit(record("m"), 0.0)
    limit.admit(record("m"), 1.0)

    assert limit.waiting
    assert [omitted.number for omitted in limit.due(11.0)] == [1]
    assert not limit.waiting


def test_a_line_has_no_control_characters_and_a_second_line_is_indented() -> None:
    line = TextFormatter().format(record("refused: %s", "a\x1b[2J\n2026-01-01 00:00:00,000 INFO forged\u202e"))

    assert line.split("ERROR ")[1] == "refused: a\\x1b[2J\n    2026-01-01 00:00:00,000 INFO forged\\u202e"


def test_json_has_one_line_with_the_traceback() -> None:
    try:
        raise ValueError("\x1b\n")
    except ValueError:
        failed = logging.LogRecord("test", logging.ERROR, "file", 1, "bug %s", ("\x1b\n",), sys.exc_info())

    line = JsonFormatter().format(failed)

    assert line.isprintable()
    assert json.loads(line)["message"] == "bug \x1b\n"
    assert "ValueError" in json.loads(line)["exception"]


def test_a_client_without_a_descriptor_is_one_line_and_another_error_of_the_loop_has_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_loop_error)
        full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        loop.call_exception_handler({"message": "accept", "exception": full, "socket": None})
        loop.call_exception_handler({"message": "task", "exception": full})
        loop.call_exception_handler({"message": "callback", "exception": ValueError("wrong")})

    asyncio.run(scenario())

    client, *others = caplog.records
    assert (client.getMessage(), client.exc_info) == ("a client cannot be accepted: Too many open files", None)
    assert [(record.getMessage(), bool(record.exc_info)) for record in others] == [("task", True), ("callback", True)]
