"""The matrix of all pairs of endpoints, and the verdict changes between two policy sets."""

import pytest

from nfq_enforcer.policy.loader import group_documents, parse
from nfq_enforcer.policy.matrix import default_traffic, diff, matrix
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.simulation import Simulation


def endpoint(name: str, ip: str) -> str:
    return (
        "---\napiVersion: nfq-enforcer.io/v1\nkind: Endpoint\n"
        f"metadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{ips: ['{ip}']}}\n"
    )


ENDPOINTS = endpoint("web", "10.0.0.1") + endpoint("db", "10.0.0.2")
WEB = "fromEndpoints: [{matchLabels: {app: web}}]"


def simulate(spec: str = "", endpoints: str = ENDPOINTS) -> Simulation:
    policy = (
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
        f"spec: {{endpointSelector: {{matchLabels: {{app: db}}}}, {spec}}}\n"
    )
    return Simulation(group_documents(one.document for one in parse(endpoints + (policy if spec else ""), "f")))


def ports(*written: str, rules: str = "") -> str:
    listed = ", ".join(f"{{{port}, protocol: TCP}}" for port in written)
    return f"ingress: [{{{WEB}, toPorts: [{{ports: [{listed}]{rules}}}]}}]"


def changes(old: str, new: str, source: str = "default/web") -> list[tuple[str, str, list[str]]]:
    found = diff(simulate(old), simulate(new))
    return [
        (change.old, change.new, list(map(str, change.spans)))
        for change in found
        if (change.source, change.target) == (source, "default/db")
    ]


def test_every_pair_is_asked_every_question_and_nobody_about_himself() -> None:
    cells = list(matrix(simulate(ports("port: '80'")), [TrafficSpec(6, 80), TrafficSpec(6, 22)]))

    assert [(cell.source, cell.target, str(cell.traffic), cell.result.verdict) for cell in cells] == [
        ("default/web", "default/db", "80/TCP", "allow"),
        ("default/web", "default/db", "22/TCP", "deny"),
        ("default/db", "default/web", "80/TCP", "deny"),
        ("default/db", "default/web", "22/TCP", "deny"),
    ]


def test_a_cell_is_data_for_other_tools() -> None:
    pings = list(matrix(simulate(), [TrafficSpec(6, 80), TrafficSpec(1, 8)]))

    assert pings[0].as_data()["port"] == 80
    assert list(pings[1].as_data().items())[:5] == [
        ("from", "default/web"),
        ("to", "default/db"),
        ("protocol", "ICMP"),
        ("icmp", {"type": 8}),
        ("verdict", "allow"),
    ]


@pytest.mark.parametrize(
    ("spec", "expected_traffic"),
    [
        (ports("port: '80'", "port: '1'"), ["1/TCP", "80/TCP", "2/TCP", "ICMP type 8"]),
        (ports("port: '6', endPort: 8"), ["6/TCP", "8/TCP", "1/TCP", "ICMP type 8"]),
        ("ingress: [{}]", ["1/TCP", "ICMP type 8"]),
        (ports("port: '1', endPort: 65535"), [*(f"{1 << bit}/TCP" for bit in range(16)), "ICMP type 8"]),
        ("ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]", ["1/TCP", "ICMP type 8"]),
    ],
)
def test_asked_are_the_ports_that_policies_name_one_that_none_does_and_ping(
    spec: str, expected_traffic: list[str]
) -> None:
    assert list(map(str, default_traffic(simulate(spec)))) == expected_traffic


def test_ping_is_asked_in_the_families_that_endpoints_have() -> None:
    simulation = simulate("", ENDPOINTS + endpoint("six", "fd00::6"))

    assert list(map(str, default_traffic(simulation))) == ["1/TCP", "ICMP type 8", "ICMPv6 type 128"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (ports("port: '80'"), ports("port: '80'"), []),
        (ports("port: '80'"), ports("port: '81'"), [("allow", "deny", ["80/TCP"]), ("deny", "allow", ["81/TCP"])]),
        (
            ports("port: '64', endPort: 127"),
            ports("port: '64', endPort: 100"),
            [("allow", "deny", ["101-127/TCP"])],
        ),
        (
            ports("port: '65535'"),
            ports("port: '65534'"),
            [("deny", "allow", ["65534/TCP"]), ("allow", "deny", ["65535/TCP"])],
        ),
        (
            ports("port: '80'"),
            f"ingress: [{{{WEB}}}]",
            [
                (
                    "deny",
                    "allow",
                    [
                        "every ICMP type",
                        "1-79/TCP",
                        "81-65535/TCP",
                        "every UDP port",
                        "every ICMPv6 type",
                        "every SCTP port",
                    ],
                )
            ],
        ),
        (
            "ingress: [{icmps: [{fields: [{type: 8}]}]}]",
            "ingress: [{icmps: [{fields: [{type: 8}, {type: 0}]}]}]",
            [("deny", "allow", ["ICMP type 0"])],
        ),
        (
            ports("port: '80'"),
            ports("port: '80'", rules=", rules: {http: [{path: /a}]}"),
            [("allow", "allow some requests", ["80/TCP"])],
        ),
        (
            ports("port: '80'", rules=", rules: {http: [{path: /a}]}"),
            ports("port: '80'", rules=", rules: {http: [{path: /b}]}"),
            [("allow some requests", "allow some requests", ["80/TCP"])],
        ),
    ],
)
def test_a_change_is_told_for_every_port_that_it_touches(
    old: str, new: str, found: list[tuple[str, str, list[str]]]
) -> None:
    assert changes(old, new) == found


def test_what_is_outside_is_compared_too() -> None:
    before, after = "ingress: [{fromEntities: [cluster]}]", "ingress: [{fromEntities: [all]}]"

    found = list(diff(simulate(before), simulate(after)))

    assert [(change.source, change.target, change.old, change.new) for change in found] == [
        ("reserved:world", "default/db", "deny", "allow")
    ]
    assert found[0].as_data() == {
        "from": "reserved:world",
        "to": "default/db",
        "ports": ["everything"],
        "old": "deny",
        "new": "allow",
        "reason": "default/p ingress[0] opens ingress of default/db",
    }


def test_a_prefix_that_only_one_side_names_is_compared() -> None:
    found = list(diff(simulate("ingress: [{}]"), simulate("ingress: [{fromCIDRSet: [{cidr: 192.0.2.0/24}]}]")))

    assert [(change.source, change.target, change.new) for change in found] == [
        ("ip:192.0.2.0", "default/db", "allow"),
    ]
