"""Questions about logged flows: the connection of a flow, asked of the documents in a simulation.

An end of a flow that the documents do not have, because it has gone or the flow comes from elsewhere, is asked for by
the labels that the flow has: it becomes an endpoint of the simulation.
"""

from nfq_enforcer.errors import BadInput
from nfq_enforcer.observe.flow import PORTED, PORTLESS, Logged
from nfq_enforcer.observe.recording import flow_of
from nfq_enforcer.policy.recorded import with_ends
from nfq_enforcer.policy.simulation import Simulation
from nfq_enforcer.policy.why import Connection, Explanation, explain
from nfq_enforcer.text import printable


def ask(simulation: Simulation, logged: Logged) -> Explanation:
    """Return the explanation of a flow's connection by the documents of a simulation; raise BadInput without one."""
    opening = logged.event.opening
    if not opening.src or opening.proto not in PORTED | PORTLESS:
        raise BadInput(
            "the packet of this event opens no connection of TCP, UDP, SCTP or ICMP, so no document decides about it"
        )
    flow = flow_of(logged)
    known = simulation.documents
    cluster = with_ends(known, (flow.source, flow.target))
    if cluster.unknown:
        raise BadInput(f"no Endpoint document can have the name and labels of {printable(str(cluster.unknown[0]))}")
    if len(cluster.documents.endpoints) > len(known.endpoints):
        simulation = simulation.with_documents(cluster.documents)
    source, target = cluster.references[flow.source], cluster.references[flow.target]
    return explain(simulation, Connection(source, target, flow.traffic, "IPv4" if len(opening.src) == 4 else "IPv6"))
