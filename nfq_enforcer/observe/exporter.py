"""Metrics over HTTP in Prometheus' text format: ``GET /metrics``.

Each connection carries one request and its response. Metrics are read for one scrape at a time, however many clients
scrape at once. A client that is slow to send its request or to read the response is disconnected.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.metric_family import MetricFamily, MetricType
from nfq_enforcer.observe.status import HistogramStatus
from nfq_enforcer.web import http
from nfq_enforcer.web.http import Response
from nfq_enforcer.web.server import Limits, StreamServer

LIMITS = Limits(request=1 << 14, time=10.0, request_time=5.0, clients=32)
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"  # the version that every scraper accepts
_FAMILIES = {MetricType.GAUGE: GaugeMetricFamily, MetricType.COUNTER: CounterMetricFamily}

Read = Callable[[], Awaitable[Iterable[MetricFamily]]]


def render(families: Iterable[MetricFamily]) -> bytes:
    """Return the families in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_FixedCollector(families))
    return generate_latest(registry)


class _FixedCollector(Collector):
    """Collector: gives the library families with values that are already read."""

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        """Yield each family in the library's type."""
        for family in self._families:
            if family.histogram is not None:
                yield _histogram(family, family.histogram)
                continue
            if family.sort is MetricType.SUMMARY:
                yield _summary(family)
                continue
            names = list(family.samples[0].labels)
            metric = _FAMILIES[family.sort](family.name, family.help, labels=names)
            for sample in family.samples:
                metric.add_metric([sample.labels[name] for name in names], sample.value)
            yield metric


def _histogram(family: MetricFamily, values: HistogramStatus) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help)
    bounds = [*map(repr, values.bounds), "+Inf"]
    metric.add_metric([], list(zip(bounds, accumulate(values.counts), strict=True)), values.sum)
    return metric


def _summary(family: MetricFamily) -> Metric:
    """Return a summary without the sum and the number of all observations, which the library's own type requires."""
    metric = Metric(family.name, family.help, MetricType.SUMMARY)
    for sample in family.samples:
        metric.add_sample(family.name, dict(sample.labels), sample.value)
    return metric


class Exporter:
    """Exporter: serves metric families, read anew for each scrape."""

    def __init__(self, host: str, port: int, read: Read, limits: Limits = LIMITS) -> None:
        """Set the address to listen on (port 0: any free one) and the function that reads the families."""
        self._host = host
        self._port = port
        self._read = read
        self._scrape = asyncio.Lock()
        self._server = StreamServer(http.handler(self._get), http.refusal, limits, "a request for metrics")

    @property
    def port(self) -> int:
        """Return the port on which the exporter listens."""
        return self._server.port or self._port

    async def start(self) -> None:
        """Listen; raise NfqError if the address cannot be bound."""
        try:
            await self._server.listen_tcp(self._host, self._port)
        except OSError as error:
            where = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise NfqError(
                f'cannot serve metrics on {where}: {reason}; choose another metrics.address, or "" for no metrics'
            ) from None

    async def stop(self) -> None:
        """Stop listening and disconnect every client."""
        await self._server.stop()

    async def _get(self, path: bytes) -> Response:
        if path != b"/metrics":
            return Response(HTTPStatus.NOT_FOUND, b"the metrics are at /metrics\n")
        try:
            async with self._scrape:
                return Response(HTTPStatus.OK, render(await self._read()), _TEXT_FORMAT)
        except NfqError as error:
            return Response(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())
