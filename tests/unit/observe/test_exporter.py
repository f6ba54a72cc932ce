"""Exporter: metrics for a valid HTTP request, an error status for others, and limits for both."""

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe import exporter
from nfq_enforcer.observe.exporter import Exporter, render
from nfq_enforcer.observe.metric_family import MetricFamily, MetricType, Sample
from nfq_enforcer.web.server import Limits

FAMILIES = (
    MetricFamily("nfq_enforcer_flows", "Open flows.", MetricType.GAUGE, (Sample(3, {}),)),
    MetricFamily(
        "nfq_enforcer_drops_total",
        'Packets, "dropped".\n',
        MetricType.COUNTER,
        (Sample(5, {"reason": "POLICY_DENIED"}), Sample(0, {"reason": 'a"b\\c\n'})),
    ),
)
TEXT = render(FAMILIES)
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def read() -> Iterable[MetricFamily]:
    return FAMILIES


def serving(
    client: Callable[[Exporter], Awaitable[bytes]], read: exporter.Read = read, limits: Limits = exporter.LIMITS
) -> bytes:
    async def run() -> bytes:
        served = Exporter("127.0.0.1", 0, read, limits)
        await served.start()
        try:
            return await asyncio.wait_for(client(served), 10)
        finally:
            await served.stop()

    return asyncio.run(run())


async def ask(served: Exporter, request: bytes) -> bytes:
    """Send a request and return the whole response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def head_of(answer: bytes) -> list[bytes]:
    return answer.partition(b"\r\n\r\n")[0].split(b"\r\n")


def test_the_text_says_what_the_families_say() -> None:
    flows, drops = parse(TEXT.decode())

    assert (flows.name, flows.type, flows.documentation) == ("nfq_enforcer_flows", "gauge", "Open flows.")
    assert [(one.labels, one.value) for one in flows.samples] == [({}, 3)]
    assert (drops.type, drops.documentation) == ("counter", 'Packets, "dropped".\n')
    assert [(one.name, one.labels, one.value) for one in drops.samples] == [
        ("nfq_enforcer_drops_total", {"reason": "POLICY_DENIED"}, 5),
        ("nfq_enforcer_drops_total", {"reason": 'a"b\\c\n'}, 0),
    ]


@pytest.mark.parametrize(
    "request_", [SCRAPE, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"GET /metrics HTTP/1.1\r\nAccept: a;version=x\r\n\r\n"]
)
def test_a_scrape_is_answered_with_the_text(request_: bytes) -> None:
    answer = serving(lambda served: ask(served, request_))

    assert head_of(answer) == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/plain; version=0.0.4; charset=utf-8",
        b"Content-Length: %d" % len(TEXT),
        b"Connection: close",
    ]
    assert answer.partition(b"\r\n\r\n")[2] == TEXT


def test_the_head_alone_is_to_be_had() -> None:
    answer = serving(lambda served: ask(served, b"HEAD /metrics HTTP/1.1\r\n\r\n"))

    assert b"Content-Length: %d" % len(TEXT) in head_of(answer)
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET /metricses HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics SPDY/3\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000, b"431 Request Header Fields Too Large"),
    ],
)
def test_what_is_no_scrape_is_told_so(request_: bytes, status: bytes) -> None:
    assert head_of(serving(lambda served: ask(served, request_)))[0] == b"HTTP/1.1 " + status


def test_one_scrape_is_read_at_a_time() -> None:
    reading = most = 0

    async def read() -> Iterable[MetricFamily]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        for _ in range(5):
            await asyncio.sleep(0)
        reading -= 1
        return FAMILIES

    async def many(served: Exporter) -> bytes:
        answers = await asyncio.gather(*(ask(served, SCRAPE) for _ in range(10)))
        assert all(answer.endswith(TEXT) for answer in answers)
        return answers[0]

    serving(many, read)
    assert most == 1


def test_a_client_that_says_nothing_is_hung_up_on(caplog: pytest.LogCaptureFixture) -> None:
    limits = replace(exporter.LIMITS, time=0.01)

    assert serving(lambda served: ask(served, b"GET /metr"), limits=limits) == b""
    assert caplog.records == []


def test_a_client_that_hangs_up_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def after_one_that_left(served: Exporter) -> bytes:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /metr")
        writer.close()
        await writer.wait_closed()
        return await ask(served, SCRAPE)

    assert serving(after_one_that_left).endswith(TEXT)
    assert caplog.records == []


def test_those_who_wait_are_hung_up_on_at_the_end() -> None:
    async def until_stopped(served: Exporter) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        assert (await ask(served, SCRAPE)).endswith(TEXT)  # the first connection is accepted by now
        await served.stop()
        left = await reader.read()
        writer.close()
        return left

    assert serving(until_stopped) == b""


def test_figures_that_cannot_be_had_are_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    async def read() -> Iterable[MetricFamily]:
        raise NfqError("iptables-save is gone")

    answer = serving(lambda served: ask(served, SCRAPE), read)

    assert head_of(answer)[0] == b"HTTP/1.1 503 Service Unavailable"
    assert answer.endswith(b"\r\n\r\niptables-save is gone\n")
    assert caplog.records == []


def test_a_bug_is_logged_and_costs_nobody_else_anything(caplog: pytest.LogCaptureFixture) -> None:
    faults = [ZeroDivisionError()]

    async def read() -> Iterable[MetricFamily]:
        if faults:
            raise faults.pop()
        return FAMILIES

    async def twice(served: Exporter) -> bytes:
        assert await ask(served, SCRAPE) == b""
        return await ask(served, SCRAPE)

    with caplog.at_level(logging.ERROR):
        assert serving(twice, read).endswith(TEXT)
    assert [record.message for record in caplog.records] == ["a request for metrics failed"]


def test_a_port_that_is_taken_is_one_sentence() -> None:
    async def another(served: Exporter) -> bytes:
        with pytest.raises(NfqError) as caught:
            await Exporter("127.0.0.1", served.port, read).start()
        return str(caught.value).replace(str(served.port), "PORT").encode()

    assert serving(another).decode() == (
        f"cannot serve metrics on 127.0.0.1:PORT: {os.strerror(errno.EADDRINUSE)}; "
        'choose another metrics.address, or "" for no metrics'
    )


def test_an_address_that_is_not_the_hosts_is_one_sentence() -> None:
    with pytest.raises(NfqError, match=r"^cannot serve metrics on \[2001:db8::1\]:9962: .*; choose another metrics"):
        asyncio.run(Exporter("2001:db8::1", 9962, read).start())


def test_what_was_not_started_can_be_stopped() -> None:
    asyncio.run(Exporter("127.0.0.1", 9962, read).stop())
