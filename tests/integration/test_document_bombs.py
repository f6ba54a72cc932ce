"""Documents as bombs: each is answered, by a command and by a running agent, with bounded memory.

The length of a file is bounded, and the number of its values (``input_file``, ``MAX_VALUES`` of ``yaml_source``): a
value takes much more memory than its text. The last bomb is the worst for its length. The bounds below are at most
twice what was measured on 2026-11-27 with Python 3.11 (83, 254, 488 and 1,745 MiB of a command, 562 MiB of an agent).
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nfq_enforcer.lab.lab import Lab
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, FAMILIES, HTTP, HTTPS, PATIENT, PROGRAM, start, stop_agents, until

POLICY = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\nspec:\n  endpointSelector: {}\n"
OF_AN_AGENT = 768  # MiB
# A process counts as its own the memory of its parent at its start (exec_mmap, fs/exec.c), so a small one starts the
# command: it prints the exit status and the highest resident memory in KiB (getrusage(2)).
MEASURE = """
import resource, subprocess, sys

with open(sys.argv[1], "w") as output:
    status = subprocess.call(sys.argv[2:], stdout=output, stderr=output)
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
LONG = 120.0  # s, for the largest file on a machine with other work


def port_ranges() -> str:
    """Return 10,000 ranges of three ports in 250 rules; 443 is in one of them, 80 is in none."""
    starts = [[1 + rule * 160 + place * 4 for place in range(40)] for rule in range(250)]
    ports = [[f"{{port: '{first}', endPort: {first + 2}, protocol: TCP}}" for first in each] for each in starts]
    return f"{POLICY}  ingress:\n" + "".join(f"  - toPorts: [{{ports: [{', '.join(each)}]}}]\n" for each in ports)


def one_field() -> str:
    """Return a field of 50 MB in a policy without a rule."""
    return f"{POLICY}  description: {'x' * 50_000_000}\n"


def many_documents() -> str:
    """Return 100,000 Namespaces."""
    return "".join(
        f"---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{number}}}\n" for number in range(100_000)
    )


def many_values() -> str:
    """Return a list as long as a file of documents may be, with values of one byte."""
    return "[" + "a," * 60_000_000 + "]"


class Bomb(NamedTuple):
    """Bomb: the text of a file, its answer, and the memory of a command that reads it."""

    text: Callable[[], str]
    status: int
    answer: str
    memory: int  # MiB


BOMBS = {
    "port ranges": Bomb(port_ranges, 0, "valid: 1 policies", 166),
    "one field": Bomb(one_field, 2, "spec: a rule without effect; allowed: at least one entry in ingress", 508),
    "many documents": Bomb(many_documents, 0, "valid: 0 policies", 768),
    "many values": Bomb(many_values, 2, "too many values; a file has at most 3000000", 2560),
}
each_bomb = pytest.mark.parametrize("name", BOMBS)


@each_bomb
def test_a_command_answers_with_bounded_memory(tmp_path: Path, name: str) -> None:
    bomb, file, output = BOMBS[name], tmp_path / "bomb.yaml", tmp_path / "output"
    file.write_text(bomb.text())

    command = [sys.executable, "-I", "-S", "-c", MEASURE, str(output), *PROGRAM, "policy", "validate", str(file)]
    measured = subprocess.run(command, capture_output=True, text=True, check=True)
    status, memory = map(int, measured.stdout.split())

    assert (status, bomb.answer in output.read_text()) == (bomb.status, True)
    assert memory // 1024 < bomb.memory
    assert len(output.read_text()) < 1000


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Iterator[Lab]:
    lab = make_served(memory=True)
    start(lab, "n1")
    yield lab
    stop_agents(lab)


def highest_memory(pid: int) -> int:
    """Return the highest resident memory of a process so far, in MiB (proc(5))."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


@pytest.mark.parametrize("name", [name for name in BOMBS if name != "many values"])  # which costs a command 20 s
async def test_an_agent_loads_or_refuses_with_bounded_memory(lab: Lab, name: str) -> None:
    """The flows of its endpoints go on meanwhile, and the next file counts."""
    bomb, node, file = BOMBS[name], lab.nodes["n1"], lab.documents / "bomb.yaml"
    before = node.status()
    draft = file.with_suffix(".draft")
    draft.write_text(bomb.text())
    draft.replace(file)

    async def opens(port: int, patience: float) -> list[bool]:
        targets = [lab.address("back1", family) for family in FAMILIES]
        return [(await lab.host("front1").connect(target, port, patience)).ok for target in targets]

    def answered() -> bool:
        status = node.status()
        return bool(status["refused"] or status["revision"] > before["revision"])

    async with asyncio.timeout(LONG):
        while not answered():
            assert await opens(HTTPS, PATIENT) == [True] * 2
    refused = node.status()["refused"]
    assert (refused is not None and bomb.answer in refused["error"]) == (bomb.status != 0)
    assert await opens(HTTPS, PATIENT) == [True] * 2
    assert await opens(HTTP, BRIEF) == [name != "port ranges"] * 2
    assert highest_memory(node.pid) < OF_AN_AGENT
    assert all(highest_memory(worker["pid"]) < 128 for worker in node.status()["workers"])

    changed = node.status()["revision"]
    file.unlink()
    await until(lambda: node.status()["revision"] > changed or (refused and not node.status()["refused"]), LONG)
    assert await opens(HTTP, PATIENT) == [True] * 2
