"""Connection tracking: one flow for both directions, bounded, and forgotten in time."""

from sys import getrefcount

import pytest

from nfq_enforcer.core.conntrack import Conntrack, Flow, State
from nfq_enforcer.core.packet import parse
from tests.nodes import V4, V6, Addresses
from tests.packets import (
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
        flows.see(flow, parse(payload), now)


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
    flows.remove(flow)
    assert len(flows) == 0


def test_each_direction_has_its_own_origin_and_stamp() -> None:
    flow = create(table(), syn(A, B))
    flow.origin, flow.reply_origin = ("veth", None), ("eth0", None)
    flow.stamp, flow.reply_stamp = None, None

    assert flow.origin_of(parse(request(A, B))) == ("veth", None)
    assert flow.origin_of(parse(syn_ack(B, A))) == ("eth0", None)


# What a flow has seen, its state, and for how long it may be silent: as Linux's nf_conntrack-sysctl, where it says.
LIVES = [
    ([syn(A, B)], State.NEW, 60),
    ([syn(A, B), request(A, B)], State.NEW, 60),
    ([syn(A, B), syn_ack(B, A)], State.ANSWERED, 60),
    ([syn(A, B), syn_ack(B, A), syn(A, B)], State.ANSWERED, 60),
    ([syn(A, B), syn_ack(B, A), request(A, B)], State.ESTABLISHED, 5 * DAY),
    ([syn(A, B), syn_ack(B, A), fin(A, B)], State.CLOSING, 120),
    ([syn(A, B), syn_ack(B, A), fin(A, B), response(B, A)], State.CLOSING, 120),
    ([syn(A, B), fin(A, B), syn_ack(B, A)], State.CLOSING, 120),
    ([syn(A, B), server_rst(B, A)], State.CLOSED, 10),
    ([syn(A, B), syn_ack(B, A), rst(A, B), fin(A, B), response(B, A)], State.CLOSED, 10),
    ([udp(A, B)], State.NEW, 30),
    ([udp(A, B), udp_answer(B, A)], State.ESTABLISHED, 180),
    ([ping(A, B), pong(B, A)], State.ESTABLISHED, 30),
    ([ping(A6, B6), pong(B6, A6)], State.ESTABLISHED, 30),
    ([sctp(A, B)], State.NEW, 60),
    ([ip(A, B, 47, b""), ip(B, A, 47, b"")], State.ESTABLISHED, 600),
]


@pytest.mark.parametrize(("seen", "state", "seconds"), LIVES)
def test_a_flow_lives_as_long_as_its_protocol_and_state_say(seen: list[bytes], state: State, seconds: int) -> None:
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


def test_the_sweep_removes_what_nobody_looks_up_any_more() -> None:
    flows = table()
    create(flows, udp(A, B))
    create(flows, syn(A, B))

    assert flows.expire(START + 29) == 0
    assert flows.expire(START + 32) == 1
    assert [flow.key for flow in flows] == [parse(syn(A, B)).key]
    assert flows.expire(START + 62) == 1
    assert len(flows) == 0


def test_a_renewed_flow_survives_the_sweep_until_its_time_is_over() -> None:
    flows = table()
    establish(flows)
    for second in range(0, 5 * DAY, 3600):
        assert flows.expire(START + second) == 0

    assert flows.expire(START + 5 * DAY + 2) == 1


def test_the_sweep_meets_every_flow_soon_after_its_time() -> None:
    flows = table()
    flow = create(flows, syn(A, B))
    see(flows, flow, syn_ack(B, A), rst(A, B), now=START + 1)

    removed_at = next(second for second in range(200) if flows.expire(START + second))
    assert 11 <= removed_at <= 65


def test_the_sweep_looks_at_no_more_flows_than_its_budget() -> None:
    flows = table()
    for port in range(1, 11):
        create(flows, udp(A, B, port))

    assert [flows.expire(START + 100, budget=4) for _ in range(4)] == [4, 4, 2, 0]


@pytest.mark.parametrize("jump", [0, 3, 59, 63, 64, 65, 100, DAY, 10_000 * DAY])
def test_a_jump_of_time_neither_loses_nor_keeps_a_flow_wrongly(jump: int) -> None:
    flows = table()
    create(flows, udp(A, B))
    flows.expire(START + jump)
    young = create(flows, udp(A, B, 99), START + jump)
    flows.expire(START + jump + 29)
    assert lookup(flows, udp(A, B, 99), START + jump + 29) is young

    flows.expire(START + jump + 100)
    assert len(flows) == 0


@pytest.mark.parametrize("late", [33, 61, 62, 63, 64, 65, 107, 125, 190, 200])
def test_a_late_sweep_does_not_lose_its_budget_to_flows_that_stay(late: int) -> None:
    flows = table()
    establish(flows)
    create(flows, udp(A, B), START + late - 32)

    assert flows.expire(START + late, budget=3) == 1


def test_an_evicted_flow_leaves_nothing_behind() -> None:
    flows = table(maximum=1)
    evicted = create(flows, syn(A, B, 1))
    references = getrefcount(evicted)
    create(flows, syn(A, B, 2))

    assert getrefcount(evicted) == references - 4  # by either key, by its age, and by its time


@pytest.mark.parametrize("at", [V4, V6])
def test_time_going_back_does_no_harm(at: Addresses) -> None:
    flows = table()
    flow = create(flows, syn(at.web, at.db))

    assert flows.expire(START - 500) == 0
    assert lookup(flows, syn(at.web, at.db), START - 500) is flow
