"""Logged flow events for tests of the flow log's readers."""

from typing import Any

from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import RESERVED, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.observe.flow import Logged
from tests.support.packets import packed

AT = 1_767_225_600.125  # 2026-01-01T00:00:00.125Z
UUID = "00000000-0000-8000-8000-000000000001"
SYN = 0x02
FRONT, BACK, DB = Identity(300), Identity(400), Identity(500)
ENDS = {
    FRONT: End(Labels.parse({"role": "frontend", "tier": "web"}), "shop", "front-1"),
    BACK: End(Labels.parse({"container:role": "backend"}), "default", "back-1"),
    DB: End(Labels.parse({"role": "db"}), "shop", "db-1"),
}
ADDRESSES = {FRONT: "10.1.0.10", BACK: "10.2.0.10", DB: "fd02::10"}


def rule(name: str, direction: Direction = Direction.INGRESS, number: int = 0, namespace: str = "shop") -> RuleRef:
    """Return a rule of a policy of this name, of a cluster-wide one without a namespace."""
    kind = "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy"
    return RuleRef(kind, namespace, name, direction, number)


def opening(
    source: Identity = FRONT,
    destination: Identity = BACK,
    *,
    src: str | None = None,
    dst: str | None = None,
    proto: int = TCP,
    ports: tuple[int, int] = (40_000, 80),
    icmp: tuple[int, int] = (-1, -1),
) -> Opening:
    """Return an opening between two identities, by default at their usual addresses."""
    addresses = (
        packed(src or ADDRESSES.get(source, "192.0.2.1")),
        packed(dst or ADDRESSES.get(destination, "192.0.2.2")),
    )
    return Opening(*addresses, proto, *ports, *icmp, False, source, destination)


def logged(opened: Opening | None = None, *, at: float = AT, node: str = "n1", **changed: Any) -> Logged:
    """Return the event of an allowed TCP connection from front-1 to back-1; ``changed`` overrides its fields."""
    opened = opened or opening()
    event = FlowEvent(0.0, FlowVerdict.FORWARDED, None, Direction.INGRESS, opened, SYN, is_reply=False)
    return Logged(event._replace(**changed), Ends(_end(opened.source), _end(opened.destination)), at, node, UUID)


def dropped(opened: Opening | None = None, reason: DropReason = DropReason.POLICY_DENIED, **changed: Any) -> Logged:
    """Return the event of a refused connection."""
    return logged(opened, verdict=FlowVerdict.DROPPED, reason=reason, **changed)


def _end(identity: Identity) -> End:
    return ENDS[identity] if identity in ENDS else End(RESERVED.get(identity))
