"""DNS in the verdict loop: queries are allowed by the names in DNS rules, answers only to questions that were asked.

The rules apply to a flow of UDP or TCP that an egress entry with DNS rules allows (``PolicyVerdict.l7``). Every packet
of such a flow is inspected, and none is offloaded. Each message of the opener has to be a query for a name that a rule
allows. A refused query is answered, so its sender need not wait for a time-out. Each message of the replier has to be
the answer to an open question of this flow: same id, name, type and class. Over TCP a packet may have several messages,
or a part of one (see ``dns_stream``).
"""

from collections.abc import Container
from functools import lru_cache
from typing import NamedTuple

from nfq_enforcer.core.dns_stream import Part, Streams
from nfq_enforcer.core.events import DnsMessage, Learned
from nfq_enforcer.core.identity import travels
from nfq_enforcer.core.tables.policymap import DnsRules, RuleRef
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire.dns import NO_ERROR, Answer, Question, parse_answer, parse_query, refusal
from nfq_enforcer.core.wire.scopes import is_group, is_link_local, is_unspecified
from nfq_enforcer.core.wire.tcp import Segment

_PATIENCE = 30.0  # s that an answer may take; resolvers give up earlier
_MAX_OPEN = 512  # questions of one client
_MAX_LISTED = 32  # addresses and aliases of one message in the log
_MAX_CACHED, _MAX_CACHED_SIZE = 2048, 512  # messages of each kind that are not parsed again, and bytes of one
_NO_ID = bytes(2)

_Read = tuple[tuple[str, int, int], Answer | None, DnsMessage]  # with the question's name, type and class


class Inspected(NamedTuple):
    """Inspected message: the question that its packet asks or answers, and the consequences."""

    client: bytes  # address
    flow: bytes  # key of the client's packets
    question: Question | None = None  # None: malformed
    answer: Answer | None = None  # None: a query, or malformed
    rules: tuple[RuleRef, ...] = ()  # that allow the name
    reason: DropReason | None = None  # for which it is denied
    refusal: bytes | None = None  # the message that answers a refused query
    message: DnsMessage | None = None  # for the log; None: malformed

    @property
    def learned(self) -> tuple[Learned, ...]:
        """Return the addresses of an answer that is accepted, nothing without any."""
        answer = self.answer
        if answer is None or self.reason is not None or answer.rcode != NO_ERROR or not answer.addresses:
            return ()
        return (Learned(self.client, answer.name, answer.addresses),)


def learnable(learned: Learned, snapshot: Snapshot) -> Learned | None:
    """Return the addresses that a name may have, None without any."""
    addresses = tuple((address, ttl) for address, ttl in learned.addresses if is_learnable(snapshot, address))
    return learned._replace(addresses=addresses) if addresses else None


def is_learnable(snapshot: Snapshot, address: bytes) -> bool:
    """Tell whether a name may have this address: not one of an endpoint, a node, this host, or of no single host.

    Otherwise the owner of an allowed name could open a way into the cluster (DNS rebinding).
    """
    if address in snapshot.endpoints or address in snapshot.own_addresses or _is_loopback(address):
        return False
    if is_group(address) or is_link_local(address) or is_unspecified(address):
        return False
    peer = snapshot.ipcache.underlying(address)
    return not (travels(peer.identity) or peer.is_node or peer.remote)


def _is_loopback(address: bytes) -> bool:
    """Tell whether an address is this host's for every host: 127.0.0.0/8, ::1, and IPv4 addresses in IPv6."""
    if len(address) == 4:
        return address[0] in {0, 127}
    return address[:10] == bytes(10) and (address[10:12] == b"\xff\xff" or not any(address[10:15]))


class OpenQuestions:
    """Open questions: the questions of each client until their answers, so many of the newest ones for a client."""

    def __init__(self) -> None:
        """Start without questions."""
        self._of_clients: dict[bytes, dict[tuple[bytes, Question], float]] = {}

    def add(self, client: bytes, flow: bytes, question: Question, now: float) -> None:
        """Add a question of a client, asked in the flow with this key."""
        asked = self._of_clients.setdefault(client, {})
        asked.pop((flow, question), None)  # asked again: it is the newest now
        if len(asked) >= _MAX_OPEN:
            del asked[next(iter(asked))]
        asked[flow, question] = now + _PATIENCE

    def has(self, client: bytes, flow: bytes, question: Question, now: float) -> bool:
        """Tell whether a question is open."""
        return self._of_clients.get(client, {}).get((flow, question), 0.0) > now

    def remove(self, client: bytes, flow: bytes, question: Question) -> None:
        """Remove an open question."""
        asked = self._of_clients[client]
        del asked[flow, question]
        if not asked:
            del self._of_clients[client]

    def keep(self, clients: Container[bytes]) -> None:
        """Remove the questions of all other clients."""
        for client in [client for client in self._of_clients if client not in clients]:
            del self._of_clients[client]


class DnsInspector:
    """DNS inspector: decides the messages of flows with DNS rules."""

    def __init__(self) -> None:
        """Start without open questions."""
        self.questions = OpenQuestions()
        self.streams = Streams()

    def inspect(
        self, message: bytes, client: bytes, flow: bytes, rules: DnsRules, now: float, *, is_query: bool
    ) -> Inspected:
        """Inspect a message of a client's flow, or to it; a denied one has a reason. Nothing changes yet."""
        identifier, rest = int.from_bytes(message[:2], "big"), message[2:]
        read = _read_query if is_query else _read_answer
        try:
            asked, answer, logged = read(rest) if len(message) <= _MAX_CACHED_SIZE else read.__wrapped__(rest)
        except PacketError as error:
            return Inspected(client, flow, reason=error.reason)
        question, found = (identifier, *asked), rules.find(asked[0])
        if not is_query and not self.questions.has(client, flow, question, now):
            return Inspected(client, flow, question, answer, (), DropReason.DNS_UNSOLICITED, None, logged)
        if is_query and not found:
            refused = refusal(message, parse_query(message))
            return Inspected(client, flow, question, None, (), DropReason.DNS_REFUSED, refused, logged)
        return Inspected(client, flow, question, answer, found, None, None, logged)

    def inspect_segment(
        self, segment: Segment, client: bytes, flow: bytes, rules: DnsRules, now: float, *, is_query: bool
    ) -> tuple[tuple[Inspected, ...], Part | None]:
        """Inspect the messages of a TCP segment with data: all of them, or the first one that is denied.

        Return the part of the stream, too, None for a segment that may not pass. Nothing changes yet.
        """
        try:
            if not segment.plain:  # the receiver may read other bytes
                raise PacketError(DropReason.DNS_SEGMENT)
            stream = self.streams.find(client, flow)
            part = stream.queries(segment) if is_query else stream.answers(segment)
        except PacketError as error:
            return (Inspected(client, flow, reason=error.reason),), None
        inspected = tuple(
            self.inspect(message, client, flow, rules, now, is_query=is_query) for message in part.messages
        )
        for one in inspected:
            if one.refusal is not None:
                return (one._replace(refusal=b"".join(map(_refused, part.messages))),), part
            if one.reason is not None:
                return (one,), part
        return inspected, part

    def accept(self, inspected: Inspected, now: float) -> None:
        """Open the question of an accepted query, or close that of an accepted answer."""
        client, flow, question = inspected.client, inspected.flow, inspected.question
        if question is None or inspected.reason is DropReason.DNS_UNSOLICITED:  # in audit mode
            return
        if inspected.answer is None:
            self.questions.add(client, flow, question, now)
        elif self.questions.has(client, flow, question, now):  # not the second time in one segment
            self.questions.remove(client, flow, question)


def _refused(message: bytes) -> bytes:
    """Return the answer REFUSED to a query, behind its length; empty for any other message."""
    try:
        answer = refusal(message, parse_query(message))
    except PacketError:
        return b""
    return len(answer).to_bytes(2, "big") + answer


@lru_cache(_MAX_CACHED)
def _read_query(rest: bytes) -> _Read:
    """Read a query without its id, by which clients tell repeated queries apart; raise PacketError."""
    query = parse_query(_NO_ID + rest)
    return query.question[1:], None, DnsMessage(False, query.name, query.type)


@lru_cache(_MAX_CACHED)
def _read_answer(rest: bytes) -> _Read:
    """Read an answer without its id; raise PacketError."""
    answer = parse_answer(_NO_ID + rest)
    addresses = tuple(record.address for record in answer.addresses[:_MAX_LISTED])
    facts = answer.rcode, answer.ttl, addresses, answer.aliases[:_MAX_LISTED]
    return answer.question[1:], answer, DnsMessage(True, answer.name, answer.type, *facts)
