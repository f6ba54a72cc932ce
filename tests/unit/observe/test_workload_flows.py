"""Flow counts by workload: names by labels, pairs within a bound."""

import pytest

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import FlowEvent, TlsMessage
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.verdict import Direction, FlowVerdict
from nfq_enforcer.observe.http_counts import OTHER
from nfq_enforcer.observe.status import WorkloadFlowCount
from nfq_enforcer.observe.workload_flows import WorkloadFlows, workload

OPENING = Opening(b"\x0a\0\0\1", b"\x0a\0\0\2", 6, 1000, 80, -1, -1, to_host=False, source=WORLD, destination=WORLD)
EVENT = FlowEvent(1.0, FlowVerdict.FORWARDED, None, Direction.INGRESS, OPENING, 2, is_reply=False)


def end(**labels: str) -> End:
    return End(Labels.parse({f"k8s:{key}": value for key, value in labels.items()}), "shop", "x-1")


def ends(number: int) -> Ends:
    return Ends(end(app=f"a{number}"), end(app="db"))


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"k8s:role": "web", "k8s:app": "x", "k8s:io.kubernetes.pod.namespace": "prod"}, "prod/app=x,role=web"),
        ({"k8s:role": "web"}, "shop/role=web"),
        ({"k8s:flag": "", "k8s:io.cilium.k8s.policy.serviceaccount": "default"}, "shop/flag"),
        ({"reserved:world": ""}, "world"),
        ({"cidr:10.0.0.0/8": "", "reserved:world": ""}, "world"),
        ({}, "unknown"),
    ],
)
def test_a_workload_is_its_namespace_and_its_own_labels(labels: dict[str, str], name: str) -> None:
    made = (Label(*key.partition(":")[::2], value) for key, value in labels.items())

    assert workload(End(Labels(made), "shop", "x-1")) == name


def test_an_identity_that_is_not_known_is_unknown() -> None:
    assert workload(End(None)) == "unknown"


def test_a_long_name_is_cut() -> None:
    assert len(workload(end(**{f"key-{number}": "v" * 60 for number in range(9)}))) == 128


def test_flows_are_counted_by_both_ends_and_verdict() -> None:
    flows = WorkloadFlows(10)
    for verdict in (FlowVerdict.FORWARDED, FlowVerdict.DROPPED, FlowVerdict.FORWARDED):
        flows.add(EVENT._replace(verdict=verdict), ends(1))

    assert list(flows.read()) == [
        WorkloadFlowCount("shop/app=a1", "shop/app=db", "FORWARDED", 2),
        WorkloadFlowCount("shop/app=a1", "shop/app=db", "DROPPED", 1),
    ]


def test_pairs_beyond_the_bound_count_together() -> None:
    flows = WorkloadFlows(2)
    for number in (1, 2, 3, 4, 1):
        flows.add(EVENT, ends(number))

    assert [(one.source, one.events) for one in flows.read()] == [
        ("shop/app=a1", 2),
        ("shop/app=a2", 1),
        (OTHER, 2),
    ]


def test_a_message_of_a_flow_is_no_flow() -> None:
    flows = WorkloadFlows(2)
    flows.add(EVENT._replace(l7=TlsMessage("a")), ends(1))

    assert list(flows.read()) == []
