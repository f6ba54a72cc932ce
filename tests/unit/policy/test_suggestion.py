"""Suggestion: the smallest set of documents that allows recorded flows, and nothing that was not seen."""

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfq_enforcer.core.identity import HOST, REMOTE_NODE, RESERVED
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, TCP, UDP
from nfq_enforcer.errors import NfqError
from nfq_enforcer.policy import suggestion_text
from nfq_enforcer.policy.loader import Documents, from_data
from nfq_enforcer.policy.recorded import RecordedEnd, RecordedFlow, Seen, with_ends
from nfq_enforcer.policy.replay import Replay
from nfq_enforcer.policy.simulation import Simulation
from nfq_enforcer.policy.suggestion import SuggestionOptions, suggest
from nfq_enforcer.policy.suggestion_check import check
from tests.support.recorded import endpoint, outside, reserved, seen, to

FRONT1 = endpoint("front1", "10.0.0.1", role="frontend")
FRONT2 = endpoint("front2", "10.0.0.2", role="frontend")
BACK = endpoint("back1", "10.0.0.3", role="backend")
DB = endpoint("db1", "10.0.0.4", role="db")
OTHER = endpoint("other", "10.0.0.5", "shop", role="other")
INGRESS = SuggestionOptions((Direction.INGRESS,))
EGRESS = SuggestionOptions((Direction.EGRESS,))


def rules(flows: dict[RecordedFlow, Seen], options: SuggestionOptions) -> list[dict[str, Any]]:
    """Return the entries of the only document."""
    (one,) = suggest(flows, options)
    assert list(check([one], flows)) == []
    return [rule.entry for rule in one.rules]


def select(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


def tcp(*numbers: int) -> dict[str, Any]:
    return {"toPorts": [{"ports": [{"port": str(number), "protocol": "TCP"} for number in numbers]}]}


def test_endpoints_with_the_same_labels_share_a_document_and_a_rule() -> None:
    flows = seen(to(FRONT1, BACK, 80), to(FRONT2, BACK, 443))

    back, front = suggest(flows)

    assert back.document == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "suggested-role-backend", "namespace": "default"},
        "spec": {
            "endpointSelector": select(role="backend"),
            "ingress": [{"fromEndpoints": [select(role="frontend")], **tcp(80, 443)}],
        },
    }
    assert front.document["spec"] == {
        "endpointSelector": select(role="frontend"),
        "egress": [{"toEndpoints": [select(role="backend")], **tcp(80, 443)}],
    }
    assert (front.subjects, back.subjects) == (("default/front1", "default/front2"), ("default/back1",))
    assert list(check((back, front), flows)) == []


def test_peers_with_the_same_ports_share_a_rule_and_others_do_not() -> None:
    flows = seen(to(FRONT1, BACK, 80), to(OTHER, BACK, 80), to(DB, BACK, 80), to(DB, BACK, 81))

    shop = {"role": "other", "k8s:io.kubernetes.pod.namespace": "shop"}
    assert rules(flows, INGRESS) == [
        {"fromEndpoints": [select(**shop), select(role="frontend")], **tcp(80)},
        {"fromEndpoints": [select(role="db")], **tcp(80, 81)},
    ]


def test_ends_that_are_no_endpoints_are_entities_addresses_or_the_world() -> None:
    ends = (outside("203.0.113.7"), outside("2001:db8::7"), reserved(HOST), reserved(REMOTE_NODE))
    flows = seen(*(to(end, BACK) for end in ends))

    assert rules(flows, INGRESS) == [
        {"fromCIDR": ["2001:db8::7/128", "203.0.113.7/32"], **tcp(80)},
        {"fromEntities": ["host", "remote-node"], **tcp(80)},
    ]
    assert rules(flows, INGRESS._replace(world=True)) == [{"fromEntities": ["host", "remote-node", "world"], **tcp(80)}]


def test_icmp_has_a_rule_of_its_own() -> None:
    flows = seen(to(FRONT1, BACK, 8, ICMP), to(FRONT1, BACK, 128, ICMPV6), to(FRONT1, BACK, 80))

    peer = {"fromEndpoints": [select(role="frontend")]}
    types = [{"type": 8, "family": "IPv4"}, {"type": 128, "family": "IPv6"}]
    assert rules(flows, INGRESS) == [{**peer, "icmps": [{"fields": types}]}, {**peer, **tcp(80)}]
    assert rules(seen(to(FRONT1, BACK, 8, ICMP)), INGRESS) == [{**peer, "icmps": [{"fields": types[:1]}]}]


def test_more_ports_than_an_entry_may_have_are_in_several() -> None:
    flows = seen(
        *(to(FRONT1, BACK, port) for port in range(1, 82)), *(to(FRONT1, BACK, one, ICMP) for one in range(50))
    )

    entries = rules(flows, INGRESS)

    assert [len(icmp["fields"]) for entry in entries for icmp in entry.get("icmps", ())] == [40, 10]
    assert [len(ports["ports"]) for entry in entries for ports in entry.get("toPorts", ())] == [40, 40, 1]


def test_names_that_were_queried_are_rules_and_their_addresses_are_names() -> None:
    query = to(BACK, outside("203.0.113.53"), 53, UDP, DnsQuestion("a.example"))
    flows = seen(query, to(BACK, outside("203.0.113.8", "a.example"), 443))

    dns = [{"ports": [{"port": "53", "protocol": "UDP"}], "rules": {"dns": [{"matchName": "a.example"}]}}]
    assert rules(flows, EGRESS) == [
        {"toCIDR": ["203.0.113.53/32"], "toPorts": dns},
        {"toFQDNs": [{"matchName": "a.example"}], **tcp(443)},
    ]


def http(method: str, path: str, target: RecordedEnd = BACK, source: RecordedEnd = FRONT1) -> RecordedFlow:
    return to(source, target, 80, TCP, HttpRequest(method, path))


def test_requests_are_methods_and_paths_if_asked_for() -> None:
    flows = seen(to(FRONT1, BACK), http("GET", "/a.b/(1)"), http("GET", "/c?d=1"), http("GET", "/c"), http("PUT", "/c"))

    (entry,) = rules(flows, SuggestionOptions((Direction.INGRESS,), http=True))
    assert entry["toPorts"] == [
        {
            "ports": [{"port": "80", "protocol": "TCP"}],
            "rules": {
                "http": [
                    {"method": "GET", "path": r"/a\.b/\(1\)"},
                    {"method": "GET", "path": r"/c(\?.*)?"},
                    {"method": "PUT", "path": "/c"},
                ]
            },
        }
    ]
    assert rules(flows, INGRESS) == [{"fromEndpoints": [select(role="frontend")], **tcp(80)}]


@pytest.mark.parametrize(
    ("target", "request_", "section"),
    [
        (BACK, HttpRequest(), Direction.INGRESS),
        (outside("203.0.113.7"), HttpRequest(), Direction.EGRESS),
        (BACK, TlsHello("a.example"), Direction.EGRESS),
    ],
)
def test_one_side_checks_the_requests(target: RecordedEnd, request_: L7Request, section: Direction) -> None:
    policies = suggest(seen(to(FRONT1, target, request=request_)), SuggestionOptions(http=True))

    entries = [(rule.direction, rule.entry["toPorts"][0]) for one in policies for rule in one.rules]
    assert [side for side, entry in entries if {"rules", "serverNames"} & entry.keys()] == [section]


@pytest.mark.parametrize("requests", [(HttpRequest(), TlsHello("a.example")), (TlsHello(""), TlsHello("a.example"))])
def test_a_port_with_requests_that_no_rule_tells_apart_is_open(requests: tuple[L7Request, ...]) -> None:
    flows = seen(*(to(FRONT1, outside("203.0.113.7"), request=one) for one in requests))

    assert rules(flows, SuggestionOptions((Direction.EGRESS,), http=True)) == [
        {"toCIDR": ["203.0.113.7/32"], **tcp(80)}
    ]


def test_requests_over_other_protocols_than_tcp_have_no_rule() -> None:
    flows = seen(to(FRONT1, BACK, 443, UDP, TlsHello("a.example")))

    for one in suggest(flows, SuggestionOptions(http=True)):
        assert "serverNames" not in str(one.document)


def test_flows_that_no_rule_can_name_are_left_out_with_the_reason() -> None:
    unknown = RecordedEnd(ip_address("10.9.9.9"), None)
    flows = seen(to(unknown, BACK), to(FRONT1, BACK, 0, 47))

    assert suggest(flows) == ()
    assert list(map(str, check((), flows))) == [
        "10.9.9.9 to default/back1, 80/TCP: the identity of 10.9.9.9 was not known to the node that recorded it",
        "default/front1 to default/back1, IP protocol 47: no rule can name IP protocol 47",
    ]


def test_an_endpoint_needs_no_rule_to_reach_itself() -> None:
    nameless = FRONT1._replace(name="")

    assert suggest(seen(to(FRONT1, FRONT1), to(FRONT1, FRONT1._replace(address=BACK.address)))) == ()
    assert suggest(seen(to(nameless, nameless))) == ()


def test_endpoints_of_the_same_labels_need_a_rule_to_reach_each_other() -> None:
    nameless = FRONT1._replace(name=""), FRONT2._replace(name="")
    entry = {"fromEndpoints": [select(role="frontend")], **tcp(80)}

    assert rules(seen(to(FRONT1, FRONT2)), INGRESS) == [entry]
    assert rules(seen(to(*nameless)), INGRESS) == [entry]


def test_names_of_documents_are_stable_and_unique() -> None:
    ends = [endpoint(f"a{number}", f"10.1.0.{number}", **labels) for number, labels in enumerate(LABELS)]
    flows = seen(*(to(FRONT1, end) for end in ends))

    names = [one.name for one in suggest(flows, INGRESS)]

    assert names == ["suggested-all", "suggested-a-b-c", "suggested-a-b-c-2", f"suggested-{'x' * 53}"]
    assert names == [one.name for one in suggest(dict(reversed(flows.items())), INGRESS)]


LABELS: list[dict[str, str]] = [{}, {"a.b": "C"}, {"a": "b-c"}, {"x" * 63: "1"}]


def test_other_endpoints_that_a_selector_selects_are_named() -> None:
    more = endpoint("more", "10.0.0.9", role="backend", tier="x")

    (back, *_) = suggest(seen(to(FRONT1, BACK), to(FRONT1, more)), INGRESS)

    assert back.also_selected == ("default/more",)
    assert "# it also selects default/more\n" in suggestion_text.render([back])


def test_a_comment_names_the_flows_of_each_rule() -> None:
    flows = seen(to(FRONT1, BACK), times=3, ingress=2) | seen(to(FRONT1, BACK, request=HttpRequest()))

    text = suggestion_text.render(suggest(flows))

    last = "last 2026-11-30T00:53:20Z"
    comments = [line.strip() for line in text.splitlines() if "#" in line]
    assert comments == [
        "# for default/back1",
        f"# seen: 3 connections and 1 request from default/front1, {last}, of which 2 not allowed at that time",
        "# for default/front1",
        f"# seen: 3 connections and 1 request to default/back1, {last}",
    ]
    assert list(yaml.safe_load_all(text)) == [one.document for one in suggest(flows)]


def test_the_documentation_has_a_true_example() -> None:
    back = endpoint("back2", "10.31.2.11", role="backend")
    last = datetime(2026, 11, 28, 11, 28, 38, tzinfo=UTC).timestamp()
    web = {to(front, back): Seen(3, last, {}) for front in (FRONT1, FRONT2)}

    text = suggestion_text.render(suggest({**web, to(FRONT1, back, 8, ICMP): Seen(1, last, {})}))

    assert f"```yaml\n{text}```" in (Path(__file__).parents[3] / "docs" / "suggest.md").read_text()


def test_a_name_from_the_network_cannot_leave_its_comment() -> None:
    hostile = FRONT1._replace(name="x\n  - {}\x1b[2J\u2028  - fromEntities: [all]\r\x85- {}")

    text = suggestion_text.render(suggest(seen(to(hostile, BACK)), INGRESS))

    assert len(next(iter(yaml.safe_load_all(text)))["spec"]["ingress"]) == 1
    assert all(line.isprintable() for line in text.split("\n"))


def test_labels_that_no_policy_can_have_are_an_error() -> None:
    labels = Labels((*(FRONT1.labels or ()), Label("k8s", "role", "a b")))

    with pytest.raises(NfqError, match="names that no policy can have"):
        suggestion_text.render(suggest(seen(to(FRONT1._replace(labels=labels), BACK))))


def test_no_flows_are_no_documents() -> None:
    assert (suggest({}), suggestion_text.render(())) == ((), "")


def test_a_text_that_differs_from_its_documents_is_an_error() -> None:
    (back, _) = suggest(seen(to(FRONT1, BACK)))
    (rule,) = back.rules
    changed = rule._replace(entry={name: tuple(value) for name, value in rule.entry.items()})

    with pytest.raises(NfqError, match="differs"):
        suggestion_text.render([back._replace(rules=(changed,))])


def test_a_flow_that_the_documents_refuse_is_reported_with_the_reason() -> None:
    (back, _) = suggest(seen(to(FRONT1, BACK)))

    (one,) = check([back], [to(FRONT1, BACK, 81)])

    assert str(one).startswith("default/front1 to default/back1, 81/TCP: ingress of default/back1 is closed by ")


def test_an_end_of_which_no_document_can_be_made_is_reported() -> None:
    (one,) = check((), [to(FRONT1._replace(name="Not A Name"), BACK)])

    assert one.reason == "default/Not A Name has a name or labels that no document can have"


def test_an_end_has_the_document_of_its_name_else_one_of_its_own() -> None:
    documents = from_data(
        [
            {
                **{"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint"},
                **{"metadata": {"name": "front1", "labels": {"role": "new"}}, "spec": {"ips": ["10.0.0.1"]}},
            }
        ]
    )
    labels = Labels((*(DB.labels or ()), Label("k8s", "io.cilium.k8s.namespace.labels.team", "a")))
    nameless = DB._replace(labels=labels, name="", namespace="")
    again = BACK._replace(address=ip_address("10.0.0.33"))
    ends = (FRONT1, BACK, again, nameless, reserved(HOST), outside("203.0.113.7"))

    cluster = with_ends(documents, ends)

    assert list(cluster.references.values()) == [
        *("default/front1", "default/back1", "default/back1-2", "default/endpoint"),
        *("reserved:host", "ip:203.0.113.7"),
    ]
    assert [one.metadata.labels for one in cluster.documents.endpoints] == [
        *({"role": "new"}, {"k8s:role": "backend"}, {"k8s:role": "backend"}, {"k8s:role": "db"}),
    ]


def test_a_namespace_has_the_labels_that_its_endpoints_inherit() -> None:
    labels = Labels((*(DB.labels or ()), Label("k8s", "io.cilium.k8s.namespace.labels.team", "a")))

    cluster = with_ends(Documents(), [DB._replace(labels=labels)])

    assert [one.metadata.labels for one in cluster.documents.namespaces] == [{"k8s:team": "a"}]
    (end,) = cluster.references.values()
    assert Simulation(cluster.documents).end(end).labels == labels


def test_a_target_is_evaluated_by_its_names_too() -> None:
    named, nameless = to(BACK, outside("203.0.113.8", "a.example"), 443), to(BACK, outside("203.0.113.9"), 443)
    policies = suggest(seen(named), EGRESS)
    documents = Documents(policies=from_data(one.document for one in policies).policies)
    cluster = with_ends(documents, (*named[:2], nameless.target))
    replay = Replay(Simulation(cluster.documents), cluster.references)

    assert [str(replay.evaluate(flow)) for flow in (named, nameless)] == ["allow", "deny"]


def test_an_end_reads_as_its_name_its_entity_its_labels_or_its_address() -> None:
    nameless = DB._replace(name="", namespace="")
    ends = (FRONT1, reserved(HOST), nameless, outside("203.0.113.7"), RecordedEnd(ip_address("10.0.0.1"), None))

    assert list(map(str, ends)) == ["default/front1", "host", "k8s:role=db", "203.0.113.7", "10.0.0.1"]
    assert RecordedEnd(ip_address("10.0.0.1"), RESERVED[HOST], "").home == "default"
