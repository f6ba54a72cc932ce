"""Envoy's resources: their addresses, marks and rules."""

import json
from pathlib import Path

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch
from nfq_enforcer.core.tables.policymap import L7Rule, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.proxy import resources
from nfq_enforcer.proxy.header_actions import MAX_ACTIONS
from nfq_enforcer.proxy.rule_set import NOTHING, RuleSet

REF = RuleRef("CiliumNetworkPolicy", "default", "test", Direction.INGRESS, 0)
MARK = 0x08000007


def test_a_listener_has_both_loopback_addresses_and_the_mark_of_its_slot() -> None:
    listener = resources.listener(7, 15007, MARK)

    sockets = [listener["address"], *(each["address"] for each in listener["additional_addresses"])]
    assert [each["socket_address"] for each in sockets] == [
        {"address": "127.0.0.1", "port_value": 15007},
        {"address": "::1", "port_value": 15007},
    ]
    assert [each["int_value"] for each in listener["socket_options"]] == [MARK]
    assert [each["typed_config"].get("mark") for each in listener["listener_filters"]] == [None, MARK]
    (manager,) = listener["filter_chains"][0]["filters"]
    assert manager["typed_config"]["rds"]["route_config_name"] == resources.name(7) == listener["name"]


def test_a_listener_without_rules_would_allow_nothing() -> None:
    (manager,) = resources.listener(7, 15007, MARK)["filter_chains"][0]["filters"]
    filters = {each["name"]: each for each in manager["typed_config"]["http_filters"]}

    assert filters["rbac"]["typed_config"]["rules"] == {"action": "ALLOW"}
    assert "disabled" not in filters["rbac"]


def test_unusable_rules_are_left_out_of_the_routes() -> None:
    broken = L7Rule(REF, HttpMatch(path=r"/(\pL{500}){2}"))
    many = tuple(
        L7Rule(REF, HttpMatch(headers=(HeaderMatch(f"X-{number}", "1", "ADD"),))) for number in range(MAX_ACTIONS + 1)
    )

    assert resources.unusable(RuleSet(((broken,), many))) == (broken, many[-1])
    host = resources.route_configuration(7, RuleSet(((broken,),)))["virtual_hosts"][0]
    policy = host["typed_per_filter_config"]["rbac"]["rbac"]["rules"]["policies"]["requests"]
    assert policy["permissions"] == [NOTHING]


def test_every_route_but_the_last_two_refuses() -> None:
    *special, upgrades, last = resources.route_configuration(7, RuleSet((None,)))["virtual_hosts"][0]["routes"]

    assert [route["direct_response"]["status"] for route in special] == [403, 403]
    again = {"retry_on": "connect-failure", "num_retries": 4}
    assert last["route"] == {"cluster": "requests", "timeout": "0s", "retry_policy": again}
    assert upgrades["route"] == last["route"] | {"cluster": "streams"}


def test_the_bootstrap_has_the_sockets_and_the_limits_of_header_matches() -> None:
    text = json.dumps(resources.bootstrap(Path("own/admin.sock"), Path("xds.sock")))

    assert '"path": "own/admin.sock"' in text
    assert '"path": "xds.sock"' in text
    assert text.count('match_headers_individually": false') == 2
