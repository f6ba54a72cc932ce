r"""Stamps in scapy: layers for both families, which scapy knows as soon as this module is imported.

IPv4: option 158 in ``IP(options=[IPOptionStamp(identity=300)])``. IPv6: option 0x1E in
``IPv6ExtHdrDestOpt(options=[IPv6OptionStamp(identity=300)])``. A signed stamp has the flag ``signed`` and a tag of 8
bytes. An option that is too short for a stamp has its bytes in ``value``, as in ``IPOptionStamp(length=3,
value=b"\x10")``, so that each packet is built as it was read.

>>> from scapy.all import IP, TCP
>>> from nfq_enforcer.captures.scapy_layer import IPOptionStamp, stamps
>>> packet = IP(bytes(IP(dst="10.2.0.10", options=[IPOptionStamp(identity=300)]) / TCP(dport=80)))
>>> [stamp.identity for stamp in stamps(packet)]
[300]

The format: ``nfq_enforcer/core/wire/stamp.py``.
"""

from collections.abc import Iterator
from typing import Any

from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    ConditionalField,
    FieldLenField,
    FlagsField,
    IntField,
    StrLenField,
)
from scapy.layers import inet6
from scapy.layers.inet import IP, IPOption, _IPOption_HDR
from scapy.layers.inet6 import HBHOptUnknown, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet

from nfq_enforcer.core.wire.stamp import IPV4_OPTION, IPV6_OPTION, VERSION

_BODY = 8  # bytes of an unsigned stamp with type and length
_NUMBER = IPV4_OPTION & 0x1F  # of the option, without copy flag and class: the key of scapy's register


def _fields(length: str, uncounted: int) -> list[Any]:
    """Return the fields behind the length; ``uncounted`` are the bytes of the option that the length does not count."""

    def size(option: Any) -> int:
        return int(getattr(option, length)) + uncounted

    def is_stamp(option: Any) -> bool:
        # A stamp that is being built has no length yet.
        return getattr(option, length) is None or (option.has_stamp_type and size(option) >= _BODY)

    return [
        ConditionalField(BitField("version", VERSION, 4), is_stamp),
        ConditionalField(FlagsField("flags", 0, 4, ["signed"]), is_stamp),
        ConditionalField(ByteField("key_id", 0), is_stamp),
        ConditionalField(IntField("identity", 0), is_stamp),
        ConditionalField(StrLenField("tag", b"", length_from=lambda option: size(option) - _BODY), is_stamp),
        ConditionalField(
            StrLenField("value", b"", length_from=lambda option: max(0, size(option) - 2)),
            lambda option: not is_stamp(option),
        ),
    ]


class IPOptionStamp(IPOption):  # type: ignore[misc]
    """Stamp of an IPv4 packet.

    scapy tells options by their number alone. Those of another class, or without the copy flag, have their bytes in
    ``value``.
    """

    name = "nfq_enforcer stamp"
    copy_flag = IPV4_OPTION >> 7
    optclass = IPV4_OPTION >> 5 & 3
    option = _NUMBER
    fields_desc = [  # noqa: RUF012 (scapy's form)
        _IPOption_HDR,
        FieldLenField("length", None, fmt="B", length_of="tag", adjust=lambda _, tag: _BODY + tag),
        *_fields("length", 0),
    ]

    @property
    def has_stamp_type(self) -> bool:
        """Return whether the type, with copy flag and class, is that of a stamp."""
        return bool(self.copy_flag == IPV4_OPTION >> 7 and self.optclass == IPV4_OPTION >> 5 & 3)


class IPv6OptionStamp(HBHOptUnknown):  # type: ignore[misc]
    """Stamp of an IPv6 packet, in a Destination Options header."""

    name = "nfq_enforcer stamp"
    has_stamp_type = True
    fields_desc = [  # noqa: RUF012 (scapy's form)
        ByteEnumField("otype", IPV6_OPTION, {IPV6_OPTION: "nfq_enforcer stamp"}),
        FieldLenField("optlen", None, fmt="B", length_of="tag", adjust=lambda _, tag: _BODY - 2 + tag),
        *_fields("optlen", 2),
    ]


inet6._hbhoptcls[IPV6_OPTION] = IPv6OptionStamp


def stamps(packet: Packet) -> Iterator[IPOptionStamp | IPv6OptionStamp]:
    """Yield the stamps of the outer IP header of a packet, malformed ones too."""
    for place, layer in enumerate(_from_ip_header(packet)):
        if place and isinstance(layer, IP | IPv6):  # of a tunnel, or quoted by an ICMP error
            return
        if isinstance(layer, IP | IPv6ExtHdrDestOpt):
            yield from (option for option in layer.options if isinstance(option, IPOptionStamp | IPv6OptionStamp))


def _from_ip_header(packet: Packet) -> Iterator[Packet]:
    while packet and not isinstance(packet, IP | IPv6):
        packet = packet.payload
    while packet:
        yield packet
        packet = packet.payload
