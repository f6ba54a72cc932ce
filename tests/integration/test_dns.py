"""DNS rules on real traffic: allowed names are answered, other names are refused at once, and nothing else passes."""

from collections.abc import Iterator
from functools import partial

import dns.flags
import dns.message
import dns.rrset
import pytest

from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.dns import address, alias, answer, query
from tests.support.dns_server import DnsClient, DnsServer
from tests.support.labs import (
    BRIEF,
    DATAPATHS,
    DRIVERS,
    FAMILIES,
    PATIENT,
    DatapathSettings,
    await_flow,
    now,
    start,
    until,
)

ALLOWED, OTHER = "www.example.com", "www.example.org"
REFUSED, NO_ERROR = 5, 0
QUICK = 1.0  # s; a resolver waits for 5 s before it asks again

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {matchLabels: {role: frontend}}
  egress:
    - toEntities: [world]
      toPorts:
        - ports: [{port: "53", protocol: ANY}]
          rules: {dns: [{matchName: www.example.com}, {matchPattern: '*.example.net'}]}
    - toEndpoints: [{matchLabels: {role: backend}}]
      toPorts: [{ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchName: www.example.com}]}}]
"""


def truthful(query: bytes) -> list[bytes]:
    """Answer a query with one address."""
    asked = dns.message.from_wire(query)
    made = dns.message.make_response(asked)
    name = asked.question[0].name
    made.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
    return [made.to_wire()]


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(memory=True)


@pytest.fixture(scope="module", params=DATAPATHS, ids=str)
def node(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    settings: DatapathSettings = request.param
    start(lab, "n1", documents=POLICY, **settings.settings)
    yield
    lab.nodes["n1"].stop()


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[DnsServer]:
    server = DnsServer(lab, "world", truthful)
    yield server
    server.close()


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    family: int = request.param
    return family


@pytest.fixture
def client(lab: Lab, node: None, server: DnsServer, family: int) -> Iterator[DnsClient]:
    server.respond = truthful
    server.queries.clear()
    client = DnsClient(lab, "front1", "world", family)
    yield client
    client.close()


def test_allowed_names_are_answered_and_others_refused_at_once(client: DnsClient, server: DnsServer) -> None:
    refused = query(OTHER), query(OTHER, edns=True), query("a.b.example.net")

    assert client.rcode(refused[0], QUICK) == REFUSED  # opens no flow
    assert client.rcode(query(ALLOWED), PATIENT) == NO_ERROR
    assert [client.rcode(message, QUICK) for message in refused] == [REFUSED] * 3
    assert client.rcode(query("x.eXample.NET", edns=True), PATIENT) == NO_ERROR
    assert [dns.message.from_wire(message).question[0].name.to_text() for message in server.queries] == [
        "www.example.com.",
        "x.eXample.NET.",
    ]


def test_the_refusal_keeps_question_and_edns(client: DnsClient) -> None:
    asked = dns.message.make_query("WwW.eXaMpLe.oRg", "AAAA", want_dnssec=True)

    heard = client.ask(asked.to_wire(), QUICK)

    assert heard is not None
    refused = dns.message.from_wire(heard)
    assert asked.is_response(refused)
    assert refused.question[0].name.to_text() == "WwW.eXaMpLe.oRg."
    assert (refused.edns, bool(refused.ednsflags & dns.flags.DO)) == (0, True)


def test_refusals_and_answers_are_logged(lab: Lab, client: DnsClient) -> None:
    since = now()
    client.ask(query(OTHER), QUICK)
    client.ask(query(ALLOWED), PATIENT)

    dropped = await_flow(lab.nodes["n1"], since, reason="DNS_REFUSED")
    assert dropped["l7"] == {
        "type": "REQUEST",
        "dns": {"query": "www.example.org.", "qtypes": ["A"], "observation_source": "proxy"},
    }
    assert (dropped["verdict"], dropped["Type"], dropped["enforced_by"][0]["name"]) == ("DROPPED", "L7", "names")
    heard = await_flow(lab.nodes["n1"], since, verdict="FORWARDED", source_port=53)
    assert heard["l7"] == {
        "type": "RESPONSE",
        "dns": {
            "query": "www.example.com.",
            "ips": ["192.0.2.1"],
            "ttl": 60,
            "qtypes": ["A"],
            "observation_source": "proxy",
        },
    }


@pytest.mark.parametrize(
    "wrong",
    [
        answer(ALLOWED, address(ALLOWED, "192.0.2.1"), ident=1),
        answer(OTHER, address(OTHER, "192.0.2.1")),
        answer(ALLOWED, address(ALLOWED, "192.0.2.1"))[:-1],
        answer(ALLOWED)[:4] + b"\0\2" + answer(ALLOWED)[6:] + b"\1a\0\0\1\0\1",
        answer(ALLOWED)[:12] + b"\3www\xc0\x0c\0\1\0\1",
        query(ALLOWED),
        b"",
        b"hello",
    ],
    ids=["id", "name", "cut", "two questions", "loop", "query", "empty", "text"],
)
def test_a_wrong_answer_does_not_arrive(client: DnsClient, server: DnsServer, wrong: bytes) -> None:
    server.respond = lambda _: [wrong, answer(ALLOWED, alias(ALLOWED, "b"), address("b", "192.0.2.7"))]

    heard = client.ask(query(ALLOWED), PATIENT)

    assert heard is not None
    assert "192.0.2.7" in dns.message.from_wire(heard).to_text()
    assert client.ask(query(OTHER), QUICK) is not None  # and no later answer


@pytest.mark.parametrize(
    "wrong",
    [
        b"anything",
        query(ALLOWED) + b"\0",
        query(ALLOWED)[:4] + b"\0\2" + query(ALLOWED)[6:] + query(OTHER)[12:],
        query(ALLOWED)[:12] + b"\xc0\x0c\0\1\0\1",
        answer(ALLOWED),
    ],
    ids=["text", "junk", "two questions", "loop", "answer"],
)
def test_what_is_no_query_does_not_reach_the_server(client: DnsClient, server: DnsServer, wrong: bytes) -> None:
    assert client.ask(wrong, BRIEF) is None
    assert client.rcode(query(ALLOWED), PATIENT) == NO_ERROR
    assert client.ask(wrong, BRIEF) is None
    assert server.queries == [query(ALLOWED)]


def test_large_and_fragmented_answers_arrive(client: DnsClient, server: DnsServer) -> None:
    for number in (80, 150):  # 1,280 bytes are more than a queue for headers copies, 2,400 come in fragments
        records = [b"\xc0\x0c" + address("", f"192.0.2.{i}")[1:] for i in range(number)]
        server.respond = partial(lambda records, _: [answer(ALLOWED, *records)], records)
        heard = client.ask(query(ALLOWED), PATIENT)
        assert heard is not None
        assert len(dns.message.from_wire(heard).answer[0]) == number


def test_an_endpoint_on_the_same_node_is_asked_by_name_too(lab: Lab, node: None, family: int) -> None:
    server = DnsServer(lab, "back1", truthful)
    client = DnsClient(lab, "front1", "back1", family)

    assert client.rcode(query(OTHER), QUICK) == REFUSED
    assert client.rcode(query(ALLOWED), PATIENT) == NO_ERROR
    assert client.rcode(query(OTHER), QUICK) == REFUSED

    client.close()
    server.close()


async def test_a_change_of_policy_decides_the_next_query_of_an_open_flow(lab: Lab, client: DnsClient) -> None:
    assert client.rcode(query(ALLOWED), PATIENT) == NO_ERROR

    file = lab.documents / "policies.yaml"
    file.write_text(POLICY.replace("www.example.com", "www.example.org"))
    await until(lambda: client.rcode(query(OTHER), QUICK) == NO_ERROR)
    assert client.rcode(query(ALLOWED), QUICK) == REFUSED

    file.write_text(POLICY)
    await until(lambda: client.rcode(query(ALLOWED), QUICK) == NO_ERROR)
    assert client.rcode(query(OTHER), QUICK) == REFUSED


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_host_itself_asks_by_name(lab: Lab, server: DnsServer, family: int, driver: str) -> None:
    server.respond = truthful
    start(lab, "n3", documents=POLICY.replace("frontend", "monitor"), driver=driver)
    client = DnsClient(lab, "n3", "world", family)
    try:
        assert client.rcode(query(OTHER), QUICK) == REFUSED
        assert client.rcode(query(ALLOWED), PATIENT) == NO_ERROR
        assert client.rcode(query(OTHER), QUICK) == REFUSED
    finally:
        client.close()
        lab.nodes["n3"].stop()
