"""tshark with the dissector of stamps: fields of the packets in a file."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import pytest

from nfq_enforcer.captures import pcapng

DISSECTOR = str(files("nfq_enforcer.captures").joinpath("nfq_enforcer.lua"))
_LUA_ERROR = "_ws.lua.error"
_AGGREGATOR = "|"  # between the values of a field that occurs several times in a packet


def run_tshark(file: Path, *arguments: str) -> str:
    """Return the output of tshark about a file; skip the test without tshark, fail it after an error of Lua."""
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("needs tshark: make test installs it")
    command = [program, "-n", "-r", str(file), "-X", f"lua_script:{DISSECTOR}", *arguments]
    environment = {"HOME": str(file.parent), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert "Lua" not in run.stdout + run.stderr
    return run.stdout


def read_fields(file: Path, fields: Sequence[str], *arguments: str) -> list[dict[str, list[str]]]:
    """Return the values of fields for each packet of a file."""
    options = ["-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", f"aggregator={_AGGREGATOR}"]
    columns = (*fields, _LUA_ERROR)
    lines = run_tshark(file, *options, *(word for field in columns for word in ("-e", field)), *arguments).splitlines()
    rows = [dict(zip(columns, map(_values, line.split("\t")), strict=True)) for line in lines]
    assert not any(row.pop(_LUA_ERROR) for row in rows)
    return rows


def _values(text: str) -> list[str]:
    return text.split(_AGGREGATOR) if text else []


def write_packets(file: Path, packets: Iterable[bytes], length: int = 0) -> None:
    """Write IP packets to a pcapng file; ``length``: bytes of each on the wire, if they are more than its own."""
    blocks = [pcapng.section("tests", "Linux"), pcapng.interface(pcapng.LINKTYPE_RAW, 65535, "any", "of a test")]
    for place, packet in enumerate(packets):
        blocks.append(pcapng.packet(pcapng.Packet(place, max(length, len(packet)), packet, "")))
    file.write_bytes(b"".join(blocks))
