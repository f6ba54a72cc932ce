"""Metric families, with Prometheus' conventions for names. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.observe.status import HistogramStatus

PREFIX = "nfq_enforcer_"


class MetricType(StrEnum):
    """Type of a metric family: how its values change."""

    GAUGE = "gauge"
    COUNTER = "counter"  # only increases; its name ends in ``_total``
    HISTOGRAM = "histogram"
    SUMMARY = "summary"  # its samples are quantiles


class Sample(NamedTuple):
    """Sample: a value, with the labels that distinguish it within its family."""

    value: float
    labels: Mapping[str, str]


class MetricFamily(NamedTuple):
    """Metric family: the samples of one name."""

    name: str
    help: str
    sort: MetricType
    samples: tuple[Sample, ...]
    histogram: HistogramStatus | None = None  # of a histogram, which has no samples


def single(name: str, meaning: str, value: float) -> MetricFamily:
    """Return a family with one sample, without labels."""
    return family(name, meaning, Sample(value, {}))


def histogram(name: str, meaning: str, values: HistogramStatus) -> MetricFamily:
    """Return a family with one histogram, without labels."""
    return MetricFamily(PREFIX + name, meaning, MetricType.HISTOGRAM, (), values)


def family(name: str, meaning: str, *samples: Sample) -> MetricFamily:
    """Return a family; a name that ends in ``_total`` is that of a counter."""
    return MetricFamily(
        PREFIX + name, meaning, MetricType.COUNTER if name.endswith("_total") else MetricType.GAUGE, samples
    )
