"""Wireshark's dissector of stamps, in tshark: fields of both families, and the same verdicts on stamps as a node's."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.verdict import DropReason, PacketError
from nfq_enforcer.core.wire import stamp
from nfq_enforcer.core.wire.packet import parse
from nfq_enforcer.core.wire.stamp import Stamp
from tests.support import packets
from tests.support.tshark import read_fields, run_tshark, write_packets

ENDS = {4: ("10.1.0.10", "10.2.0.10"), 6: ("fd01::10", "fd02::10")}
FIELDS = ("nfqe.version", "nfqe.flags", "nfqe.flags.signed", "nfqe.key_id", "nfqe.identity", "nfqe.tag", "nfqe.labels")
REASONS = tuple(reason for reason in DropReason if str(reason) in packets.BAD_STAMPS)
EXPERTS = {f"nfqe.{reason.lower()}": reason for reason in REASONS}
TAG = bytes(range(8))
both_families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "packets.pcapng"


def plain(family: int) -> bytes:
    return packets.syn(*ENDS[family])


def stamped(family: int, identity: int = 300, key_id: int = 0, tag: bytes = b"") -> bytes:
    packet = plain(family)
    return stamp.write(packet, parse(packet), Stamp(Identity(identity), key_id, tag))


@both_families
def test_the_fields_of_a_stamp(family: int, file: Path) -> None:
    write_packets(file, [plain(family), stamped(family), stamped(family, 70_000, 7, TAG)])

    without, unsigned, signed = read_fields(file, (*FIELDS, *EXPERTS))

    assert not any(without.values())
    assert [unsigned[field] for field in FIELDS] == [["1"], ["0x00"], ["0"], ["0"], ["300"], [], []]
    assert [signed[field] for field in FIELDS] == [["1"], ["0x01"], ["1"], ["7"], ["70000"], [TAG.hex()], []]
    assert not any(found[expert] for found in (unsigned, signed) for expert in EXPERTS)


@both_families
def test_a_field_is_a_display_filter_and_a_column(family: int, file: Path) -> None:
    write_packets(file, [plain(family), stamped(family, 300), stamped(family, 301)])
    column = 'gui.column.format:"No.","%m","Identity","%Cus:nfqe.identity:0:R"'

    shown = run_tshark(file, "-Y", "nfqe.identity == 301", "-o", column)

    assert shown.split() == ["3", "301"]


@pytest.mark.parametrize("reason", packets.BAD_STAMPS)
@both_families
def test_a_stamp_that_a_node_refuses_has_the_drop_reason_as_expert_info(family: int, reason: str, file: Path) -> None:
    bad = packets.with_options(plain(family), bytes.fromhex(packets.BAD_STAMPS[reason][family]))
    write_packets(file, [bad])

    (found,) = read_fields(file, ("_ws.expert.group", *EXPERTS))

    assert [EXPERTS[expert] for expert in EXPERTS if found[expert]] == [reason]
    assert "117440512" in found["_ws.expert.group"]  # PI_MALFORMED, epan/proto.h


def test_labels_come_from_the_list_of_identities(file: Path) -> None:
    identities = file.with_name("identities.json")
    identities.write_text(
        '[\n  {\n    "identity": 300,\n    "labels": [\n      "k8s:role=web",\n      "k8s:tier=front"\n    ],\n'
        '    "endpoints": 1,\n    "reserved": false\n  }\n]\n'
    )
    write_packets(file, [stamped(4), stamped(6, 301)])

    known, unknown = read_fields(file, FIELDS, "-o", f"nfqe.identities:{identities}")

    assert (known["nfqe.labels"], unknown["nfqe.labels"]) == (["k8s:role=web, k8s:tier=front"], [])


def test_the_document_has_the_output_of_tshark(file: Path) -> None:
    identities = file.with_name("identities.json")
    identities.write_text('[{"identity": 300, "labels": ["k8s:role=frontend"]}]')
    write_packets(file, [stamped(4)])
    document = (Path(__file__).parents[2] / "docs/captures.md").read_text()
    (example,) = re.findall(r"^nfq_enforcer stamp, .*?(?=\n```)", document, re.MULTILINE | re.DOTALL)

    shown = run_tshark(file, "-O", "nfqe", "-Y", "nfqe.identity == 300", "-o", f"nfqe.identities:{identities}")

    assert shown.rstrip().endswith(f"\n{example}")


@pytest.mark.parametrize("content", [None, "", "[{]}", '[{"identity": 300, "labels": "x"}]', '{"identity":' * 1000])
def test_a_file_that_is_no_list_of_identities_names_none(content: str | None, file: Path) -> None:
    identities = file.with_name("identities.json")
    if content is not None:
        identities.write_text(content)
    write_packets(file, [stamped(4)])

    (found,) = read_fields(file, FIELDS, "-o", f"nfqe.identities:{identities}")

    assert (found["nfqe.identity"], found["nfqe.labels"]) == (["300"], [])


@both_families
def test_the_stamp_of_a_packet_that_an_icmp_error_quotes_is_shown(family: int, file: Path) -> None:
    kind = {4: (3, 1), 6: (1, 3)}[family]
    write_packets(file, [packets.icmp(*ENDS[family], *kind, bytes(4) + stamped(family))])

    assert [found["nfqe.identity"] for found in read_fields(file, FIELDS)] == [["300"]]


@both_families
def test_a_capture_may_cut_a_packet_anywhere(family: int, file: Path) -> None:
    whole = stamped(family, 300, 7, TAG)

    write_packets(file, [whole[:cut] for cut in range(1, len(whole) + 1)], len(whole))

    shown = [found["nfqe.identity"] for found in read_fields(file, FIELDS)]

    assert shown == sorted(shown)  # without it up to some length, with it from there on
    assert {tuple(identities) for identities in shown} == {(), ("300",)}


def expected(packet: bytes) -> object:
    """Return the stamp of a packet as a node reads it, the reason to refuse it, or the reason not to read any."""
    try:
        parsed = parse(packet)
        return stamp.read(packet, parsed)
    except PacketError as error:
        return error.reason


def _options_of(family: int, random_of: random.Random) -> bytes:
    """Return a list of options of some length, most of them stamps or nearly so."""
    kind, uncounted = (158, 0) if family == 4 else (0x1E, 2)
    single = b"\x01" if family == 4 else b"\x00"
    choices: list[Callable[[], bytes]] = [
        lambda: bytes((kind, 8 - uncounted, 0x10, 0)) + random_of.choice((2, 3, 255, 256, 300, 1 << 24)).to_bytes(4),
        lambda: bytes((kind, 16 - uncounted, 0x11, 9)) + (300).to_bytes(4) + random_of.randbytes(8),
        lambda: bytes((kind, random_of.randrange(0, 20), random_of.randrange(256))) + random_of.randbytes(5),
        lambda: bytes((kind, random_of.randrange(2, 6), 0x10)) + random_of.randbytes(random_of.randrange(4)),
        lambda: bytes((148, 4, 0, 0)),
        lambda: single,
        lambda: single * 3,
        lambda: random_of.randbytes(random_of.randrange(8)),
    ]
    return b"".join(random_of.choice(choices)() for _ in range(random_of.randrange(1, 4)))


def _with_options(family: int, random_of: random.Random) -> bytes:
    options, body = _options_of(family, random_of), plain(family)[20 if family == 4 else 40 :]
    if family == 4:
        options = options[:40]
        return packets.ip(*ENDS[4], 6, body, options=options + bytes(-len(options) % 4))
    options = options[:200]
    options += bytes(-(2 + len(options)) % 8)
    return packets.ip(*ENDS[6], 6, body, options=bytes(((2 + len(options)) // 8 - 1,)) + options)


@both_families
def test_it_agrees_with_a_node_on_any_options(family: int, file: Path) -> None:
    random_of = random.Random(family)
    sent = [_with_options(family, random_of) for _ in range(3000)]
    write_packets(file, sent)

    seen = set()
    for packet, found in zip(sent, read_fields(file, ("nfqe", *FIELDS, *EXPERTS)), strict=True):
        refused = {EXPERTS[expert] for expert in EXPERTS if found[expert]}
        match expected(packet):
            case None:
                assert not found["nfqe"], packet.hex()
            case Stamp(identity, key_id, tag):
                fields = [found[f"nfqe.{name}"] for name in ("identity", "key_id", "tag")]
                assert fields == [[str(identity)], [str(key_id)], [tag.hex()] if tag else []], packet.hex()
                assert not refused, packet.hex()
            case reason:
                seen.add(reason)
                assert reason in refused or reason is DropReason.INVALID_PACKET, packet.hex()
    assert seen == {*REASONS, DropReason.INVALID_PACKET}


@both_families
def test_no_bytes_make_an_error_of_lua(family: int, file: Path) -> None:
    """Stamps with damage anywhere, random options, and packets of random bytes of every length."""
    random_of = random.Random(family)
    sent = [bytes((family << 4 | random_of.randrange(16),)) + random_of.randbytes(length) for length in range(200)]
    for _ in range(1500):
        damaged = bytearray(random_of.choice((_with_options(family, random_of), stamped(family, 300, 7, TAG))))
        for _ in range(random_of.randrange(1, 6)):
            damaged[random_of.randrange(len(damaged))] = random_of.randrange(256)
        sent.append(bytes(damaged[: random_of.randrange(1, len(damaged) + 1)]))
    write_packets(file, sent)

    assert run_tshark(file, "-V").count("\nFrame ") >= len(sent) - 1
