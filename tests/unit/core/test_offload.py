"""Flows that the kernel passes by itself: from which packet on, which packets bear stamps, and what is still judged."""

from dataclasses import replace

import pytest

from nfq_enforcer.core.events import Decision
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.conntrack import Flow, Offload
from nfq_enforcer.core.tables.ipcache import Ipcache, Peer
from nfq_enforcer.core.verdict import DropReason, FlowVerdict, Verdict
from nfq_enforcer.core.wire.packet import TCP, parse
from nfq_enforcer.core.wire.skb import FLOW_OPENER, FLOW_REPLIER
from tests.support.nodes import (
    CLIENT,
    DB,
    ETH0,
    FAMILIES,
    OTHER,
    VETH_DB,
    VETH_WEB,
    WAN0,
    WEB,
    Addresses,
    Node,
    accepted,
    event,
    refused,
)
from tests.support.packets import (
    Build,
    error,
    fin,
    identity_on,
    packed,
    ping,
    pong,
    request,
    response,
    server_syn,
    stamped,
    syn,
    syn_ack,
    udp,
    udp_answer,
)

ACCEPT, OFFLOAD_OPENER, OFFLOAD_FLOW = Verdict.ACCEPT, Verdict.OFFLOAD_OPENER, Verdict.OFFLOAD_FLOW
OPENERS_AND_REPLIES = [(syn, syn_ack), (udp, udp_answer), (ping, pong)]
NOBODY: list[tuple[int, int, int]] = []
FROM_CLIENT, TO_CLIENT = {"ingress": {"web": [(CLIENT, 0, 0)]}}, {"egress": {"web": [(CLIENT, 0, 0)]}}


class Apart:
    """A node whose kernel passes flows; of any packet the verdict, and whether it leaves with a stamp, and whose."""

    def __init__(self, at: Addresses, **policy: object) -> None:
        self.node, self.at, self.epoch = Node(), at, 0
        self.load(**policy)

    def load(self, **policy: object) -> None:
        self.epoch += 1
        self.node.load(epoch=self.epoch, **policy)  # type: ignore[arg-type]

    def world_asks(self, build: Build, told: int = 0) -> Decision:
        return self.node.forward(build(self.at.world, self.at.web), WAN0, VETH_WEB, skb=told)

    def world_is_told(self, build: Build, told: int = 0) -> Decision:
        return self.node.forward(build(self.at.web, self.at.world), VETH_WEB, WAN0, skb=told)

    def client_sends(self, build: Build, identity: int | None = CLIENT, told: int = 0) -> Decision:
        """Decide a packet that the other node sends to web, with or without a stamp."""
        payload = build(self.at.client, self.at.web)
        return self.node.forward(stamped(payload, identity) if identity else payload, ETH0, VETH_WEB, skb=told)

    def web_sends(self, build: Build, told: int = 0) -> Decision:
        """Decide a packet that web sends to the other node."""
        return self.node.forward(build(self.at.web, self.at.client), VETH_WEB, ETH0, skb=told)

    def flow(self, opener: bytes) -> Flow:
        flow = self.node.flows.lookup(parse(opener).key, self.node.now)
        assert flow is not None
        return flow


def stamp_of(decision: Decision) -> int | None:
    return identity_on(decision.payload) if decision.payload is not None else None


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def at(request: pytest.FixtureRequest) -> Addresses:
    addresses: Addresses = request.param
    return addresses


class TestWithoutStamps:
    """No packet of these flows needs a stamp: the world is one end, and the other is here."""

    @pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
    def test_a_flow_is_the_kernels_at_once_where_its_replies_have_an_interface(
        self, at: Addresses, opener: Build, reply: Build
    ) -> None:
        one = Apart(at)

        opened = one.world_asks(opener)
        assert (opened.verdict, event(opened).verdict) == (OFFLOAD_FLOW, FlowVerdict.FORWARDED)
        assert one.world_is_told(reply).verdict is OFFLOAD_FLOW

    @pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
    def test_any_other_is_the_kernels_from_its_first_reply_on(self, at: Addresses, opener: Build, reply: Build) -> None:
        one = Apart(at)

        assert one.world_is_told(opener).verdict is ACCEPT
        assert one.world_asks(reply).verdict is OFFLOAD_FLOW

    def test_an_endpoint_without_an_interface_has_to_reply_first(self, at: Addresses) -> None:
        one = Apart(at)
        web, *_ = one.node.enforced.endpoints.values()
        one.load(endpoints={packed(at.web): replace(web, interface=None)})

        assert one.world_asks(syn).verdict is ACCEPT
        assert one.world_is_told(syn_ack).verdict is OFFLOAD_FLOW

    def test_packets_that_come_to_us_all_the_same_say_it_again(self, at: Addresses) -> None:
        one = Apart(at)
        one.world_asks(udp)
        one.world_is_told(udp_answer)

        assert one.world_asks(udp).verdict is OFFLOAD_FLOW
        assert one.world_is_told(udp_answer).verdict is OFFLOAD_FLOW

    @pytest.mark.parametrize("opener", [udp, ping])
    def test_of_a_flow_without_replies_the_kernel_passes_what_the_opener_sends(
        self, at: Addresses, opener: Build
    ) -> None:
        one = Apart(at)

        assert [one.world_is_told(opener).verdict for _ in range(3)] == [ACCEPT, OFFLOAD_OPENER, OFFLOAD_OPENER]

    def test_the_first_reply_of_such_a_flow_is_checked_and_makes_it_the_kernels(self, at: Addresses) -> None:
        one = Apart(at)
        one.world_is_told(udp)
        one.world_is_told(udp)

        forged = one.node.forward(udp_answer(at.world, at.web), VETH_DB, VETH_WEB)
        assert refused(forged) is DropReason.INVALID_SOURCE_IP
        assert one.world_asks(udp_answer).verdict is OFFLOAD_FLOW

    def test_tcp_is_judged_until_it_is_answered(self, at: Addresses) -> None:
        one = Apart(at)

        assert [one.world_is_told(syn).verdict for _ in range(2)] == [ACCEPT, ACCEPT]
        assert one.world_is_told(request).verdict is ACCEPT

    def test_a_connection_that_is_being_closed_stays_ours_to_the_end(self, at: Addresses) -> None:
        one = Apart(at)
        one.world_is_told(syn)
        one.world_is_told(fin)

        assert one.world_asks(syn_ack).verdict is ACCEPT

    def test_a_port_that_is_used_again_opens_a_connection_of_its_own(self, at: Addresses) -> None:
        """Of the connection before it nobody has seen the end."""
        one = Apart(at)
        one.world_asks(syn)

        opened = one.world_asks(syn)
        assert opened.verdict is OFFLOAD_FLOW
        assert event(opened).verdict is FlowVerdict.FORWARDED

    def test_the_other_end_may_not_open_one_under_cover_of_it(self, at: Addresses) -> None:
        one = Apart(at, ingress={"web": [(WORLD, 0, 0)]}, egress={"web": NOBODY})
        one.world_asks(syn)
        one.world_is_told(syn_ack)

        assert refused(one.world_is_told(server_syn)) is DropReason.POLICY_DENIED

    def test_within_a_node_it_is_the_same(self, at: Addresses) -> None:
        one = Apart(at, ingress={"web": [(DB, TCP, 80)]})

        assert one.node.forward(syn(at.db, at.web, 80), VETH_DB, VETH_WEB).verdict is OFFLOAD_FLOW
        assert one.node.forward(syn_ack(at.web, at.db, 80), VETH_WEB, VETH_DB).verdict is OFFLOAD_FLOW


class TestTheOpenersNode:
    """Here is who opens a flow to another node."""

    @pytest.mark.parametrize(("opener", "reply"), OPENERS_AND_REPLIES)
    def test_what_the_opener_sends_is_stamped_until_a_stamped_reply_comes(
        self, at: Addresses, opener: Build, reply: Build
    ) -> None:
        one = Apart(at, **TO_CLIENT)

        assert [stamp_of(one.web_sends(opener)) for _ in range(3)] == [WEB] * 3
        assert one.client_sends(reply).verdict is OFFLOAD_FLOW

    def test_a_first_reply_without_a_stamp_is_refused(self, at: Addresses) -> None:
        one = Apart(at, **TO_CLIENT)
        one.web_sends(udp)

        assert refused(one.client_sends(udp_answer, None)) is DropReason.STAMP_MISSING

    def test_later_replies_need_none(self, at: Addresses) -> None:
        one = Apart(at, **TO_CLIENT)
        one.web_sends(udp)
        one.client_sends(udp_answer)

        assert one.client_sends(udp_answer, None).verdict is OFFLOAD_FLOW

    def test_under_a_new_policy_the_opener_is_stamped_again_and_replies_come_without(self, at: Addresses) -> None:
        one = Apart(at, **TO_CLIENT)
        one.web_sends(udp)
        one.client_sends(udp_answer)
        one.load(**TO_CLIENT)

        assert stamp_of(one.web_sends(udp, FLOW_OPENER)) == WEB
        assert one.client_sends(udp_answer, None, FLOW_REPLIER).verdict is OFFLOAD_FLOW

    def test_that_has_forgotten_the_flow_passes_its_replies_by_the_kernels_record(self, at: Addresses) -> None:
        one = Apart(at, **TO_CLIENT)

        assert accepted(one.client_sends(response, None, FLOW_REPLIER))
        assert stamp_of(one.web_sends(request, FLOW_OPENER)) == WEB
        assert one.client_sends(response, None, FLOW_REPLIER).verdict is OFFLOAD_FLOW


class TestTheOtherNode:
    """Here is who answers what another node's endpoint opens."""

    def test_replies_are_stamped_until_the_openers_packets_come_without(self, at: Addresses) -> None:
        one = Apart(at, **FROM_CLIENT)

        assert one.client_sends(syn).verdict is ACCEPT
        assert stamp_of(one.web_sends(syn_ack)) == WEB
        assert one.client_sends(request, None).verdict is OFFLOAD_FLOW
        assert one.web_sends(response) == one.client_sends(request, None)

    def test_who_goes_on_with_stamps_gets_stamped_replies(self, at: Addresses) -> None:
        """It may not have got the first one; or its node judges every packet."""
        one = Apart(at, **FROM_CLIENT)
        one.client_sends(udp)

        for _ in range(3):
            assert stamp_of(one.web_sends(udp_answer)) == WEB
            assert one.client_sends(udp).verdict is OFFLOAD_OPENER

    def test_what_is_not_answered_needs_its_stamp(self, at: Addresses) -> None:
        one = Apart(at, **FROM_CLIENT)
        one.client_sends(udp)

        assert refused(one.client_sends(udp, None)) is DropReason.POLICY_DENIED

    def test_under_a_new_policy_the_flow_is_judged_by_whom_its_address_belongs_to(self, at: Addresses) -> None:
        one = self._settled(at)
        one.load(ingress={"web": [(OTHER, 0, 0)]})
        assert refused(one.client_sends(request, None, FLOW_OPENER)) is DropReason.POLICY_DENIED
        assert refused(one.web_sends(response, FLOW_REPLIER)) is DropReason.POLICY_DENIED

        one.load(**FROM_CLIENT)
        assert stamp_of(one.web_sends(response, FLOW_REPLIER)) == WEB
        assert one.client_sends(request, None, FLOW_OPENER).verdict is OFFLOAD_FLOW

    def test_whose_endpoint_has_another_identity_now_is_judged_by_that(self, at: Addresses) -> None:
        one = self._settled(at)
        changed = {packed(addresses.client): Peer(OTHER, remote=True) for addresses in FAMILIES}
        one.load(**FROM_CLIENT, ipcache=Ipcache(changed, []))

        assert refused(one.web_sends(response, FLOW_REPLIER)) is DropReason.POLICY_DENIED
        assert refused(one.client_sends(request, None, FLOW_OPENER)) is DropReason.POLICY_DENIED

    def test_whose_endpoint_is_gone_is_judged_as_nobody(self, at: Addresses) -> None:
        one = self._settled(at)
        one.load(**FROM_CLIENT, ipcache=Ipcache({}, []))

        assert refused(one.web_sends(response, FLOW_REPLIER)) is DropReason.POLICY_DENIED
        assert refused(one.client_sends(request, None, FLOW_OPENER)) is DropReason.POLICY_DENIED

    def test_an_opener_behind_a_router_that_hides_it_is_whom_its_flow_has_been_opened_by(self, at: Addresses) -> None:
        one = Apart(at, **FROM_CLIENT)
        hidden = syn(at.second_node, at.web), request(at.second_node, at.web)
        one.node.forward(stamped(hidden[0], CLIENT), ETH0, VETH_WEB)
        one.node.forward(syn_ack(at.web, at.second_node), VETH_WEB, ETH0)

        assert one.node.forward(hidden[1], ETH0, VETH_WEB).verdict is OFFLOAD_FLOW
        one.load(**FROM_CLIENT)
        assert accepted(one.node.forward(syn_ack(at.web, at.second_node), VETH_WEB, ETH0, skb=FLOW_REPLIER))
        assert accepted(one.node.forward(hidden[1], ETH0, VETH_WEB, skb=FLOW_OPENER))

    def test_that_has_forgotten_the_flow_finds_it_on_the_kernels_record(self, at: Addresses) -> None:
        one = Apart(at, **FROM_CLIENT)

        found = one.client_sends(request, None, FLOW_OPENER)
        assert found.verdict is OFFLOAD_FLOW
        assert found.event is None, "it is not new"
        assert one.web_sends(response, FLOW_REPLIER).verdict is OFFLOAD_FLOW

    def test_a_reply_of_a_forgotten_flow_passes_if_its_opener_may_open_it(self, at: Addresses) -> None:
        one = Apart(at, **FROM_CLIENT | {"egress": {"web": NOBODY}})

        assert refused(one.web_sends(response)) is DropReason.POLICY_DENIED
        assert stamp_of(one.web_sends(udp_answer, FLOW_REPLIER)) == WEB

    def test_without_the_kernels_word_an_unstamped_packet_is_the_worlds(self, at: Addresses) -> None:
        one = Apart(at, **FROM_CLIENT)

        assert refused(one.client_sends(request, None)) is DropReason.POLICY_DENIED

    def test_by_its_word_only_who_may_open_the_flow_gets_in(self, at: Addresses) -> None:
        one = Apart(at, ingress={"web": [(OTHER, 0, 0)]})

        assert refused(one.client_sends(request, None, FLOW_OPENER)) is DropReason.POLICY_DENIED
        assert refused(one.client_sends(syn, None, FLOW_OPENER)) is DropReason.POLICY_DENIED

    @staticmethod
    def _settled(at: Addresses) -> Apart:
        """Return a node where the kernel passes what client has opened to web."""
        one = Apart(at, **FROM_CLIENT)
        one.client_sends(syn)
        one.web_sends(syn_ack)
        assert one.client_sends(request, None).verdict is OFFLOAD_FLOW
        return one


class TestNever:
    def test_is_a_flow_the_kernels_that_policy_refuses(self, at: Addresses) -> None:
        one = Apart(at, ingress={"web": NOBODY})

        assert [one.world_asks(udp).verdict for _ in range(3)] == [Verdict.DROP] * 3

    def test_is_one_that_only_audit_lets_pass(self, at: Addresses) -> None:
        one = Apart(at, ingress={"web": NOBODY}, audit=True)

        assert [one.world_asks(udp).verdict for _ in range(3)] == [ACCEPT] * 3
        assert [one.world_is_told(udp_answer).verdict for _ in range(3)] == [ACCEPT] * 3

    def test_does_an_error_make_a_flow_the_kernels(self, at: Addresses) -> None:
        one = Apart(at)
        one.world_is_told(udp)
        quoting = error(at.world, at.web, udp(at.web, at.world))

        assert one.node.forward(quoting, WAN0, VETH_WEB).verdict is ACCEPT
        assert one.flow(udp(at.web, at.world)).offload is Offload.NONE

    def test_does_one_from_before_a_change_of_policy_stay_so(self, at: Addresses) -> None:
        one = Apart(at)
        one.world_asks(syn)
        one.world_is_told(syn_ack)
        one.load(ingress={"web": NOBODY})

        assert refused(one.world_asks(request, FLOW_OPENER)) is DropReason.POLICY_DENIED
        assert refused(one.world_is_told(response, FLOW_REPLIER)) is DropReason.POLICY_DENIED

    def test_where_every_packet_is_judged(self, at: Addresses) -> None:
        node = Node()
        node.load()

        for _ in range(3):
            assert node.forward(udp(at.world, at.web), WAN0, VETH_WEB, skb=FLOW_OPENER).verdict is ACCEPT
            assert node.forward(udp_answer(at.web, at.world), VETH_WEB, WAN0, skb=FLOW_REPLIER).verdict is ACCEPT
