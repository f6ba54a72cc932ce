"""Questions about logged flows: the connection of a flow, asked of the documents in a simulation.

An end of a flow that the documents do not have, because it has gone or the flow comes from elsewhere, is asked for by
the labels that the flow has: it becomes an endpoint of the simulation.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from nfq_enforcer.core.events import DnsMessage, HttpMessage, TlsMessage
from nfq_enforcer.core.labels import DEFAULT_SOURCE, Labels
from nfq_enforcer.core.tables.l7 import DnsQuestion, HttpRequest, L7Request, TlsHello
from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.flow import PORTED, PORTLESS, Logged, Side
from nfq_enforcer.policy import loader, writing
from nfq_enforcer.policy.fields import ACCOUNT_KEY
from nfq_enforcer.policy.loader import Documents
from nfq_enforcer.policy.ports import TrafficSpec
from nfq_enforcer.policy.probes import Family
from nfq_enforcer.policy.simulation import Simulation
from nfq_enforcer.policy.why import Connection, Explanation, explain


def ask(simulation: Simulation, logged: Logged) -> Explanation:
    """Return the explanation of a flow's connection by the documents of a simulation; raise BadInput without one."""
    connection = connection_of(logged)
    return explain(with_ends(simulation, logged), connection)


def connection_of(logged: Logged) -> Connection:
    """Return the connection that a flow opens; raise BadInput for an event about none."""
    opening = logged.event.opening
    if not opening.src or opening.proto not in PORTED | PORTLESS:
        raise BadInput(
            "the packet of this event opens no connection of TCP, UDP, SCTP or ICMP, so no document decides about it"
        )
    port = opening.dport if opening.proto in PORTED else opening.icmp_type
    source, destination = _opener_first(logged)
    traffic = TrafficSpec(opening.proto, port, _request(logged))
    family: Family = "IPv4" if len(opening.src) == 4 else "IPv6"
    return Connection(_reference(source), _reference(destination), traffic, family)


def _opener_first(logged: Logged) -> tuple[Side, Side]:
    source, destination = logged.sides
    return (destination, source) if logged.event.is_reply else (source, destination)


def _reference(side: Side) -> str:
    if side.names.name:
        return f"{side.names.namespace}/{side.names.name}"
    entity = writing.entity_of(side.names.labels or Labels())
    return f"reserved:{entity}" if entity else f"ip:{ip_address(side.address)}"


def _request(logged: Logged) -> L7Request | None:
    message = logged.event.l7
    if isinstance(message, HttpMessage):
        return HttpRequest(message.method, message.url, headers=message.headers)
    if isinstance(message, DnsMessage):
        return DnsQuestion(message.name)
    return TlsHello(message.server_name) if isinstance(message, TlsMessage) else None


def with_ends(simulation: Simulation, logged: Logged) -> Simulation:
    """Return a simulation that has both ends of a flow as endpoints, as far as they are any."""
    missing = loader.from_data(_missing(simulation, logged)).endpoints
    if not missing:
        return simulation
    documents = simulation.documents
    return simulation.with_documents(
        Documents((*documents.endpoints, *missing), documents.namespaces, documents.policies)
    )


def _missing(simulation: Simulation, logged: Logged) -> Iterator[dict[str, Any]]:
    for side in logged.sides:
        name = f"{side.names.namespace}/{side.names.name}"
        if side.names.name and name not in simulation.endpoints:
            labels = side.names.labels or Labels()
            account = labels.find(DEFAULT_SOURCE, ACCOUNT_KEY)
            yield {
                "apiVersion": "nfq-enforcer.io/v1",
                "kind": "Endpoint",
                "metadata": {
                    "name": side.names.name,
                    "namespace": side.names.namespace,
                    "labels": {f"{one.source}:{one.key}": one.value for one in writing.own_labels(labels)},
                },
                "spec": {
                    "ips": [str(ip_address(side.address))],
                    **({"serviceAccount": account[0].value} if account else {}),
                },
            }
