"""TLS in a slot: Envoy reads the server name (SNI) of the ClientHello, and forwards the bytes as they are.

Envoy looks at the first bytes of a connection, and leaves them in the socket, until it has the complete ClientHello.
A filter compares the name before Envoy connects to the server, so the server of a refused connection sees nothing of
it. The filter's settings are a resource of their own: a change applies to the next ClientHello, and drains no listener.
A connection that does not begin with a ClientHello has no filter chain, and ends.
"""

from typing import Any

from nfq_enforcer.core.tables import server_names
from nfq_enforcer.core.tables.l7 import SniMatch
from nfq_enforcer.core.tables.policymap import L7Rule
from nfq_enforcer.proxy.extension import FILTERS, TYPE, extension
from nfq_enforcer.proxy.rule_set import ANY, Json, RuleSet, all_of, any_of, merged

SETTINGS = f"{TYPE}envoy.config.core.v3.TypedExtensionConfig"
TIMEOUT = 15  # s for a complete ClientHello

CLUSTER = "streams"  # of servers
CONNECT_ATTEMPTS = 5  # to connect to a server, before anything is sent to it

_CHAIN = "tls"
_RBAC = f"{FILTERS}.network.rbac.v3.RBAC"
_MAX_EARLY = 1 << 16  # bytes that Envoy reads before it connects to the server
_IDLE = "86400s"  # without a byte in either direction, until Envoy ends the connection
_UNLOGGED = "!has(upstream.address) && !(has(xds.filter_chain_name) && xds.filter_chain_name == '{http}')"
_LOG_FORMAT = {
    "time": "%START_TIME(%s.%6f)%",
    "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
    "server": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "name": "%REQUESTED_SERVER_NAME%",
    "details": "%CONNECTION_TERMINATION_DETAILS%",
    "hello": "%FILTER_CHAIN_NAME%",  # null without a ClientHello
}


def listener_settings(slot: int, http_chain: str) -> Json:
    """Return the settings of a listener that reads ClientHellos; ``http_chain``: the name of its chain for HTTP."""
    return {
        "listener_filters_timeout": f"{TIMEOUT}s",
        "access_log": [_log(slot, {"extension_filter": _expression(_UNLOGGED.format(http=http_chain))})],
    }


def listener_filter() -> Json:
    """Return the listener filter that reads the ClientHello."""
    return extension("tls", f"{FILTERS}.listener.tls_inspector.v3.TlsInspector")


def filter_chain(slot: int, resource: str, source: Json) -> Json:
    """Return the chain of connections with a ClientHello; ``resource``: the name of the filter's settings."""
    names = {"name": resource, "config_discovery": {"config_source": source, "type_urls": [_RBAC]}}
    forward = extension(
        "forward",
        f"{FILTERS}.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=_CHAIN,
        cluster=CLUSTER,
        max_connect_attempts=CONNECT_ATTEMPTS,
        idle_timeout=_IDLE,
        upstream_connect_mode="ON_DOWNSTREAM_DATA",
        max_early_data_bytes=_MAX_EARLY,
        access_log=[_log(slot, {"log_type_filter": {"types": ["TcpUpstreamConnected"]}})],
        access_log_options={"flush_access_log_on_connected": True},
    )
    return {
        "name": _CHAIN,
        "filter_chain_match": {"transport_protocol": "tls"},
        "filters": [names, forward],
    }


def settings(resource: str, rule_set: RuleSet) -> Json:
    """Return the settings of the filter, which have the server names of a rule set."""
    policy = {"permissions": [permission(rule_set)], "principals": [ANY]}
    rules = {"action": "ALLOW", "policies": {"names": policy}}
    return {
        "@type": SETTINGS,
        "name": resource,
        "typed_config": {"@type": _RBAC, "stat_prefix": _CHAIN, "rules": rules},
    }


def permission(rule_set: RuleSet) -> Json:
    """Return the permission of the ClientHellos that each side allows."""
    return all_of([_side(side) for side in dict.fromkeys(rule_set.sides) if side is not None])


def _side(side: tuple[L7Rule, ...]) -> Json:
    """Return the permission of a side, whose names are alternatives."""
    patterns = dict.fromkeys(rule.match.pattern for rule in side if isinstance(rule.match, SniMatch))
    exact = [server_names.canonical(pattern) for pattern in patterns if "*" not in pattern]
    expressions = merged(tuple(server_names.expression(pattern) for pattern in patterns if "*" in pattern))
    matches: list[Json] = [{"exact": name} for name in exact]
    matches += [{"safe_regex": {"regex": expression}} for expression in expressions]
    return any_of([{"requested_server_name": match} for match in matches])


def _log(slot: int, condition: Json) -> Json:
    log = extension(
        "access",
        f"{TYPE}envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        log_format={"json_format": {"slot": slot, **_LOG_FORMAT}},
    )
    return {**log, "filter": condition}


def _expression(text: str) -> dict[str, Any]:
    return extension("cel", f"{TYPE}envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", expression=text)
