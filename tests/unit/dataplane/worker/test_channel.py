"""The channel: messages and reports assembled from any pieces, and an end that never blocks."""

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from nfq_enforcer.core.identity import WORLD, Identity
from nfq_enforcer.core.modes import Driver
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.tables.policymap import LookupResult, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.dataplane.queue.protocol import QueueNumbers
from nfq_enforcer.dataplane.worker.channel import (
    IdentityChanges,
    PeerChanges,
    Revision,
    Setup,
    Stop,
    WorkerChannel,
    encode,
    message_decoder,
    report_decoder,
)
from nfq_enforcer.dataplane.worker.map_transfer import MapReceiver, MapSender
from nfq_enforcer.dataplane.worker.reports import MAX_REPORT, Bound, Enforced, Failed, InvalidReport, Report
from tests.support.packets import packed

RULE = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0)
WEB, CLIENT = packed("10.1.0.10"), packed("10.2.0.10")
OPEN, CLOSED = (
    PolicyMap({}, enforced=False),
    PolicyMap({PolicyKey(Identity(500), 6, 80, 16): PolicyEntry((RULE,))}, enforced=True, enforced_by=(RULE,)),
)
SNAPSHOT = Snapshot(
    3,
    {WEB: LocalEndpoint("default/web", Identity(300), "veth-web", CLOSED, OPEN)},
    Ipcache({}, [ip_network("10.9.0.0/16")]),
    frozenset({"eth0"}),
    {4: packed("172.16.0.1")},
)
PEERS = {CLIENT: Peer(Identity(500), remote=True)}
IDENTITIES = frozenset({Identity(300), Identity(500)})
CHANGES = PeerChanges(((CLIENT, None), (packed("fd02::10"), PEERS[CLIENT])))
BOUND = Bound(Driver.NETLINK, QueueNumbers(100, 101, 102, 103, 104))
MESSAGES = [Stop(), CHANGES, IdentityChanges(((Identity(501), True),)), Revision(4), Stop()]
REPORTS: list[Report] = [BOUND, Failed("queue 100 is taken"), Enforced(3)]
LARGE = Failed("x" * 4096)

Pair = tuple[WorkerChannel, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Yield a worker's channel and the agent's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield WorkerChannel(theirs), ours


def fetch(end: socket.socket, count: int) -> list[object]:
    decoder, messages = report_decoder(), list[object]()
    while len(messages) < count:
        messages += decoder.feed(end.recv(1 << 18))
    return messages


def fill(channel: WorkerChannel) -> int:
    """Send until the channel refuses; return the number of accepted messages."""
    taken = 0
    while channel.send(LARGE):
        taken += 1
    return taken


@pytest.mark.parametrize("size", [1, 3, 7, 1 << 20])
def test_messages_come_whole_and_in_order_whatever_pieces_they_come_in(size: int) -> None:
    wire, decoder = b"".join(map(encode, MESSAGES)), message_decoder()

    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]

    assert [message for piece in pieces for message in decoder.feed(piece)] == MESSAGES


def test_a_snapshot_arrives_as_it_was_sent() -> None:
    sender, receiver = MapSender(), MapReceiver()
    for chunk in sender.add(SNAPSHOT):
        receiver.add(chunk)
    reference = sender.refer(SNAPSHOT)
    (setup,) = message_decoder().feed(
        encode(
            Setup(Driver.AUTO, QueueNumbers(100, 102, 104, 106, 108), 101, False, 1000, reference, PEERS, IDENTITIES)
        )
    )

    assert (setup.driver, setup.queues, setup.max_flows) == ("auto", QueueNumbers(100, 102, 104, 106, 108), 1000)
    snapshot = receiver.resolve(setup.snapshot)
    assert (setup.fail_open, snapshot.revision) == (False, 3)
    web = snapshot.endpoints[WEB]
    assert (web.name, web.identity, web.interface) == ("default/web", 300, "veth-web")
    assert web.ingress.lookup(Identity(500), 6, 80) == LookupResult(True, (RULE,))
    assert (web.ingress.enforced, web.ingress.enforced_by, web.egress.enforced) == (True, (RULE,), False)
    assert (setup.peers, setup.identities) == (PEERS, IDENTITIES)
    assert snapshot.ipcache.lookup(packed("10.9.0.1")) == Peer(WORLD, remote=True)
    assert (snapshot.endpoint_interfaces, snapshot.cluster_interfaces) == (frozenset({"veth-web"}), frozenset({"eth0"}))


def test_a_worker_hears_what_is_there_and_does_not_wait_for_more(pair: Pair) -> None:
    channel, agent = pair
    assert list(channel.receive()) == []

    agent.sendall(encode(CHANGES) + encode(Stop())[:-1])
    assert list(channel.receive()) == [CHANGES]

    agent.sendall(encode(Stop())[-1:])
    assert list(channel.receive()) == [Stop()]
    assert not channel.closed


def test_a_worker_that_stops_asking_gets_the_others_next_time_and_can_tell_that_there_are_some(pair: Pair) -> None:
    channel, agent = pair
    agent.sendall(b"".join(map(encode, MESSAGES)))

    assert not channel.has_message
    assert next(channel.receive()) == MESSAGES[0]
    assert channel.has_message
    assert list(channel.receive()) == MESSAGES[1:]
    assert not channel.has_message


def test_half_a_message_is_none(pair: Pair) -> None:
    channel, agent = pair

    for length in (2, 4, len(encode(Stop())) - 1):  # part of the length, the length alone, all but the last byte
        agent.sendall((encode(CHANGES) + encode(Stop()))[: len(encode(CHANGES)) + length])
        assert list(channel.receive()) == [CHANGES]
        assert not channel.has_message
        agent.sendall(encode(Stop())[length:])
        assert list(channel.receive()) == [Stop()]


def test_the_agent_hears_what_a_worker_says(pair: Pair) -> None:
    channel, agent = pair

    assert [channel.send(report) for report in REPORTS] == [True] * len(REPORTS)
    assert fetch(agent, len(REPORTS)) == REPORTS


def test_a_report_that_announces_too_many_bytes_is_refused_before_they_arrive() -> None:
    with pytest.raises(InvalidReport, match="allowed: at most"):
        list(report_decoder().feed((MAX_REPORT + 1).to_bytes(4, "big")))


def test_an_agent_unpickles_nothing() -> None:
    with pytest.raises(InvalidReport):
        list(report_decoder().feed(encode(Stop())))


def test_what_the_agent_does_not_fetch_is_refused_at_last_and_the_rest_arrives_whole(pair: Pair) -> None:
    channel, agent = pair

    accepted = fill(channel)

    assert accepted > 1024  # 4 MiB, and the socket buffer
    agent.setblocking(False)
    decoder, messages = report_decoder(), list[object]()
    while len(messages) < accepted:
        messages += decoder.feed(agent.recv(1 << 18))
        channel.flush()
    assert messages == [LARGE] * accepted
    assert channel.send(BOUND)


def test_a_channel_has_the_descriptor_of_its_socket(pair: Pair) -> None:
    channel, agent = pair

    assert channel.fileno() > 2
    assert channel.fileno() != agent.fileno()


def test_a_worker_learns_from_silence_that_the_agent_is_gone(pair: Pair) -> None:
    channel, agent = pair
    agent.sendall(encode(Stop()))
    agent.close()

    assert list(channel.receive()) == [Stop()]
    assert channel.closed
    assert list(channel.receive()) == []


def test_a_worker_learns_from_a_reset_that_the_agent_is_gone(pair: Pair) -> None:
    channel, agent = pair
    channel.send(BOUND)
    agent.close()  # with unread data of the worker

    assert list(channel.receive()) == []
    assert channel.closed


def test_a_worker_learns_from_sending_that_the_agent_is_gone(pair: Pair) -> None:
    channel, agent = pair
    fill(channel)
    agent.close()

    channel.flush()

    assert channel.closed
    assert channel.send(BOUND)  # without a receiver; the channel neither blocks nor fails
