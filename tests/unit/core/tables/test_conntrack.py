"""Connection tracking: one flow for both directions, bounded, and forgotten in time."""

from sys import getrefcount

import pytest

from nfq_enforcer.core.tables.conntrack import (
    ORIGIN_UNKNOWN,
    REVISION_NONE,
    Conntrack,
    Flow,
    FlowState,
    KernelFlow,
    Offload,
    Origin,
)
from nfq_enforcer.core.tables.flow_ends import EndCause
from nfq_enforcer.core.wire.packet import parse
from tests.support.nodes import V4, V6, Addresses
from tests.support.packets import (
    fin,
    ip,
    ping,
    pong,
    request,
    response,
    rst,
    sctp,
    server_rst,
    syn,
    syn_ack,
    udp,
    udp_answer,
)

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "fd00::1", "fd00::2"
START = 1000.0
DAY = 86_400


def table(maximum: int = 100) -> Conntrack:
    return Conntrack(maximum, START)


def create(flows: Conntrack, payload: bytes, now: float = START) -> Flow:
    return flows.create(parse(payload), now)


def see(flows: Conntrack, flow: Flow, *payloads: bytes, now: float = START) -> None:
    for payload in payloads:
        packet = parse(payload)
        flows.update(flow, packet.key != flow.key, packet.tcp_flags, packet.length, now)


def lookup(flows: Conntrack, payload: bytes, now: float = START) -> Flow | None:
    return flows.lookup(parse(payload).key, now)


@pytest.mark.parametrize(
    ("opener", "reply"),
    [
        (syn(A, B), syn_ack(B, A)),
        (syn(A6, B6), syn_ack(B6, A6)),
        (udp(A, B), udp_answer(B, A)),
        (udp(A6, B6), udp_answer(B6, A6)),
        (ping(A, B), pong(B, A)),
        (ping(A6, B6), pong(B6, A6)),
        (ip(A, B, 47, b""), ip(B, A, 47, b"")),
    ],
)
def test_a_flow_is_found_by_packets_of_both_directions(opener: bytes, reply: bytes) -> None:
    flows = table()
    flow = create(flows, opener)

    assert lookup(flows, opener) is flow
    assert lookup(flows, reply) is flow


@pytest.mark.parametrize(
    "stranger", [syn(A, B, 81), udp(A, B, 80), syn(B, A), pong(A, B), ping(B, A), ping(A, B, 8), syn_ack(B, A, 81)]
)
def test_a_packet_of_no_flow_finds_none(stranger: bytes) -> None:
    flows = table()
    create(flows, syn(A, B))
    create(flows, ping(A, B))

    assert lookup(flows, stranger) is None


def test_a_packet_to_oneself_has_one_key_for_both_directions() -> None:
    flows = table()
    flow = create(flows, ip(A, A, 47, b""))

    assert lookup(flows, ip(A, A, 47, b"")) is flow
    flows.remove(flow, EndCause.CUT, START)
    assert len(flows) == 0


def test_each_direction_has_its_own_origin_and_stamp() -> None:
    flow = create(table(), syn(A, B))
    flow.origin, flow.reply_origin = Origin("veth", None), Origin("eth0", None)
    flow.stamp, flow.reply_stamp = None, None

    assert flow.origin_of(parse(request(A, B))) == ("veth", None)
    assert flow.origin_of(parse(syn_ack(B, A))) == ("eth0", None)


# What a flow has seen, its state, and for how long it may be silent: as Linux's nf_conntrack-sysctl, where it says.
LIVES = [
    ([syn(A, B)], FlowState.NEW, 60),
    ([syn(A, B), request(A, B)], FlowState.NEW, 60),
    ([syn(A, B), syn_ack(B, A)], FlowState.ANSWERED, 60),
    ([syn(A, B), syn_ack(B, A), syn(A, B)], FlowState.ANSWERED, 60),
    ([syn(A, B), syn_ack(B, A), request(A, B)], FlowState.ESTABLISHED, 5 * DAY),
    ([syn(A, B), syn_ack(B, A), fin(A, B)], FlowState.CLOSING, 120),
    ([syn(A, B), syn_ack(B, A), fin(A, B), response(B, A)], FlowState.CLOSING, 120),
    ([syn(A, B), fin(A, B), syn_ack(B, A)], FlowState.CLOSING, 120),
    ([syn(A, B), server_rst(B, A)], FlowState.CLOSED, 10),
    ([syn(A, B), syn_ack(B, A), rst(A, B), fin(A, B), response(B, A)], FlowState.CLOSED, 10),
    ([udp(A, B)], FlowState.NEW, 30),
    ([udp(A, B), udp_answer(B, A)], FlowState.ESTABLISHED, 180),
    ([ping(A, B), pong(B, A)], FlowState.ESTABLISHED, 30),
    ([ping(A6, B6), pong(B6, A6)], FlowState.ESTABLISHED, 30),
    ([sctp(A, B)], FlowState.NEW, 60),
    ([ip(A, B, 47, b""), ip(B, A, 47, b"")], FlowState.ESTABLISHED, 600),
]


@pytest.mark.parametrize(("seen", "state", "seconds"), LIVES)
def test_a_flow_lives_as_long_as_its_protocol_and_state_say(seen: list[bytes], state: FlowState, seconds: int) -> None:
    flows = table()
    flow = create(flows, seen[0])
    see(flows, flow, *seen[1:])

    assert flow.state is state
    assert lookup(flows, seen[0], START + seconds - 0.1) is flow
    assert lookup(flows, seen[0], START + seconds) is None
    assert len(flows) == 0


def test_every_packet_renews_a_flows_time() -> None:
    flows = table()
    flow = create(flows, udp(A, B))
    see(flows, flow, udp(A, B), now=START + 29)

    assert lookup(flows, udp(A, B), START + 58) is flow


def test_a_flow_made_anew_takes_the_place_of_the_old_one() -> None:
    flows = table()
    old = create(flows, syn(A, B))
    new = create(flows, syn(A, B))

    assert lookup(flows, syn(A, B)) is new
    assert list(flows) == [new]
    assert new is not old


def test_a_flow_of_the_other_direction_takes_the_place_of_the_old_one() -> None:
    flows = table()
    create(flows, udp(A, B))
    new = create(flows, udp_answer(B, A))

    assert lookup(flows, udp(A, B)) is new
    assert list(flows) == [new]
    assert new.origin_of(parse(udp(A, B))) is None


def establish(flows: Conntrack, port: int = 80) -> Flow:
    flow = create(flows, syn(A, B, port))
    see(flows, flow, syn_ack(B, A, port), request(A, B, port))
    return flow


def test_the_oldest_flow_that_was_never_answered_makes_room() -> None:
    flows = table(maximum=3)
    establish(flows, 1)
    for port in (2, 3, 4):
        create(flows, syn(A, B, port))

    assert [port for port in (1, 2, 3, 4) if lookup(flows, syn(A, B, port))] == [1, 3, 4]
    assert (len(flows), flows.evicted) == (3, 1)


def test_forged_openers_that_are_answered_drive_out_no_real_connection() -> None:
    flows = table(maximum=3)
    real = establish(flows, 1)
    for port in range(2, 50):
        see(flows, create(flows, syn(A, B, port)), syn_ack(B, A, port))

    assert lookup(flows, request(A, B, 1)) is real


def test_of_confirmed_flows_the_oldest_makes_room() -> None:
    flows = table(maximum=2)
    for port in (1, 2):
        establish(flows, port)
    create(flows, syn(A, B, 3))

    assert [port for port in (1, 2, 3) if lookup(flows, syn(A, B, port))] == [2, 3]


@pytest.mark.parametrize("maximum", [1, 2, 10])
def test_the_table_never_holds_more_than_its_maximum(maximum: int) -> None:
    flows = table(maximum)
    for port in range(1, 51):
        create(flows, syn(A, B, port))
        assert len(flows) <= maximum

    assert flows.evicted == 50 - maximum


def test_a_flow_in_place_of_an_old_one_evicts_nobody() -> None:
    flows = table(maximum=2)
    for _ in range(5):
        create(flows, syn(A, B, 1))
        create(flows, syn(A, B, 2))

    assert (len(flows), flows.evicted) == (2, 0)


def test_flows_are_told_unconfirmed_ones_first() -> None:
    flows = table()
    confirmed = establish(flows, 1)
    unconfirmed = create(flows, syn(A, B, 2))

    assert list(flows) == [unconfirmed, confirmed]


def sweep(flows: Conntrack, now: float, budget: int = 8000) -> int:
    """Sweep as often as one turn after the other does in a short time; return how many flows went."""
    return sum(flows.expire(now, budget) for _ in range(100))


ROUND = 32  # seconds in which the sweep goes round the table


def test_the_sweep_removes_what_nobody_looks_up_any_more() -> None:
    flows = table()
    create(flows, udp(A, B))
    create(flows, syn(A, B))

    assert sweep(flows, START + 29) == 0
    assert sweep(flows, START + 30 + ROUND) >= 1
    assert sweep(flows, START + 60 + ROUND) <= 1
    assert len(flows) == 0


def test_a_renewed_flow_survives_the_sweep_until_its_time_is_over() -> None:
    flows = table()
    establish(flows)
    for second in range(0, 5 * DAY, 3600):
        assert sweep(flows, START + second) == 0

    assert sweep(flows, START + 5 * DAY + ROUND) == 1


def test_the_sweep_meets_every_flow_soon_after_its_time() -> None:
    flows = table()
    for port in range(1, 100):
        see(flows, create(flows, syn(A, B, port)), syn_ack(B, A, port), rst(A, B, port), now=START + 1)
    left = [len(flows) for second in range(100) if sweep(flows, START + second) >= 0]

    assert left[10] == 99
    assert left[11 + ROUND] == 0


@pytest.mark.parametrize("budget", [1, 40, 400, 8000])
def test_a_step_of_the_sweep_is_short_however_much_there_is_to_remove(budget: int) -> None:
    flows = table(maximum=2000)
    for port in range(1, 2001):
        create(flows, udp(A, B, port))

    removed = [flows.expire(START + 500, budget) for _ in range(20_000)]
    assert max(removed) <= max(50, budget // 32)
    assert (sum(removed), len(flows)) == (2000, 0)


@pytest.mark.parametrize("jump", [0, 3, 31, 32, 33, 100, DAY, 10_000 * DAY])
def test_a_jump_of_time_neither_loses_nor_keeps_a_flow_wrongly(jump: int) -> None:
    flows = table()
    create(flows, udp(A, B))
    sweep(flows, START + jump)
    young = create(flows, udp(A, B, 99), START + jump)
    sweep(flows, START + jump + 29)
    assert lookup(flows, udp(A, B, 99), START + jump + 29) is young

    sweep(flows, START + jump + 30 + ROUND)
    assert len(flows) == 0


def import_flow(
    flows: Conntrack, payload: bytes, state: FlowState = FlowState.ESTABLISHED, expires_in: float = 1e9
) -> bool:
    return flows.import_flow(KernelFlow(parse(payload).key, state, expires_in), START)


@pytest.mark.parametrize(("opener", "reply"), [(syn(A, B), syn_ack(B, A)), (ping(A6, B6), pong(B6, A6))])
def test_a_learned_flow_is_found_by_packets_of_both_directions(opener: bytes, reply: bytes) -> None:
    flows = table()

    assert import_flow(flows, opener)
    (flow,) = flows
    assert lookup(flows, opener) is lookup(flows, reply) is flow
    assert (flow.origin, flow.reply_origin, flow.revision) == (ORIGIN_UNKNOWN, None, REVISION_NONE)


def test_a_learned_flow_lives_as_long_as_its_state_says_or_who_knows_it() -> None:
    flows = table()
    import_flow(flows, udp(A, B, 1))
    import_flow(flows, udp(A, B, 2), expires_in=7)

    assert [flow.expires - START for flow in flows] == [180, 7]


def test_what_is_learned_drives_out_and_replaces_nothing() -> None:
    flows = table(maximum=2)
    seen = create(flows, syn(A, B, 1))

    assert not import_flow(flows, syn(A, B, 1))
    assert not import_flow(flows, syn_ack(B, A, 1))
    assert import_flow(flows, syn(A, B, 2))
    assert not import_flow(flows, syn(A, B, 3))
    assert lookup(flows, syn(A, B, 1)) is seen
    assert (len(flows), flows.evicted) == (2, 0)


def test_an_evicted_flow_leaves_nothing_behind() -> None:
    flows = table(maximum=1)
    evicted = create(flows, syn(A, B, 1))
    references = getrefcount(evicted)
    create(flows, syn(A, B, 2))

    assert getrefcount(evicted) == references - 4  # by either key, and by either neighbour


@pytest.mark.parametrize("at", [V4, V6])
def test_time_going_back_does_no_harm(at: Addresses) -> None:
    flows = table()
    flow = create(flows, syn(at.web, at.db))

    assert flows.expire(START - 500) == 0
    assert lookup(flows, syn(at.web, at.db), START - 500) is flow


# Flows that the kernel passes


@pytest.mark.parametrize("bypass", [Offload.OPENER, Offload.FLOW])
@pytest.mark.parametrize("opener", [syn(A, B), udp(A, B), ping(A, B)])
def test_a_flow_that_is_left_to_the_kernel_is_kept_for_little_longer_than_until_it_shows_itself(
    bypass: Offload, opener: bytes
) -> None:
    flows = table()
    flow = create(flows, opener)
    flows.offload(flow, bypass, START)

    assert lookup(flows, opener, START + 149) is flow
    assert lookup(flows, opener, START + 150) is None


def test_of_a_connection_that_is_left_to_the_kernel_no_end_is_seen_and_none_awaited() -> None:
    flows = table()
    flow = create(flows, syn(A, B))
    see(flows, flow, syn_ack(B, A))
    flows.offload(flow, Offload.FLOW, START)

    assert flow.state is FlowState.ESTABLISHED


def test_flows_that_are_left_to_the_kernel_make_room_before_all_others() -> None:
    flows = table(3)
    confirmed, left, half_open = (create(flows, syn(A, B, port)) for port in (1, 2, 3))
    see(flows, confirmed, syn_ack(B, A, 1), request(A, B, 1))
    flows.offload(left, Offload.FLOW, START)
    create(flows, syn(A, B, 4))

    assert lookup(flows, syn(A, B, 2)) is None
    assert lookup(flows, syn(A, B, 1)) is confirmed
    assert lookup(flows, syn(A, B, 3)) is half_open
    assert flows.evicted == 1


def test_a_flow_is_recalled_as_established_and_not_judged_even_where_there_is_no_room() -> None:
    flows = table(1)
    create(flows, syn(A, B, 1))
    key = parse(request(A, B, 2)).key
    flow = flows.restore(key, START)

    assert (flow.key, flow.state, flow.revision, flow.origin) == (
        key,
        FlowState.ESTABLISHED,
        REVISION_NONE,
        ORIGIN_UNKNOWN,
    )
    assert lookup(flows, response(B, A, 2), START + DAY) is flow
    assert len(flows) == 1
    assert list(flows) == [flow]
