"""Metrics of running agents, scraped over HTTP as by Prometheus."""

import sys

from prometheus_client.parser import text_string_to_metric_families as parse

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import BRIEF, FRONT_TO_BACK, HTTP, PATIENT, Policies, run_in

SCRAPE = (
    "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9962/metrics', timeout=9).read().decode())"
)


def scrape(lab: Lab, name: str) -> dict[str, float]:
    """Return the values of a node's metrics by name, followed by the label verdict or reason."""
    values = {}
    for family in parse(run_in(lab, name, sys.executable, "-c", SCRAPE)):
        for sample in family.samples:
            labels = [sample.labels[key] for key in ("verdict", "reason") if key in sample.labels]
            values[" ".join([sample.name.removeprefix("nfq_enforcer_"), *labels])] = sample.value
    return values


async def test_what_traffic_comes_to_is_seen_in_the_metrics(guarded: Lab, policies: Policies) -> None:
    await policies.apply("front-to-back", FRONT_TO_BACK)
    before = scrape(guarded, "n1")

    assert (await guarded.host("front1").connect(guarded.address("back1"), HTTP, PATIENT)).ok
    passed = scrape(guarded, "n1")
    assert not (await guarded.host("back1").connect(guarded.address("front1"), HTTP, BRIEF)).ok
    after = scrape(guarded, "n1")

    assert passed["packets_total ACCEPT"] >= before["packets_total ACCEPT"] + 3  # the handshake
    assert after["packets_total DROP"] > passed["packets_total DROP"]
    assert after["drops_total POLICY_DENIED"] > passed["drops_total POLICY_DENIED"]
    status = guarded.nodes["n1"].status()
    assert after["policy_revision"] == status["revision"]
    assert (after["endpoints"], after["worker_up"], after["packets_lost_total"]) == (status["endpoints"], 1, 0)
