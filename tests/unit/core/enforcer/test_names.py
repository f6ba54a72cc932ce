"""Names of addresses: which addresses are learned, and for which flows they count."""

import pytest

from nfq_enforcer.core.dns import learnable
from nfq_enforcer.core.events import Learned
from nfq_enforcer.core.identity import REMOTE_NODE, WORLD
from nfq_enforcer.core.tables.conntrack import FlowState
from nfq_enforcer.core.tables.flow_ends import EndCause
from nfq_enforcer.core.tables.ipcache import Peer
from nfq_enforcer.core.tables.names import NameChange
from nfq_enforcer.core.verdict import Direction, DropReason
from tests.support.dns import ID, A, address, alias, answer, answers, asks, query
from tests.support.nodes import (
    CLIENT,
    ETH0,
    PEERS,
    VETH_WEB,
    WAN0,
    Addresses,
    Node,
    event,
    refused,
    rule,
)
from tests.support.packets import packed, request, response, stamped, syn, syn_ack

NAME = "api.example.com"
LEARNED = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.fixture
def node() -> Node:
    node = Node()
    node.load_names("*.example.com", "b.example")
    return node


def learn(node: Node, at: Addresses, message: bytes, name: str = NAME, kind: int = A) -> Learned | None:
    """Return the addresses that are learned from an answer to web."""
    assert refused(node.forward(asks(at.web, at.client, query(name, kind)), VETH_WEB, ETH0)) is None
    heard = node.forward(stamped(answers(at.client, at.web, message), CLIENT), ETH0, VETH_WEB)
    assert refused(heard) is None
    return learnable(heard.learned[0], node.enforced) if heard.learned else None


def opens(node: Node, at: Addresses, port: int = 80, target: str = "") -> DropReason | None:
    """Open a connection of web to the address of the name."""
    return refused(node.forward(syn(at.web, target or LEARNED[at.version], port), VETH_WEB, WAN0))


def know(node: Node, at: Addresses, name: str = NAME, expires: float | None = 1060.0) -> None:
    node.names.apply([NameChange(name, packed(LEARNED[at.version]), expires)])


def test_an_answer_gives_a_name_its_addresses(node: Node, at: Addresses) -> None:
    message = answer(NAME, address(NAME, "192.0.2.1", 30), address(NAME, "2001:db8::1"))

    assert learn(node, at, message) == Learned(
        packed(at.web), NAME, ((packed("192.0.2.1"), 30), (packed("2001:db8::1"), 60))
    )


def test_the_addresses_of_an_alias_belong_to_the_name_that_was_asked(node: Node, at: Addresses) -> None:
    message = answer(NAME, alias(NAME, "b"), address("b", "192.0.2.1"), address("other", "192.0.2.2"))

    assert learn(node, at, message) == Learned(packed(at.web), NAME, ((packed("192.0.2.1"), 60),))


@pytest.mark.parametrize(
    "message",
    [
        answer(NAME),
        answer(NAME, address("other.example.com", "192.0.2.1")),
        answer(NAME, address(NAME, "192.0.2.1"), flags=0x8380),
        answer(NAME, address(NAME, "192.0.2.1"), flags=0x8183),
    ],
    ids=["empty", "other name", "truncated", "error"],
)
def test_other_answers_teach_nothing(node: Node, at: Addresses, message: bytes) -> None:
    assert learn(node, at, message) is None


@pytest.mark.parametrize(
    "text",
    [
        *("10.1.0.10", "10.1.0.20", "10.2.0.10", "172.16.0.1", "172.16.0.2", "10.9.0.9", "127.0.0.1", "0.0.0.0"),
        *("0.1.2.3", "224.0.0.1", "255.255.255.255", "198.51.100.1"),
        *("fd01::10", "fd02::10", "fd00::1", "fd00::2", "fd09::9", "::1", "::", "fe80::1", "ff02::1"),
        *("::ffff:10.1.0.10",),
    ],
)
def test_no_name_gets_the_address_of_an_endpoint_a_node_or_a_host(node: Node, at: Addresses, text: str) -> None:
    own = frozenset(map(packed, ("172.16.0.1", "fd00::1", "198.51.100.1")))
    node.load_names("*", own_addresses=own)

    message = answer(NAME, address(NAME, text), address(NAME, "192.0.2.1"))
    assert learn(node, at, message) == Learned(packed(at.web), NAME, ((packed("192.0.2.1"), 60),))
    assert learn(node, at, answer(NAME, address(NAME, text))) is None


def test_in_audit_mode_only_what_was_asked_is_learned(node: Node, at: Addresses) -> None:
    node.load_names("*.example.com", audit=True)
    message = answer(NAME, address(NAME, "192.0.2.1"), ident=ID + 1)

    node.forward(asks(at.web, at.client, query(NAME)), VETH_WEB, ETH0)
    unasked = node.forward(stamped(answers(at.client, at.web, message), CLIENT), ETH0, VETH_WEB)
    assert (refused(unasked), unasked.learned) == (None, ())
    assert learn(node, at, answer(NAME, address(NAME, "192.0.2.1"))) is not None


def test_an_answer_that_is_rewritten_teaches_too(node: Node, at: Addresses) -> None:
    assert refused(node.forward(asks(at.web, at.client, query(NAME)), VETH_WEB, ETH0)) is None
    heard = answers(at.client, at.web, answer(NAME, address(NAME, "192.0.2.1")))

    stripped = node.send(stamped(heard, CLIENT), VETH_WEB)  # by this host, which sets no stamps
    assert stripped.payload == heard
    assert stripped.learned


def test_an_address_of_a_name_is_open_until_the_name_expires(node: Node, at: Addresses) -> None:
    assert opens(node, at) is DropReason.POLICY_DENIED
    know(node, at)
    opened = node.forward(syn(at.web, LEARNED[at.version]), VETH_WEB, WAN0)
    assert event(opened).allowed_by == (rule("web", Direction.EGRESS, 0),)
    assert event(opened).opening.destination == WORLD
    assert opens(node, at, 443) is DropReason.POLICY_DENIED
    node.now = 1061.0

    node.flows.remove(next(iter(node.flows)), EndCause.EXPIRED, node.now)
    assert opens(node, at) is DropReason.POLICY_DENIED


def test_a_name_that_no_pattern_matches_opens_nothing(node: Node, at: Addresses) -> None:
    know(node, at, "a.b.example.com")

    assert opens(node, at) is DropReason.POLICY_DENIED
    node.load_names("**.example.com")
    assert opens(node, at) is None


def open_flow(node: Node, at: Addresses) -> None:
    know(node, at)
    assert opens(node, at) is None
    answered = node.forward(syn_ack(LEARNED[at.version], at.web), WAN0, VETH_WEB)
    assert refused(answered) is None
    assert talks(node, at) is None


def talks(node: Node, at: Addresses) -> DropReason | None:
    sent = refused(node.forward(request(at.web, LEARNED[at.version]), VETH_WEB, WAN0))
    return sent or refused(node.forward(response(LEARNED[at.version], at.web), WAN0, VETH_WEB))


def test_an_open_flow_outlives_the_name(node: Node, at: Addresses) -> None:
    open_flow(node, at)
    node.now = 100_000.0
    know(node, at, expires=None)  # forgotten altogether
    assert talks(node, at) is None


def test_an_open_flow_stays_allowed_when_policy_changes(node: Node, at: Addresses) -> None:
    open_flow(node, at)
    node.now = 2000.0
    know(node, at, expires=None)

    for _ in range(3):
        node.load_names("*.example.com", "b.example")
        assert talks(node, at) is None


def test_an_open_flow_ends_with_the_rule(node: Node, at: Addresses) -> None:
    open_flow(node, at)

    node.load_names("b.example")
    assert talks(node, at) is DropReason.POLICY_DENIED


def test_a_flow_that_only_the_kernel_knows_is_open_for_an_expired_name(node: Node, at: Addresses) -> None:
    know(node, at, expires=10.0)
    node.import_flow(request(at.web, LEARNED[at.version]), FlowState.ESTABLISHED)

    assert talks(node, at) is None


def test_a_name_with_the_address_of_an_endpoint_or_a_node_opens_nothing(node: Node, at: Addresses) -> None:
    for target in (at.client, at.second_node, at.db):
        node.names.apply([NameChange(NAME, packed(target), 1060.0)])
        assert refused(node.forward(syn(at.web, target), VETH_WEB, ETH0)) is DropReason.POLICY_DENIED
    assert Peer(REMOTE_NODE, remote=True, is_node=True) in PEERS.values()
