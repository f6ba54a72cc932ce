"""Places of measurement: the source and target machine in a lab, and the nodes between them that queue packets."""

from dataclasses import dataclass

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import ROUTER, SEGMENT
from tests.support.labs import run_in

_SEGMENTATION = ("tso", "gso")
_GRO = "gro"


@dataclass(frozen=True)
class Place:
    """Place: a path through the lab."""

    name: str
    source: str
    target: str
    gates: tuple[str, ...]  # nodes at which packets are queued, once each
    offloads: bool = True

    def interfaces(self, lab: Lab) -> list[tuple[str, str]]:
        """Return (machine, interface) of both ends of all cables of the path."""
        machines = {self.source, self.target, *self.gates, *((SEGMENT,) if len(self.gates) > 1 else ())}
        cables = (cable for cable in lab.topology.cables if {cable.a[0], cable.b[0]} <= machines)
        return [end for cable in cables for end in (cable.a, cable.b)]

    def enter(self, lab: Lab) -> None:
        """Switch the interfaces' segmentation and GRO off, at a place without offloads."""
        if not self.offloads:
            self._switch(lab, dict.fromkeys((*_SEGMENTATION, _GRO), "off"))

    def leave(self, lab: Lab) -> None:
        """Restore the defaults of a veth: segmentation on, GRO off."""
        if not self.offloads:
            self._switch(lab, dict.fromkeys(_SEGMENTATION, "on"))

    def _switch(self, lab: Lab, features: dict[str, str]) -> None:
        for machine, interface in self.interfaces(lab):
            run_in(lab, machine, "ethtool", "-K", interface, *(word for pair in features.items() for word in pair))


HOST = Place("at the host", ROUTER, "n3", ("n3",))
FORWARDED = Place("forwarded, one node", "front1", "back1", ("n1",))
STAMPED = Place("stamped, two nodes", "front1", "back2", ("n1", "n2"))
SEGMENTED = Place("stamped, two nodes, offloads off", "front1", "back2", ("n1", "n2"), offloads=False)
# a host's own packets are segmented after the queue, whatever the interface's offloads
HOSTS = Place("stamped, host to host, offloads off", "n1", "n2", ("n1", "n2"), offloads=False)
PLACES = (HOST, FORWARDED, STAMPED, SEGMENTED, HOSTS)
