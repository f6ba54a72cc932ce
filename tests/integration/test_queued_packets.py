"""Packets that wait in a queue while rules are removed and repaired: none of them is lost.

The worker is stopped, so datagrams of two flows and of new flows wait in its queues. A repair that replaced a base
chain would make the kernel drop all of them (nf_queue_nf_hook_drop, net/netfilter/nf_queue.c). A removal that removes
base chains has this effect itself (docs/decisions/0011-rules-guard.md, Limits); by its repair nothing is lost either.
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.labs import FAMILIES, FRONT_TO_BACK, MODES, PATIENT, start_all, until
from tests.support.namespaces import within
from tests.support.removals import FLUSHED_RULESET, LOSING, REMOVALS, Removal, remove_foreign

PORT = 5353
HELD = 0.5  # s; a worker without a heartbeat for a second is replaced, which loses what waits for it
OBSERVATIONS = 4
WAITING = 12  # packets
PAUSE = 0.002  # s, between two rounds of datagrams
SO_RCVBUFFORCE, BUFFER = 33, 8 << 20


@pytest.fixture(scope="module", params=MODES)
def guarded(request: pytest.FixtureRequest, make_served: MakeLab) -> Lab:
    lab = make_served(memory=True)
    start_all(lab, FRONT_TO_BACK, datapath=request.param, queues=1)
    return lab


def receiver() -> socket.socket:
    """Return a socket for the datagrams of both families."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    made.bind(("::", PORT))
    made.settimeout(PATIENT)
    return made


class Stream:
    """Stream: numbered datagrams from front1 to back1, in an answered flow, an unanswered one and new flows."""

    def __init__(self, lab: Lab, sockets: ExitStack) -> None:
        """Open both flows in each family."""
        self._lab = lab
        self._targets = {4: f"::ffff:{lab.address('back1', 4)}", 6: str(lab.address("back1", 6))}
        self._receiver = sockets.enter_context(within(lab, "back1", receiver))
        self._flows = {
            (kind, family): sockets.enter_context(self._sender(family))
            for kind in ("answered", "unanswered")
            for family in FAMILIES
        }
        self.sent: set[bytes] = set()
        self.received: set[bytes] = set()
        self._ended = False
        for family in FAMILIES:
            sender = self._flows["answered", family]
            sender.send(b"question")
            self._receiver.sendto(b"answer", self._receiver.recvfrom(100)[1])
            assert sender.recv(100) == b"answer"

    def _sender(self, family: int) -> socket.socket:
        made = within(self._lab, "front1", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        made.settimeout(PATIENT)
        made.connect((self._targets[family], PORT))
        return made

    def _send_all(self) -> None:
        number = 0
        while not self._ended:
            number += 1
            for (kind, family), sender in self._flows.items():
                self._send(sender, f"{kind} IPv{family} {number}")
            for family in FAMILIES:
                with self._sender(family) as sender:
                    self._send(sender, f"new IPv{family} {number}")
            time.sleep(PAUSE)

    def _send(self, sender: socket.socket, text: str) -> None:
        sender.send(text.encode())
        self.sent.add(text.encode())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send until the context ends."""
        thread = threading.Thread(target=self._send_all)
        thread.start()
        try:
            yield
        finally:
            self._ended = True
            thread.join()

    async def lost(self, excused: set[bytes]) -> list[str]:
        """Return the datagrams that do not arrive, without those that are excused."""
        self._receiver.settimeout(0)

        def complete() -> bool:
            try:
                while True:
                    self.received.add(self._receiver.recv(100))
            except BlockingIOError:
                return self.sent <= self.received | excused

        with suppress(TimeoutError):
            await until(complete)
        return sorted(map(bytes.decode, self.sent - self.received - excused))


class Worker:
    """The worker of n1, with its queues."""

    def __init__(self, lab: Lab, sockets: ExitStack) -> None:
        self.node: LabNode = lab.nodes["n1"]
        self.pid = self.node.status()["worker"]["pid"]
        path = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
        self._queues: TextIO = sockets.enter_context(within(lab, "n1", path.open))

    def waiting(self) -> int:
        """Return the number of packets that wait in its queues (seq_show, net/netfilter/nfnetlink_queue.c)."""
        self._queues.seek(0)
        return sum(int(line.split()[2]) for line in self._queues)

    async def hold(self) -> None:
        """Stop the worker, and return when packets wait."""
        os.kill(self.pid, signal.SIGSTOP)
        await until(lambda: self.waiting() >= WAITING)

    async def release(self) -> None:
        """Let the worker return verdicts on all that wait."""
        os.kill(self.pid, signal.SIGCONT)
        await until(lambda: self.waiting() == 0)


@pytest.mark.parametrize("removal", [FLUSHED_RULESET, *REMOVALS], ids=lambda removal: removal.name)
async def test_a_repair_loses_no_packet_that_waits_in_a_queue(guarded: Lab, removal: Removal) -> None:
    """On a busy machine the worker may be held for too long, and be replaced with what waits for it: observe anew."""
    lost: list[str] | None = None
    for _ in range(OBSERVATIONS):
        lost = await lost_by(guarded, removal)
        remove_foreign(guarded, "n1")
        if lost is not None:
            break

    assert lost == []


async def lost_by(lab: Lab, removal: Removal) -> list[str] | None:
    """Return the datagrams that are lost while a removal is repaired; None if the worker was replaced meanwhile."""
    with ExitStack() as sockets:
        await until(lambda: not lab.nodes["n1"].status()["workers"][0]["stuck"])
        worker, stream = Worker(lab, sockets), Stream(lab, sockets)
        repairs, before = worker.node.status()["rules"]["repairs"], set[bytes]()
        argv = lab.network.command("n1", ["sh", "-c", removal.command])

        def repaired() -> bool:
            rules = worker.node.status()["rules"]
            return bool(rules["repairs"] > repairs and rules["intact"])

        with stream.running():
            try:
                await worker.hold()
                held = time.monotonic()
                process = await asyncio.create_subprocess_exec(*argv)
                assert await process.wait() == 0
                before = set(stream.sent)
                while not repaired():
                    if time.monotonic() > held + HELD:
                        await worker.release()
                        await worker.hold()
                        held = time.monotonic()
                    await asyncio.sleep(0.01)
            except ProcessLookupError:
                await until(repaired)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGCONT)
        if worker.node.status()["worker"]["pid"] != worker.pid:
            return None
        return await stream.lost(before if removal.name in LOSING else set())
