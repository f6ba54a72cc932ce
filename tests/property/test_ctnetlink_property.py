"""Any bytes as a conntrack entry give a flow, None, or MessageError."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_enforcer.core.tables.conntrack import Conntrack
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP, read_key, reply_key
from nfq_enforcer.dataplane.queue.ctnetlink import read_flow
from nfq_enforcer.dataplane.queue.netlink import MessageError
from nfq_enforcer.dataplane.queue.requests import split_messages
from tests.support.conntracks import Way, entry
from tests.support.effort import scaled
from tests.support.nodes import FAMILIES

SAME_EVERY_TIME = settings(derandomize=True, database=None, deadline=None, max_examples=scaled(500))
BULK = scaled(50_000)

ENTRIES = [
    entry(proto, Way(at.client, at.web, 7, port), tcp_state=3 if proto == TCP else None)
    for at in FAMILIES
    for proto, port in ((TCP, 80), (UDP, 53), (SCTP, 9), (47, 0), (ICMP if at.version == 4 else ICMPV6, 8))
]


def handle(body: bytes, flows: Conntrack) -> bool:
    """Import the flow of an entry; return whether the entry is well-formed."""
    try:
        flow = read_flow(body)
    except MessageError:
        return False
    if flow is not None:
        assert reply_key(reply_key(flow.key)) == flow.key
        assert len(read_key(flow.key)[0]) in (4, 16)
        flows.import_flow(flow, 0.0)
    return True


@SAME_EVERY_TIME
@given(st.binary(max_size=200))
def test_any_bytes_give_a_flow_or_a_message_error(body: bytes) -> None:
    handle(body, Conntrack(10, 0.0))


@SAME_EVERY_TIME
@given(st.binary(max_size=100))
def test_any_bytes_are_messages_or_the_kernels_error(received: bytes) -> None:
    try:
        assert all(len(body) <= len(received) for _, body in split_messages(received))
    except OSError as error:
        assert error.errno is not None


def test_damaged_entries_give_a_flow_or_a_message_error() -> None:
    random, read, flows = Random(1), 0, Conntrack(1000, 0.0)
    for _ in range(BULK):
        body = bytearray(random.choice(ENTRIES))
        for _ in range(random.randint(1, 3)):
            body[random.randrange(len(body))] = random.choice((0, 1, 2, 4, 5, 6, 8, 28, 128, random.randrange(256)))
        read += handle(bytes(body), flows)

    assert BULK // 10 < read < BULK - BULK // 10  # damage was neither always fatal nor always harmless
