"""Traffic on the link of the endpoint front1 and its node n1: questions to groups, and link-local addresses."""

from contextlib import closing

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import UPLINK
from tests.support.labs import BRIEF, PATIENT, from_role, policy, run_in, to_role
from tests.support.namespaces import link_socket, received

VETH = "veth-front1"
CLOSED = "".join(
    policy(f"closed-{role}", role, ingress=[from_role("nobody")], egress=[to_role("nobody")])
    for role in ("frontend", "backend")
)
GROUPS = {
    "mDNS": {4: ("224.0.0.251", 5353), 6: ("ff02::fb", 5353)},
    "LLMNR": {4: ("224.0.0.252", 5355), 6: ("ff02::1:3", 5355)},
}


def ask(lab: Lab, group: str, port: int, family: int, *, closed: bool) -> bool:
    """Ask a group on the link from front1; tell whether the node's answer, to the asker alone, arrives."""
    with (
        closing(link_socket(lab, "n1", VETH, family, port, group=group)) as service,
        closing(link_socket(lab, "front1", UPLINK, family)) as asking,
    ):
        asking.sendto(b"a question", (group, port))
        question = received(service, BRIEF if closed else PATIENT, lambda data: data == b"a question")
        if question is None:
            return False
        with closing(link_socket(lab, "n1", VETH, family, port)) as answering:
            answering.sendto(b"an answer", question[1])
            return received(asking, PATIENT) is not None


def link_local(lab: Lab, machine: str, interface: str) -> str:
    """Return the link-local address of a machine's interface."""
    fields = run_in(lab, machine, "ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link").split()
    return fields[fields.index("inet6") + 1].partition("/")[0]


def pings(lab: Lab, machine: str, target: str, device: str) -> bool:
    command = f"ping -q -c 1 -W 1 {target}%{device} >/dev/null && echo reached || echo lost"
    return run_in(lab, machine, "sh", "-c", command) == "reached\n"
