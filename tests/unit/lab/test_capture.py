"""Reading of a capture file: IP packets only, and complete records only."""

import struct
from pathlib import Path

import pytest

from nfq_enforcer.lab.capture import read_packets

IPV4, IPV6, ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"


def record(ethertype: bytes, data: bytes) -> bytes:
    frame = bytes(12) + ethertype + data
    return struct.pack("=IIII", 7, 500_000, len(frame), len(frame)) + frame


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "segment.pcap"


def test_ip_packets_of_both_families_are_read_and_other_frames_are_not(file: Path) -> None:
    file.write_bytes(bytes(24) + record(IPV4, b"four") + record(ARP, b"who has") + record(IPV6, b"six"))

    assert list(read_packets(file)) == [(7.5, b"four"), (7.5, b"six")]


@pytest.mark.parametrize("missing", [1, 17, 33])
def test_a_record_cut_off_at_the_end_is_left_out(file: Path, missing: int) -> None:
    file.write_bytes((bytes(24) + record(IPV4, b"four") + record(IPV4, b"last"))[:-missing])

    assert list(read_packets(file)) == [(7.5, b"four")]
