"""Metrics of running agents, scraped over HTTP as by Prometheus."""

from nfq_enforcer.lab.lab import Lab
from tests.support.labs import BRIEF, FRONT_TO_BACK, HTTP, PATIENT, Policies
from tests.support.metrics import scrape


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
