"""Metrics over HTTP, in Prometheus' text format: ``GET /metrics``.

Each connection is one request and its answer. Figures are read for one scrape at a time, however many ask for them, and
a client that is slow to ask or to listen is hung up on.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.metrics import MetricFamily, MetricType

_log = logging.getLogger(__name__)
_LIMIT = 1 << 14  # bytes of a request
_PATIENCE = 10.0  # seconds for a request and its answer
_PLAIN = "text/plain; charset=utf-8"
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"  # which every scraper takes
_FAMILIES = {MetricType.GAUGE: GaugeMetricFamily, MetricType.COUNTER: CounterMetricFamily}

Read = Callable[[], Awaitable[Iterable[MetricFamily]]]


def render(families: Iterable[MetricFamily]) -> bytes:
    """Return the families in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Known(families))
    return generate_latest(registry)


class _Known(Collector):
    """Collects what is known already."""

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        """Yield each family as the library has it."""
        for family in self._families:
            names = list(family.samples[0].labels)
            metric = _FAMILIES[family.sort](family.name, family.help, labels=names)
            for sample in family.samples:
                metric.add_metric([sample.labels[name] for name in names], sample.value)
            yield metric


class Exporter:
    """Serves the families that it reads anew for each scrape."""

    def __init__(self, host: str, port: int, read: Read) -> None:
        """Say where to listen (port 0: any that is free), and how figures are read."""
        self._host = host
        self._port = port
        self._read = read
        self._one_at_a_time = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Return the port that is listened on."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server else self._port

    async def start(self) -> None:
        """Listen; raise NfqError if the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=_LIMIT)
        except OSError as error:
            where = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise NfqError(
                f'cannot serve metrics on {where}: {reason}; choose another metrics.address, or "" for no metrics'
            ) from None

    async def stop(self) -> None:
        """Hang up on every client and listen no more."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            async with asyncio.timeout(_PATIENCE):
                writer.write(await self._answer(reader))
                await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):  # it has gone or was too slow, or we go
            pass
        except Exception:  # a bug must cost this client its answer, and nobody else anything
            _log.exception("a request for metrics failed")
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match head.partition(b"\r\n")[0].split(b" "):
            case [b"GET" | b"HEAD" as method, target, version] if version.startswith(b"HTTP/1."):
                if target.partition(b"?")[0] != b"/metrics":
                    return _response(HTTPStatus.NOT_FOUND, b"the metrics are at /metrics\n")
                return await self._scrape(with_body=method == b"GET")
            case [_, _, version] if version.startswith(b"HTTP/1."):
                return _response(HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET, HEAD\r\n")
        return _response(HTTPStatus.BAD_REQUEST)

    async def _scrape(self, *, with_body: bool) -> bytes:
        try:
            async with self._one_at_a_time:
                text = render(await self._read())
        except NfqError as error:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(), with_body=with_body)
        return _response(HTTPStatus.OK, text, _TEXT_FORMAT, with_body=with_body)


def _response(
    status: HTTPStatus, body: bytes = b"", sort: str = _PLAIN, *, more: str = "", with_body: bool = True
) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {sort}\r\nContent-Length: {len(body)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
