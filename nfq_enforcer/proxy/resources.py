"""Resources of Envoy, as JSON: the bootstrap, the listener of a slot, and its rules.

Envoy reads the HTTP rules from the route configuration for each request, so a change applies to open connections and
ends none. It reads server names from a resource of their own for each connection (``proxy.tls``). A listener never
changes: Envoy would go on serving the connections of the old one by the old rules.

Reasons of single settings:
- A path is normalised before rules see it, and the server gets it as rules saw it. Paths in which a path parameter
  hides a dot segment (``/..;/``) are refused: servers that cut parameters resolve them after Envoy did.
- ``connection_pool_per_downstream_connection``: connections of clients with one address, but with different identities,
  never share a connection to the server.
- The mark of the listening socket is inherited by accepted sockets; ``original_src`` sets that of the connection to
  the server. Without ``original_dst``, Envoy connects to the listener's own address.
- ``match_headers_individually``: by default, one good value of a repeated header would be enough (see docs/http.md).
"""

import socket
import struct
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path

from nfq_enforcer.core.tables.l7 import ProxyProtocols
from nfq_enforcer.core.tables.policymap import L7Rule
from nfq_enforcer.proxy import header_actions, tls
from nfq_enforcer.proxy.extension import FILTERS, TYPE, extension
from nfq_enforcer.proxy.rule_set import ANY, ANY_BYTES, Json, RuleSet, is_usable, permission, rules, without

LISTENER = f"{TYPE}envoy.config.listener.v3.Listener"
ROUTES = f"{TYPE}envoy.config.route.v3.RouteConfiguration"
ADDRESSES = {4: "127.0.0.1", 6: "::1"}  # of listeners, by IP version
REQUEST_TIMEOUT = 300  # s that Envoy waits for news of a subscription until it asks again
BODY = "Access denied\r\n"

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HIDDEN_DOTS = rf"{ANY_BYTES}/\.\.?(?:;|%3[bB]){ANY_BYTES}"
_FORBIDDEN, _NOT_FOUND = 403, 404
_HTTP_CHAIN = "http"
_RULE_TYPES = {ProxyProtocols.HTTP: ROUTES, ProxyProtocols.TLS: tls.SETTINGS}
# Also between two attempts to reach an agent that is away: one for the listeners, but one for each slot's rules.
_LISTENERS_DELAY, _RULES_DELAY = "0.02s", "0.1s"
_BIND_ADDRESS_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT, which the module socket lacks
_RESET_AT_CLOSE = struct.pack("=ii", 1, 0)  # struct linger: on, for 0 s
_REQUESTS = "requests"  # the cluster of servers
_SERVER_KEPT = "600s"  # Envoy forgets a server that had no request for this time
_CONNECT_TIMEOUT = "2s"  # for each attempt: the next one has another port, which no other connection of the client has
_CONNECT_AGAIN = {"retry_on": "connect-failure", "num_retries": tls.CONNECT_ATTEMPTS - 1}
_SERVER_IDLE = "1s"  # for a connection to a server: Envoy keeps it when its client has gone, by default for an hour
_MAX_CONNECTIONS = 100_000  # of clients
_LONGEST = 2048  # bytes of a path in the access log
_KEPT = "x-nfqe-forwarded-proto"  # X-Forwarded-Proto of the client, which Envoy replaces

_LOG_FORMAT = {
    "time": "%START_TIME(%s.%6f)%",
    "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
    "server": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "method": "%REQ(:METHOD):64%",
    "path": f"%REQ(:PATH):{_LONGEST}%",
    "host": "%REQ(:AUTHORITY):256%",
    "protocol": "%PROTOCOL%",
    "code": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "duration": "%DURATION%",
    "grpc": "%GRPC_STATUS_NUMBER%",
    "headers": "%DYNAMIC_METADATA(nfqe)%",
}


def name(slot: int) -> str:
    """Return the name of a slot's resources."""
    return f"slot-{slot}"


def listener(
    slot: int,
    port: int,
    mark: int,
    protocols: ProxyProtocols = ProxyProtocols.HTTP,
    versions: Iterable[int] = ADDRESSES,
) -> Json:
    """Return the listener of a slot, which reads these protocols, on its port of the loopback addresses.

    With both, a connection that does not begin with a ClientHello is one of HTTP.
    """
    filters = [
        extension("original_dst", f"{FILTERS}.listener.original_dst.v3.OriginalDst"),
        extension("original_src", f"{FILTERS}.listener.original_src.v3.OriginalSrc", mark=mark),
    ]
    chains: list[Json] = []
    if ProxyProtocols.HTTP in protocols:
        chains.append({"name": _HTTP_CHAIN, "filters": [_connection_manager(slot)]})
    if ProxyProtocols.TLS in protocols:
        filters.append(tls.listener_filter())
        chains.append(tls.filter_chain(slot, name(slot), _config_source(_RULES_DELAY)))
    first, *others = ({"socket_address": {"address": ADDRESSES[each], "port_value": port}} for each in versions)
    return {
        "@type": LISTENER,
        "name": name(slot),
        "address": first,
        "additional_addresses": [{"address": other} for other in others],
        "transparent": True,
        "per_connection_buffer_limit_bytes": 1 << 18,
        "socket_options": [_socket_option(socket.SOL_SOCKET, socket.SO_MARK, mark)],
        "listener_filters": filters,
        "filter_chains": chains,
        **(tls.listener_settings(slot, _HTTP_CHAIN) if ProxyProtocols.TLS in protocols else {}),
    }


def unusable(rule_set: RuleSet) -> tuple[L7Rule, ...]:
    """Return the rules that allow no request: those that Envoy could not compile, or that change too many headers."""
    broken = [rule for rule in rules(rule_set) if not is_usable(rule)]
    return *broken, *header_actions.excess(without(rule_set, broken))


def rule_resources(slot: int, rule_set: RuleSet, protocols: ProxyProtocols) -> dict[str, Json]:
    """Return the resources that have the rules of a slot, by the URL of their type."""
    made: dict[str, Json] = {}
    if ProxyProtocols.HTTP in protocols:
        made[ROUTES] = route_configuration(slot, rule_set)
    if ProxyProtocols.TLS in protocols:
        made[tls.SETTINGS] = tls.settings(name(slot), rule_set)
    return made


def rule_types(protocols: ProxyProtocols) -> list[str]:
    """Return the URL of the type of each resource that has the rules of a slot."""
    return [kind for protocol, kind in _RULE_TYPES.items() if protocol in protocols]


def route_configuration(slot: int, rule_set: RuleSet) -> Json:
    """Return the route configuration of a slot, which has its rules, except for the unusable ones."""
    rule_set = without(rule_set, unusable(rule_set))
    return {
        "@type": ROUTES,
        "name": name(slot),
        "virtual_hosts": [
            {
                "name": "requests",
                "domains": ["*"],
                "request_headers_to_remove": ["x-envoy-external-address", _KEPT],
                "typed_per_filter_config": _rules(rule_set),
                "routes": [
                    {"match": {"safe_regex": {"regex": _HIDDEN_DOTS}}, **_refusal()},
                    {"match": {"connect_matcher": {}}, **_refusal()},
                    {
                        "match": {"prefix": "", "headers": [{"name": "upgrade", "present_match": True}]},
                        **_forward(tls.CLUSTER),
                    },
                    {"match": {"prefix": ""}, **_forward(_REQUESTS)},
                ],
            }
        ],
    }


def _forward(cluster: str) -> Json:
    """Return the action that sends a request to its server; X-Forwarded-Proto is the client's."""
    return {
        "route": {"cluster": cluster, "timeout": "0s", "retry_policy": _CONNECT_AGAIN},
        "request_headers_to_remove": ["x-forwarded-proto"],
        "request_headers_to_add": [
            {
                "header": {"key": "x-forwarded-proto", "value": f"%REQ({_KEPT})%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


def bootstrap(admin: Path, xds: Path) -> Json:
    """Return the configuration that Envoy starts with: sockets, and the clusters of the servers and of the agent."""
    return {
        "node": {"id": "node", "cluster": "nfq-enforcer"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o666}}},
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        "envoy.reloadable_features.match_headers_individually": False,
                        "envoy.reloadable_features.rbac_match_headers_individually": False,
                        "re2.max_program_size.error_level": 1_000_000_000,
                        "re2.max_program_size.warn_level": 1_000_000_000,
                    },
                }
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    f"{TYPE}envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=_MAX_CONNECTIONS,
                )
            ]
        },
        "dynamic_resources": {"lds_config": _config_source(_LISTENERS_DELAY)},
        "static_resources": {"clusters": [*_server_clusters(), _agent_cluster(xds)]},
    }


def _socket_option(level: int, name: int, value: int | bytes) -> Json:
    shown: Json = {"int_value": value} if isinstance(value, int) else {"buf_value": b64encode(value).decode()}
    return {"level": level, "name": name, **shown, "state": "STATE_PREBIND"}


def _server_clusters() -> Iterable[Json]:
    """Yield the clusters of requests, and of streams: of TLS and WebSocket, whose last bytes may still wait at the end.

    A connection that only has requests is closed by a RST (SO_LINGER). After a FIN its port would be in use for a
    minute (TIME_WAIT), whatever the server, and a client has some ten thousand ports.
    """
    # Without this one, Envoy leaves the choice of a port to ``connect``, as clients do. The kernel prefers other ports
    # in ``bind``, so that a client and the proxy do not both use one between the same addresses.
    own_port = _socket_option(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 0)
    yield _server_cluster(_REQUESTS, own_port, _socket_option(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE))
    yield _server_cluster(tls.CLUSTER, own_port)


def _server_cluster(cluster: str, *options: Json) -> Json:
    return {
        "name": cluster,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "cleanup_interval": _SERVER_KEPT,
        "connect_timeout": _CONNECT_TIMEOUT,
        "connection_pool_per_downstream_connection": True,
        "circuit_breakers": _unlimited(),
        "upstream_bind_config": {"socket_options": options},
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"{TYPE}{_HTTP_OPTIONS}",
                "common_http_protocol_options": {"idle_timeout": _SERVER_IDLE},
                "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
            }
        },
    }


def _agent_cluster(xds: Path) -> Json:
    return {
        "name": "agent",
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": _unlimited(),
        "load_assignment": {
            "cluster_name": "agent",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(xds)}}}}]}],
        },
    }


def _unlimited() -> Json:
    names = "max_connections", "max_pending_requests", "max_requests", "max_connection_pools"
    return {"thresholds": [{**dict.fromkeys(names, 1_000_000), "priority": "DEFAULT"}]}


def _config_source(delay: str) -> Json:
    """Return the source of configuration: long polling over HTTP with JSON, with a delay after each response."""
    return {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "REST",
            "transport_api_version": "V3",
            "cluster_names": ["agent"],
            "refresh_delay": delay,
            "request_timeout": f"{REQUEST_TIMEOUT}s",
        },
    }


def _connection_manager(slot: int) -> Json:
    return extension(
        "http",
        f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        codec_type="AUTO",
        rds={"route_config_name": name(slot), "config_source": _config_source(_RULES_DELAY)},
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        use_remote_address=True,
        skip_xff_append=True,
        generate_request_id=False,
        preserve_external_request_id=True,
        server_header_transformation="PASS_THROUGH",
        proxy_100_continue=True,
        stream_idle_timeout="0s",
        request_headers_timeout="60s",
        http_protocol_options={"accept_http_10": True},
        http2_protocol_options={
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 18,
            "initial_connection_window_size": 1 << 20,
        },
        upgrade_configs=[{"upgrade_type": "websocket"}],
        early_header_mutation_extensions=[_keep_forwarded_proto()],
        local_reply_config=_local_reply(),
        http_filters=[
            header_actions.log_filter(),
            extension("rbac", f"{FILTERS}.http.rbac.v3.RBAC", rules={"action": "ALLOW"}),
            *header_actions.filters(),
            extension("router", f"{FILTERS}.http.router.v3.Router", suppress_envoy_headers=True),
        ],
        access_log=[
            extension(
                "access",
                f"{TYPE}envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                log_format={"json_format": {"slot": slot, **_LOG_FORMAT}},
            )
        ],
    )


def _keep_forwarded_proto() -> Json:
    """Return the mutation that keeps the client's X-Forwarded-Proto, before Envoy replaces it."""
    return extension(
        "keep",
        f"{TYPE}envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[
            {"remove": _KEPT},
            {"append": {"header": {"key": _KEPT, "value": "%REQ(x-forwarded-proto)%"}}},
        ],
    )


def _local_reply() -> Json:
    """Return status and text of refusals: also of a target without a path (``OPTIONS *``), for which Envoy has 404."""
    statuses = [
        {"default_value": status, "runtime_key": f"nfqe.status_{status}"} for status in (_FORBIDDEN, _NOT_FOUND)
    ]
    return {
        "mappers": [
            {
                "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": status}}},
                "status_code": _FORBIDDEN,
                "body": {"inline_string": BODY},
            }
            for status in statuses
        ]
    }


def _rules(rule_set: RuleSet) -> Json:
    """Return the settings of the filters: the permission of requests, and the changes of allowed ones."""
    policy = {"permissions": [permission(rule_set)], "principals": [ANY]}
    return {
        "rbac": {
            "@type": f"{FILTERS}.http.rbac.v3.RBACPerRoute",
            "rbac": {"rules": {"action": "ALLOW", "policies": {"requests": policy}}},
        },
        **header_actions.settings(rule_set),
    }


def _refusal() -> Json:
    return {"direct_response": {"status": _FORBIDDEN}}
