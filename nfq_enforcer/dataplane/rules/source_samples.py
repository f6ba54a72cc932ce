"""Samples of packets with a forged source, which the source filter has dropped, as flow events.

The kernel sends a copy of a packet's first bytes over netlink (linux/netfilter/nfnetlink_log.h) to the socket that is
bound to the log group; the source filter limits their rate.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.snapshot import Snapshot
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict, PacketError
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.dataplane.queue import netlink, requests
from nfq_enforcer.dataplane.queue.netlink import MessageError
from nfq_enforcer.dataplane.queue.requests import ACK, FAMILY, RECEIVE_BYTES, REQUEST, split_messages
from nfq_enforcer.dataplane.rules.source_filter import LOG_GROUP

_PACKET, _CONFIG = 4 << 8, 4 << 8 | 1  # NFNL_SUBSYS_ULOG: NFULNL_MSG_PACKET, NFULNL_MSG_CONFIG
_INDEV, _PHYSINDEV, _PAYLOAD = 4, 6, 9  # NFULA_IFINDEX_INDEV, NFULA_IFINDEX_PHYSINDEV (of a bridge), NFULA_PAYLOAD
_COMMAND, _THRESHOLD = 1, 5  # NFULA_CFG_CMD, NFULA_CFG_QTHRESH
_BIND = 1  # NFULNL_CFG_CMD_BIND
_NUMBER = struct.Struct("!I")
_BUFFER = 1 << 18  # bytes
_READ_AT_ONCE = 64  # datagrams
_ADDRESSES, _PROTO = {4: (12, 4), 6: (8, 16)}, {4: 9, 6: 6}  # offsets in the fixed header
_REST = False, Identity(0), Identity(0)  # of an opening: not known to be for this host, unresolved identities


class Sample(NamedTuple):
    """Sample: a dropped packet."""

    interface: int  # index of the interface by which it arrived
    payload: bytes  # its first bytes


def open_samples() -> socket.socket:
    """Return a non-blocking socket with the samples; raise OSError if another process has the log group."""
    samples = requests.open_socket(timeout=1.0)
    try:
        samples.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        attributes = netlink.attribute(_COMMAND, bytes((_BIND,)))
        attributes += netlink.attribute(_THRESHOLD, _NUMBER.pack(1))  # each sample at once
        samples.send(requests.request(_CONFIG, REQUEST | ACK, number=LOG_GROUP, attributes=attributes))
        if error := _acknowledged(samples):
            raise OSError(error, "the kernel refuses the log group")
        samples.setblocking(False)
    except OSError:
        samples.close()
        raise
    return samples


def _acknowledged(samples: socket.socket) -> int:
    """Return the errno of the kernel's answer, which samples may precede."""
    while True:
        with suppress(MessageError):
            return netlink.read_errno(samples.recv(RECEIVE_BYTES))


def read_samples(samples: socket.socket) -> Iterator[Sample]:
    """Yield the samples that wait in the socket; lost ones are not reported, because the table counts all drops."""
    for _ in range(_READ_AT_ONCE):
        try:
            received = samples.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: the socket had no room
            continue
        yield from decode(received)


def decode(received: bytes) -> Iterator[Sample]:
    """Yield the samples of a datagram, without malformed ones."""
    for kind, body in split_messages(received):
        if kind != _PACKET:
            continue
        with suppress(MessageError):
            found = netlink.attributes(body[FAMILY.size :])
            if len(index := found.get(_PHYSINDEV) or found.get(_INDEV, b"")) == _NUMBER.size and _PAYLOAD in found:
                yield Sample(_NUMBER.unpack(index)[0], found[_PAYLOAD])


def drop_event(sample: Sample, snapshot: Snapshot, interface: str, now: float) -> FlowEvent:
    """Return the flow event of a sample from this interface; its reason is the one that a worker gives first."""
    reason, opening = DropReason.INVALID_SOURCE_IP, Opening(*_fixed_header(sample.payload), *_REST)
    with suppress(PacketError):  # a fragment, for example, has only addresses and protocol
        packet = parse(sample.payload)
        ends = packet.src, packet.dst, packet.proto, packet.sport, packet.dport, packet.icmp_type, packet.icmp_code
        opening = Opening(*ends, *_REST)
        if packet.src not in snapshot.endpoints and stamp.is_stamped(sample.payload, packet):
            reason = DropReason.STAMP_UNTRUSTED
    leaves = snapshot.is_from_endpoint(opening.src, interface)
    direction = Direction.EGRESS if leaves else Direction.INGRESS
    return FlowEvent(now, FlowVerdict.DROPPED, reason, direction, opening, 0, is_reply=False)


def _fixed_header(payload: bytes) -> tuple[bytes, bytes, int, int, int, int, int]:
    version = payload[0] >> 4 if payload else 0
    start, size = _ADDRESSES.get(version, (0, 0))
    if len(payload) < start + 2 * size or not size:
        return b"", b"", 0, 0, 0, -1, -1
    middle = start + size
    return payload[start:middle], payload[middle : middle + size], payload[_PROTO[version]], 0, 0, -1, -1
