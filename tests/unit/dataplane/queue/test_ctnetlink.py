"""Decoding of the kernel's conntrack entries: the addresses that our hooks see, the flow state, the timeout."""

import struct

import pytest

from nfq_enforcer.core.tables.conntrack import FlowState, KernelFlow
from nfq_enforcer.core.wire.packet import ICMP, ICMPV6, SCTP, TCP, UDP, parse
from nfq_enforcer.dataplane.queue.ctnetlink import read_flow, retire_message
from nfq_enforcer.dataplane.queue.netlink import MessageError
from nfq_enforcer.dataplane.rules.connmark import MASK, RETIRED
from tests.support.conntracks import CONFIRMED, NEW, Way, attribute, direction, entry
from tests.support.nodes import FAMILIES, V4, V6, Addresses
from tests.support.packets import CLIENT_PORT, ip, ping, syn, udp

ESTABLISHED = 3  # TCP_CONNTRACK_ESTABLISHED


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses


def key(payload: bytes) -> bytes:
    return parse(payload).key


def test_a_connection_has_the_key_of_its_openers_packets(at: Addresses) -> None:
    way = Way(at.client, at.web, CLIENT_PORT, 80)

    assert read_flow(entry(TCP, way, tcp_state=ESTABLISHED, timeout=432)) == KernelFlow(
        key(syn(at.client, at.web, 80)), FlowState.ESTABLISHED, 432
    )
    assert read_flow(entry(UDP, way)) == KernelFlow(key(udp(at.client, at.web, 80)), FlowState.ESTABLISHED, 100)


def test_the_opener_is_as_before_snat_and_the_other_end_as_behind_dnat(at: Addresses) -> None:
    request, reply = Way(at.client, at.cluster, CLIENT_PORT, 80), Way(at.web, at.host, 8080, 9)

    flow = read_flow(entry(TCP, request, reply, tcp_state=ESTABLISHED))
    assert flow is not None
    assert flow.key == key(syn(at.client, at.web, 8080))


@pytest.mark.parametrize(
    ("kernels", "ours"),
    [
        *(
            (1, FlowState.NEW),
            (2, FlowState.ANSWERED),
            (3, FlowState.ESTABLISHED),
            (4, FlowState.CLOSING),
            (7, FlowState.CLOSING),
        ),
        *((8, FlowState.CLOSED), (9, FlowState.NEW)),
    ],
)
def test_a_tcp_connection_is_in_the_state_that_the_kernel_says(kernels: int, ours: FlowState) -> None:
    flow = read_flow(entry(TCP, Way(V4.client, V4.web, 1, 2), tcp_state=kernels))

    assert flow is not None
    assert flow.state is ours


def test_other_flows_are_new_until_they_were_answered(at: Addresses) -> None:
    flow = read_flow(entry(UDP, Way(at.client, at.web, 1, 2), status=CONFIRMED))

    assert flow is not None
    assert flow.state is FlowState.NEW


@pytest.mark.parametrize(("addresses", "proto", "kind"), [(V4, ICMP, 8), (V6, ICMPV6, 128)])
def test_a_query_is_known_by_its_identifier_and_type(addresses: Addresses, proto: int, kind: int) -> None:
    flow = read_flow(entry(proto, Way(addresses.client, addresses.web, 7, kind)))

    assert flow is not None
    assert flow.key == key(ping(addresses.client, addresses.web, 7))


def test_an_icmp_message_that_asks_nothing_is_no_flow() -> None:
    assert read_flow(entry(ICMP, Way(V4.client, V4.web, 7, 3))) is None


def test_a_protocol_without_ports_has_none_in_its_key(at: Addresses) -> None:
    flow = read_flow(entry(47, Way(at.client, at.web, 5, 6)))

    assert flow is not None
    assert flow.key == key(ip(at.client, at.web, 47, b"gre"))


def test_an_entry_of_a_zone_is_left_out() -> None:
    zone = attribute(18, b"\0\1")

    assert read_flow(entry(SCTP, Way(V4.client, V4.web, 1, 2))) is not None
    assert read_flow(entry(SCTP, Way(V4.client, V4.web, 1, 2), more=[zone])) is None


def test_attributes_may_come_in_another_order(at: Addresses) -> None:
    way = Way(at.client, at.web, CLIENT_PORT, 80)

    assert read_flow(entry(TCP, way, turned=True)) == read_flow(entry(TCP, way))


def mark_attribute(mark: int) -> bytes:
    return attribute(8, mark.to_bytes(4, "big"))


@pytest.mark.parametrize("mark", [0x200, 0xFFFFFF00, 0x1234567F])
def test_a_mark_of_ours_is_retired_and_its_other_bits_stay(at: Addresses, mark: int) -> None:
    way = Way(at.client, at.web, CLIENT_PORT, 80)
    zone = attribute(18, b"\0\1")
    change = retire_message(entry(TCP, way, more=[mark_attribute(mark), zone]))

    assert change is not None
    assert struct.unpack_from("=IHH", change) == (len(change), NEW, 1 | 4)
    new, mask = attribute(8, RETIRED.to_bytes(4, "big")), attribute(21, MASK.to_bytes(4, "big"))
    assert change[16:] == bytes(4) + direction(1, TCP, way) + new + mask + zone


@pytest.mark.parametrize("more", [[], [mark_attribute(0)], [mark_attribute(0xFF)]])
def test_what_has_no_mark_of_ours_is_left_alone(more: list[bytes]) -> None:
    assert retire_message(entry(UDP, Way(V4.client, V4.web, 1, 2), more=more)) is None


def test_a_mark_without_its_flow_is_no_entry() -> None:
    with pytest.raises(MessageError):
        retire_message(bytes(4) + mark_attribute(0x200))


BROKEN = [
    b"",
    bytes(4),
    bytes(4) + direction(1, TCP, Way(V4.client, V4.web, 1, 2)),
    entry(TCP, Way(V4.client, V4.web, 1, 2), Way(V6.web, V6.client, 2, 1)),
    entry(TCP, Way(V4.client, V4.web, 1, 2), tcp_state=99),
    entry(TCP, Way(V4.client, V4.web, 1, 2))[:-2] + b"\0",
    entry(TCP, Way(V4.client, V4.web, 1, 2))[:30],
]


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_no_entry_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        read_flow(body)
