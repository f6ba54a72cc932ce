"""DNS over TCP: whatever segments a client sends, in whatever order, its server reads no query that was not seen."""

from random import Random

from nfq_enforcer.core.dns_stream import Stream
from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire.tcp import SEQUENCE_SPACE, Segment
from tests.support.effort import scaled

COUNT = scaled(2000)
START = SEQUENCE_SPACE - 40  # the numbers begin anew on the way
ALLOWED = (b"a", b"bb", b"allowed", b"\0\1x\0\1y", b"\0\0\0\3bad")  # two look like others behind their first bytes
FORBIDDEN = (b"bad", b"x", b"y", b"")
LONGEST = 60  # bytes of the client's stream


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Server:
    """Server: takes the bytes of segments that reach it, and reads them in order.

    Of bytes that come twice before they are read it takes the first, or the last: systems differ.
    """

    def __init__(self, *, last: bool) -> None:
        self._bytes: dict[int, int] = {}
        self._last = last
        self._read = 0

    def receive(self, place: int, data: bytes) -> None:
        for at, byte in enumerate(data, place):
            if at >= self._read and (self._last or at not in self._bytes):
                self._bytes[at] = byte
        while self._read in self._bytes:
            self._read += 1

    def messages(self) -> list[bytes]:
        """Return the messages of the stream as far as it is complete."""
        data = bytes(self._bytes[at] for at in range(self._read))
        found = []
        while len(data) >= 2 and len(data) >= (end := 2 + int.from_bytes(data[:2], "big")):
            found.append(data[2:end])
            data = data[end:]
        return found


def segment_of(random: Random, sent: list[tuple[int, bytes]]) -> tuple[int, bytes]:
    """Return a segment: place and data, mostly near those that were sent before."""
    messages = random.choices(ALLOWED * 3 + FORBIDDEN, k=random.randrange(1, 4))
    data = b"".join(map(framed, messages))
    known, before = random.choice(sent) if sent else (0, b"")
    place = random.choice((known, known + len(before), random.randrange(LONGEST)))
    chance = random.random()
    if chance < 0.2:
        cut = random.randrange(len(data) + 1)
        return place + cut, data[cut:]
    if chance < 0.3:
        return place, data[: random.randrange(len(data) + 1)]
    if chance < 0.5:
        return known, before + data
    if chance < 0.6:
        return known, before[: random.randrange(len(before) + 1)] + data
    return place, data


def test_a_server_reads_only_queries_that_have_passed() -> None:
    random, read = Random(1), 0
    for number in range(COUNT):
        stream, server, sent = Stream(START, 1), Server(last=number % 2 == 0), list[tuple[int, bytes]]()
        for _ in range(60):
            place, data = segment_of(random, sent)
            sent.append((place, data))
            try:
                part = stream.queries(Segment((START + place) % SEQUENCE_SPACE, 1, data))
            except PacketError:
                continue
            if not set(part.messages) <= set(ALLOWED):
                continue
            part.accept()
            if random.random() < 0.7:  # others are lost, or have a checksum that their server does not accept
                server.receive(place, data)

        assert set(server.messages()) <= set(ALLOWED)
        read += len(server.messages())

    assert read > COUNT


def test_queries_in_order_pass_with_their_repetitions() -> None:
    random = Random(2)
    stream, at, passed = Stream(START, 1), START, list[tuple[int, bytes]]()
    for _ in range(60):
        data = framed(random.choice(ALLOWED))
        for seq, repeated in [(at, data), *random.sample(passed, min(len(passed), 2))]:
            part = stream.queries(Segment(seq, 1, repeated))
            part.accept()
        passed.append((at, data))
        at = (at + len(data)) % SEQUENCE_SPACE


def test_answers_cut_anywhere_are_read_once_each() -> None:
    random = Random(3)
    for _ in range(COUNT):
        messages = [random.randbytes(random.randrange(300)) for _ in range(random.randrange(1, 8))]
        stream, data = Stream(1, START), b"".join(map(framed, messages))
        read, at = list[bytes](), 0
        while at < len(data):
            begin, end = max(0, at - random.randrange(20)), min(len(data), at + random.randrange(1, 100))
            part = stream.answers(Segment((START + begin) % SEQUENCE_SPACE, 1, data[begin:end]))
            part.accept()
            read += part.messages
            at = end

        assert read == messages
