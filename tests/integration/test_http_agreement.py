"""``policy matrix`` and a real Envoy give the same result for each HTTP request of the same documents."""

import json
import random
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from nfq_enforcer.core.tables.l7 import HttpRequest
from nfq_enforcer.policy import l7_match
from nfq_enforcer.policy.loader import load
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.probes import ProbeFile
from nfq_enforcer.policy.simulation import EndPair, Simulation
from nfq_enforcer.proxy.rule_set import RuleSet
from tests.support.proxies import ProxyLab

FOLDER = Path(__file__).parents[2] / "policies"
ENDPOINTS = FOLDER / "endpoints.yaml"
EXAMPLES = ("backend-userdata", "backend-admin-header", "backend-grpc")
SLOT = 1
PASSED = HTTPStatus.OK
CLOSE = ("Connection", "close")  # which the lab sends with every request
REQUESTS = 500  # for each set of rules
RULE_SETS = {
    "paths": [{"path": "/public(/.*)?"}, {"method": "POST|PUT", "path": "/a/?.*"}],
    "hosts": [{"host": "api[.]example[.]com(:80)?"}, {"method": "GET", "host": "(?i)b", "path": "/[^?]*"}],
    "headers": [
        {"headers": ["X-Token: s3cret", "X-Any"]},
        {"path": "/a.*", "headerMatches": [{"name": "Host", "value": "a:80"}]},
        {"method": "PUT", "headerMatches": [{"name": "x-token", "value": "x", "mismatch": "LOG"}]},
        {"headers": ["X-Forwarded-Proto: http", "X-Any: 1,2"]},
        {"headers": ["X-Forwarded-Proto: https"]},
        {"headers": ["Connection"]},
        {"headers": ["Upgrade"]},
        {"headers": ["TE"]},
        {"headers": ["Keep-Alive: 5"]},
        {"headers": ["X-Envoy-Any: 1"]},
        {"headers": ["X-Request-Id: 1"]},
        {"headers": ["Content-Length: 0"]},
    ],
    "escapes": [{"path": r"/%7B.*|/a~.*|/\Qb.\E\w*|(?s)/.%.*"}, {"path": r"/(public|a)/[^/]+\?\pL+"}],
}
METHODS = ("GET", "GET", "PUT", "POST", "DELETE", "OPTIONS")
HOSTS = ("h", "api.example.com", "api.example.com:80", "API.example.com", "B", "a:80", "", "a b", "a|b", "a@b")
PIECES = (
    *("/", "/", "public", "a", "a", "b", ".", "..", "%2e", "%2E", ";", "%3b", "%", "%2", "%30", "0", "%41", "%7e"),
    *("\\", "//", "%25", "?", "{", "~", "%c3%a9", "..;x", "%7B"),
)
RARE_PIECES = ("%2f", "%5C", "%00", "#", "%2e%2e;")
HEADERS = (
    *((), ("X-Token: s3cret",), ("X-Any: 1", "X-Token: s3cret"), ("x-token:  s3cret ", "X-ANY:")),
    *(("X-Token: s3cret", "X-Token: s3cret", "X-Any: 1"), ("X-Token: S3cret", "X-Any: 1"), ("X-Any: 1", "x-any: 2")),
    *(("X-Any: 1,2", "X-Forwarded-Proto: https"), ("X-Forwarded-Proto: https",), ("Host: a:80",), ("Host: a b",)),
    *(("Connection: x-any", "X-Token: s3cret", "X-Any: 1"), ("Connection: host",), ("Connection: x-forwarded-for",)),
    *(("TE: trailers", "Connection: te"), ("TE: gzip",), ("Keep-Alive: 5",), ("Proxy-Connection: x",)),
    *(("Connection: upgrade", "Upgrade: tls"), ("Connection: upgrade", "Upgrade: h2c"), ("Upgrade: x",)),
    *(("X-Envoy-Any: 1",), ("X-Request-Id: 1",), ("Content-Length: 0",), ("Connection: " + ",".join("abcdefghijk"),)),
    (
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ),
)


@pytest.fixture(scope="module")
def lab(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyLab]:
    lab = ProxyLab(tmp_path_factory.mktemp("agreement"))
    yield lab
    lab.close()


def generated(seed: str) -> Iterator[HttpRequest]:
    """Yield requests that do not depend on anything but the seed."""
    choice = random.Random(seed)
    for _ in range(REQUESTS):
        pieces = choice.choices(PIECES, k=choice.randint(0, 6))
        if choice.random() < 0.2:
            pieces.append(choice.choice(RARE_PIECES))
        origin = "http://b" if choice.random() < 0.1 else ""
        lines = [line.partition(":") for line in choice.choice(HEADERS)]
        host = choice.choice(HOSTS)
        headers = tuple((name, value) for name, _, value in lines if host or name != "Host")
        yield HttpRequest(choice.choice(METHODS), f"{origin}/{''.join(pieces)}", host, headers)
    yield HttpRequest("OPTIONS", "*", "h")
    yield HttpRequest("CONNECT", "h:80", "h:80")


def foretold(simulation: Simulation, pair: EndPair, traffic: TrafficSpec) -> int:
    """Return the status that the evaluation of the documents predicts."""
    assert isinstance(traffic.request, HttpRequest)
    refused = l7_match.refusal(traffic.request)
    allowed = simulation.evaluate(pair, traffic).allowed
    assert not (refused and allowed)
    return PASSED if allowed else refused.code if refused else HTTPStatus.FORBIDDEN


def observed(lab: ProxyLab, request: HttpRequest) -> int:
    """Return the status of the response; of a server that switches to WebSocket that of any other."""
    headers = (f"{name}:{value}" for name, value in request.headers if (name, value) != CLOSE)
    status = lab.request(SLOT, request.method, request.path, *headers, host=request.host)
    return PASSED if status == HTTPStatus.SWITCHING_PROTOCOLS else status


def differences(lab: ProxyLab, simulation: Simulation, port: int, requests: list[HttpRequest]) -> list[str]:
    """Return the requests of front to back that fare otherwise than foretold."""
    pair = simulation.pair("default/front", "default/back")
    result = pair.ingress.lookup(TrafficSpec(6, port))
    assert result is not None
    lab.open(SLOT, RuleSet((result.l7,)))
    requests = [request._replace(headers=(CLOSE, *request.headers)) for request in requests]
    found = (
        (request, foretold(simulation, pair, TrafficSpec(6, port, request)), observed(lab, request))
        for request in requests
    )
    return [f"{request}: foretold {status}, observed {seen}" for request, status, seen in found if status != seen]


@pytest.mark.parametrize("name", RULE_SETS)
def test_generated_requests_fare_as_foretold(lab: ProxyLab, tmp_path: Path, name: str) -> None:
    rule = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": RULE_SETS[name]}}
    policy = {
        **{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": name}},
        "spec": {"endpointSelector": {"matchLabels": {"role": "backend"}}, "ingress": [{"toPorts": [rule]}]},
    }
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps(policy))

    assert differences(lab, Simulation(load([ENDPOINTS, file])), 80, list(generated(name))) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_probes_of_the_examples_fare_as_they_expect(lab: ProxyLab, example: str) -> None:
    file = FOLDER / f"{example}.probes.json"
    probes = [
        probe
        for probe in ProbeFile(file.read_text(), str(file)).probes
        if probe.http is not None and probe.source == "default/front"
    ]
    (port,) = {probe.port for probe in probes}
    assert port is not None

    simulation = Simulation(load([ENDPOINTS, FOLDER / f"{example}.yaml"]))
    assert differences(lab, simulation, port, [probe.http.as_request() for probe in probes if probe.http]) == []
