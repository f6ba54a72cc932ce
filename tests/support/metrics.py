"""Metrics of a lab's agent, scraped over HTTP as by Prometheus."""

import sys

from prometheus_client.parser import text_string_to_metric_families as parse

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import run_in

_SCRAPE = (
    "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9962/metrics', timeout=9).read().decode())"
)


def scrape(lab: Lab, name: str) -> dict[str, float]:
    """Return the values of a node's metrics by name, followed by the label verdict or reason.

    Both directions count together.
    """
    values: dict[str, float] = {}
    for family in parse(run_in(lab, name, sys.executable, "-c", _SCRAPE)):
        for sample in family.samples:
            labels = [sample.labels[key] for key in ("verdict", "reason") if key in sample.labels]
            name = " ".join([sample.name.removeprefix("nfq_enforcer_"), *labels])
            values[name] = sample.value + (values.get(name, 0) if "direction" in sample.labels else 0)
    return values
