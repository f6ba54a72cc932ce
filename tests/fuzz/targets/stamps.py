"""A packet's stamp is read, or refused with a reason; a written stamp is the only one, is read back, and strips off."""

from nfq_enforcer.core.identity import CLUSTER_MIN, Identity, travels
from nfq_enforcer.core.verdict import PacketError
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.fast_parse import insert_fast, parse_fast
from nfq_enforcer.core.wire.packet import Packet, checksum, parse
from nfq_enforcer.core.wire.stamp import Stamp, stamp_template
from tests.support.nodes import FAMILIES
from tests.support.packets import error, ping, sctp, stamped, syn, udp, with_options

_STAMP = Stamp(Identity(CLUSTER_MIN + 4711))
_SIGNED = Stamp(Identity(CLUSTER_MIN), 1, b"12345678")
_PLAIN = [build(at.client, at.web) for at in FAMILIES for build in (syn, udp, ping, sctp)]
_V4, _V6 = (udp(at.client, at.web) for at in FAMILIES)
SEEDS = [
    *_PLAIN,
    *(stamped(payload, 500) for payload in _PLAIN),
    *(stamp.write(payload, parse(payload), _SIGNED) for payload in (_V4, _V6)),
    with_options(_V4, b"\x01\x01\x01\x01\x9e\x08\x10\x00\x00\x00\x01\xf4\x07\x07\x04\x00\x00\x00\x00\x00"),
    with_options(_V6, b"\x01\x04\x01\x00\x1e\x06\x10\x00\x00\x00\x01\xf4\x01\x00"),
    *(error(at.client, at.web, udp(at.web, at.client)) for at in FAMILIES),
]


def check(data: bytes) -> None:
    fast = parse_fast(data)
    try:
        packet = parse(data)
    except PacketError:
        assert fast is None
        return
    found = _read(data, packet)
    if fast is not None:
        key, identity, flags, offset, length = fast
        assert (key, flags, offset, length) == (packet.key, packet.tcp_flags, packet.l4_offset, packet.length)
        if identity is None or travels(identity):
            assert identity == (found and found.identity)
    if not packet.truncated:
        for written in (_STAMP, _SIGNED):
            _check_writing(data, packet, written)
        template = stamp_template(_STAMP, packet.version, packet.proto)
        quick = fast and insert_fast(data, fast, template, 65535, 0)
        if quick and (packet.version == 6 or _is_summed(data, packet)):
            assert quick == stamp.write(data, packet, _STAMP)


def _read(data: bytes, packet: Packet) -> Stamp | None:
    try:
        return stamp.read(data, packet)
    except PacketError as refusal:
        assert refusal.reason
        return None


def _check_writing(data: bytes, packet: Packet, written: Stamp) -> None:
    try:
        out = stamp.write(data, packet, written)
    except PacketError:  # no room
        return
    after = parse(out)
    assert stamp.read(out, after) == written
    assert (after.key, after.tcp_flags) == (packet.key, packet.tcp_flags)
    assert after.length - packet.length == len(out) - len(data)
    assert out[after.l4_offset :] == data[packet.l4_offset :]
    assert packet.version == 6 or _is_summed(out, after)
    bare = stamp.strip(out, after)
    assert parse(bare).key == packet.key
    assert not stamp.is_stamped(bare, parse(bare))
    assert stamp.write(bare, parse(bare), written) == out


def _is_summed(data: bytes, packet: Packet) -> bool:
    return checksum(data[: packet.l4_offset]) == 0
