"""Any bytes as the kernel's conntrack dump give flows, or MessageError for each malformed entry, or its errno."""

from contextlib import suppress

from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP, read_key, reply_key
from nfq_enforcer.dataplane.queue import ctnetlink, requests
from nfq_enforcer.dataplane.queue.netlink import MessageError
from nfq_enforcer.dataplane.rules import connmark
from tests.support.conntracks import NEW, Way, attribute, entry, message
from tests.support.nodes import FAMILIES

_WAYS = [
    (proto, Way(at.client, at.web, 7, port))
    for at in FAMILIES
    for proto, port in ((TCP, 80), (UDP, 53), (SCTP, 9), (47, 0), (ICMP if at.version == 4 else ICMPV6, 8))
]
_MARK = attribute(8, connmark.RETIRED.to_bytes(4, "big"))
SEEDS = [
    *(message(NEW, entry(*way, tcp_state=3 if way[0] == TCP else None)) for way in _WAYS),
    *(message(NEW, entry(*way, turned=True, more=[_MARK])) for way in _WAYS[:2]),
    message(2, bytes(20)),
]


def check(data: bytes) -> None:
    flows = Conntrack(10, 0.0)
    with suppress(OSError):
        for _, body in requests.split_messages(data):
            _check_entry(body, flows)
    _check_entry(data, flows)


def _check_entry(body: bytes, flows: Conntrack) -> None:
    with suppress(MessageError):
        ctnetlink.retire_message(body)
    with suppress(MessageError):
        flow = ctnetlink.read_flow(body)
        if flow is not None:
            assert reply_key(reply_key(flow.key)) == flow.key
            assert len(read_key(flow.key)[0]) in (4, 16)
            flows.import_flow(flow, 0.0)
