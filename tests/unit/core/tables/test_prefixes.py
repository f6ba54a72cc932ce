"""Prefix table: the same answers as a search of all prefixes, for any prefixes, in tables of any number of parts."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from random import Random

import pytest

from nfq_enforcer.core.identity import LOCAL, Identity
from nfq_enforcer.core.tables.prefixes import NO_PREFIXES, PART, Network, Prefixes


def longest(numbers: dict[Network, Identity], address: bytes) -> Identity | None:
    """Return the identity of the longest prefix of an address, by a search of all."""
    ip = ip_address(address)
    covers = [network for network in numbers if ip.version == network.version and ip in network]
    return numbers[max(covers, key=lambda network: network.prefixlen)] if covers else None


def edges(network: Network) -> list[bytes]:
    """Return the first and the last address of a network, and their neighbours outside."""
    first, last, size = int(network.network_address), int(network.broadcast_address), network.max_prefixlen // 8
    return [n.to_bytes(size, "big") for n in (first - 1, first, last, last + 1) if 0 <= n < 1 << 8 * size]


@pytest.mark.parametrize("seed", range(30))
def test_an_address_has_the_identity_of_its_longest_prefix(seed: int) -> None:
    random = Random(seed)
    numbers: dict[Network, Identity] = {}
    for _ in range(40):
        four, six = random.randrange(33), random.choice([*range(0, 129, 8), 62, 63, 64, 65, 66])
        # few bits differ, so that prefixes contain and touch each other
        bits4 = random.getrandbits(4) << 28 | random.getrandbits(4)
        bits6 = random.getrandbits(3) << 125 | random.getrandbits(3) << 62 | random.getrandbits(3)
        numbers[IPv4Network((bits4, four), strict=False)] = Identity(LOCAL | random.randrange(3))
        numbers[IPv6Network((bits6, six), strict=False)] = Identity(LOCAL | random.randrange(3))
    table = Prefixes(numbers)

    for address in {address for network in numbers for address in edges(network)}:
        assert table.lookup(address) == longest(numbers, address), ip_address(address)


@pytest.mark.parametrize(("base", "length", "step"), [("10.0.0.0", 32, 2), ("fd00::", 128, 2), ("fd00::", 64, 1 << 65)])
def test_a_table_of_several_parts_is_searched_as_one(base: str, length: int, step: int) -> None:
    first = int(ip_address(base))
    networks = [ip_network((first + number * step, length)) for number in range(PART)]
    table = Prefixes({network: Identity(LOCAL | number) for number, network in enumerate(networks)})

    assert [len(part.first) for part in table.parts()] == [PART, PART, 1]
    for number, network in enumerate(networks):
        assert [table.lookup(address) for address in edges(network)[1:3]] == [LOCAL | number] * 2
        assert table.lookup(edges(network)[3]) is None


def test_neighbours_of_one_identity_are_one_range() -> None:
    table = Prefixes({ip_network((10 << 24 | number << 8, 24)): Identity(LOCAL) for number in range(4096)})

    (part,) = table.parts()
    assert list(part.identities) == [0, LOCAL, 0]


def test_an_empty_table_knows_nothing_of_either_family() -> None:
    assert not NO_PREFIXES
    assert list(NO_PREFIXES.parts()) == []
    four = Prefixes({ip_network("0.0.0.0/0"): Identity(LOCAL)})
    assert four
    assert [four.lookup(bytes(4)), four.lookup(b"\xff" * 4), four.lookup(bytes(16))] == [LOCAL, LOCAL, None]
