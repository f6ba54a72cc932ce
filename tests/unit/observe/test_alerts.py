"""Alert rules and dashboard: correct by promtool, about metrics that exist; each alert fires for its fault only."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml

from nfq_enforcer.observe.exporter import render
from nfq_enforcer.observe.metrics import families
from nfq_enforcer.observe.status import AgentStatus
from tests.support.prometheus import MONITORING, dashboard, metrics_of, promtool, queries
from tests.unit.observe.test_metrics import FULL

RULES = MONITORING / "alerts.yaml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
NODE = 'instance="n1:9962"'
BUCKETS = ("0.005", "0.01", "0.025", "+Inf")
_PREFIX = "nfq_enforcer_"


class Case(NamedTuple):
    """Case: series of an alert's fault and of a healthy node, one value a minute (promtool's notation), for an hour."""

    alert: str
    faulty: dict[str, str]  # series: values
    well: dict[str, str]
    labels: Mapping[str, str] = MappingProxyType({})  # of the alert, besides instance and severity
    instance: bool = True


def single(alert: str, metric: str, faulty: str, well: str, **labels: str) -> Case:
    """Return the case of an alert about one series."""
    pairs = [NODE, *(f'{name}="{value}"' for name, value in labels.items())]
    series = f"{_PREFIX}{metric}{{{','.join(pairs)}}}"
    return Case(alert, {series: faulty}, {series: well}, labels)


def tables(alert: str, used: str, room: str) -> Case:
    series = [f"{_PREFIX}{name}{{{NODE}}}" for name in (used, room)]
    return Case(
        alert,
        dict(zip(series, ("950+0x60", "1000+0x60"), strict=True)),
        dict(zip(series, ("890+0x60", "1000+0x60"), strict=True)),
    )


def latencies(*growth: int) -> dict[str, str]:
    """Return the buckets of the latency of verdicts, with their growth a minute."""
    series = (f'{_PREFIX}verdict_duration_seconds_bucket{{{NODE},le="{bound}"}}' for bound in BUCKETS)
    return {name: f"0+{step}x60" for name, step in zip(series, growth, strict=True)}


def live(*values: str) -> dict[str, str]:
    """Return the liveness of node n2 as two other nodes see it."""
    return {
        f'{_PREFIX}node_live{{instance="{reporter}",node="n2"}}': value
        for reporter, value in zip(("n1:9962", "n3:9962"), values, strict=True)
    }


UP = f'up{{job="nfq_enforcer",{NODE}}}'
GROWING, CONSTANT = "0+5x60", "5+0x60"
CASES = (
    Case("NfqEnforcerAgentDown", {UP: "0+0x60"}, {UP: "1+0x60"}, {"job": "nfq_enforcer"}),
    single("NfqEnforcerRulesNotIntact", "rules_intact", "0+0x60", "1+0x60"),
    single("NfqEnforcerRulesRepairedOften", "rules_repairs_total", "0+1x60", "2+0x60"),
    single("NfqEnforcerWorkerDown", "worker_up", "0+0x60", "1+0x60", worker="1"),
    single("NfqEnforcerWorkerRestarts", "worker_restarts_total", "0+1x60", "9+0x60", worker="1"),
    single("NfqEnforcerRevisionNotInForce", "part_degraded", "1+0x60", "0+0x60", part="revision"),
    single("NfqEnforcerDocumentsRefused", "documents_refused", "1+0x60", "0+0x60"),
    single("NfqEnforcerPacketsLost", "queue_lost_total", GROWING, CONSTANT, queue="excess"),
    single("NfqEnforcerInternalErrors", "internal_errors_total", GROWING, CONSTANT),
    Case("NfqEnforcerVerdictsSlow", latencies(800, 900, 990, 1000), latencies(900, 995, 1000, 1000)),
    tables("NfqEnforcerFlowTableFull", "flows", "flows_max"),
    tables("NfqEnforcerKernelConntrackFull", "kernel_conntrack_entries", "kernel_conntrack_max"),
    Case(
        "NfqEnforcerForgedStamps",
        {f'{_PREFIX}stamps_refused_total{{{NODE},reason="STAMP_UNTRUSTED"}}': GROWING},
        {f'{_PREFIX}stamps_refused_total{{{NODE},reason="STAMP_MISSING"}}': GROWING},
    ),
    single("NfqEnforcerStoreUnreachable", "store_connected", "0+0x60", "1+0x60"),
    single("NfqEnforcerStateNotSaved", "store_state_saved", "0+0x60", "1+0x60"),
    single("NfqEnforcerProxyDown", "proxy_up", "0+0x60", "1+0x60"),
    Case("NfqEnforcerNodeGone", live("0+0x60", "0+0x60"), live("1+0x60", "0+0x60"), {"node": "n2"}, instance=False),
    single("NfqEnforcerDegraded", "part_degraded", "1+0x60", "0+0x60", part="store"),
)


def test_promtool_accepts_the_alert_rules() -> None:
    checked = promtool("check", "rules", RULES)

    assert (checked.returncode, checked.stderr) == (0, "")


def test_promtool_finds_no_fault_in_the_names_and_texts_of_the_metrics() -> None:
    checked = promtool("check", "metrics", text=render(families(AgentStatus.from_json(FULL))).decode())

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_each_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == list(ALERTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_for_its_fault_after_its_time_and_not_without_it(case: Case, tmp_path: Path) -> None:
    silent = {"alertname": case.alert, "exp_alerts": []}
    firing = {"alertname": case.alert, "exp_alerts": [expected(case)]}
    delay = minutes(ALERTS[case.alert].get("for", "0s"))
    early = [{"eval_time": "0m", **silent}] if delay else []
    tests = [
        {"input_series": series(case.faulty), "alert_rule_test": [*early, {"eval_time": "59m", **firing}]},
        {"input_series": series(case.well), "alert_rule_test": [{"eval_time": "59m", **silent}]},
    ]
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file = tmp_path / "alerts_test.yaml"
    file.write_text(yaml.safe_dump(document | {"tests": [{"interval": "1m", **test} for test in tests]}))

    checked = promtool("test", "rules", file)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": value} for name, value in values.items()]


def expected(case: Case) -> dict[str, Any]:
    """Return the alert of a case, with its texts as Prometheus fills them in."""
    rule = ALERTS[case.alert]
    labels = {**({"instance": "n1:9962"} if case.instance else {}), **case.labels}
    texts = {
        name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for name, text in rule["annotations"].items()
    }
    return {"exp_labels": labels | rule["labels"], "exp_annotations": texts}


def minutes(duration: str) -> float:
    return int(duration[:-1]) / {"s": 60, "m": 1}[duration[-1]]


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    made = {family.name for family in families(AgentStatus.from_json(FULL))} | {"nfq_enforcer_node_live"}

    asked = set().union(*(metrics_of(query.expression) for query in queries()))
    asked |= set().union(*(metrics_of(rule["expr"]) for rule in ALERTS.values())) - {"nfq_enforcer"}
    assert asked - made == set()


def test_each_panel_has_a_query_a_legend_and_a_place_of_its_own() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]

    assert len(panels) > 15
    assert all(target["expr"] and target["legendFormat"] for panel in panels for target in panel["targets"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
