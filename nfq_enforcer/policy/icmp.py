"""ICMP types: the names that Cilium accepts in ``icmps``, and their numbers, for each address family."""

import re
from collections.abc import Mapping

FAMILIES: Mapping[str, Mapping[str, int]] = {
    "IPv4": {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "Redirect": 5,
        "Echo": 8,
        "EchoRequest": 8,
        "RouterAdvertisement": 9,
        "RouterSelection": 10,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
        "Timestamp": 13,
        "TimestampReply": 14,
        "Photuris": 40,
        "ExtendedEchoRequest": 42,
        "ExtendedEchoReply": 43,
    },
    "IPv6": {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
        "MulticastListenerQuery": 130,
        "MulticastListenerReport": 131,
        "MulticastListenerDone": 132,
        "RouterSolicitation": 133,
        "RouterAdvertisement": 134,
        "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136,
        "RedirectMessage": 137,
        "RouterRenumbering": 138,
        "ICMPNodeInformationQuery": 139,
        "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141,
        "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144,
        "HomeAgentAddressDiscoveryReply": 145,
        "MobilePrefixSolicitation": 146,
        "MobilePrefixAdvertisement": 147,
        "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158,
        "ExtendedEchoRequest": 160,
        "ExtendedEchoReply": 161,
    },
}
MAX_TYPE = 255
_DIGITS = re.compile(r"0|[1-9][0-9]{0,2}")


def number(family: str, name_or_number: object) -> int:
    """Return the number of an ICMP type given as a number, digits or a name; raise ValueError for anything else."""
    names = FAMILIES[family]
    if isinstance(name_or_number, str) and name_or_number in names:
        return names[name_or_number]
    value = (
        int(name_or_number) if isinstance(name_or_number, str) and _DIGITS.fullmatch(name_or_number) else name_or_number
    )
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TYPE:
        allowed = f"0 to {MAX_TYPE}, {', '.join(names)}"
        raise ValueError(f"{name_or_number!r} is not an ICMP type of {family}; allowed: {allowed}")
    return value
