"""Flows of other nodes by way of the store: requests and answers as messages, which the store does not keep.

A node sends at most ``_AHEAD`` batches before the reader asks for more. So a slow reader slows the answer down, and the
flow log counts the flows that it loses by that; the store never holds more than a few batches for one reader. A reader
that is gone receives nothing, which its server reports at the next message, and the answer ends.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from nfq_enforcer.agent.params import Params
from nfq_enforcer.agent.peers.protocol import FIRST, SILENCE, NodeRefused, Serve
from nfq_enforcer.cluster.source import Mail
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.status import NodeReport
from nfq_enforcer.tasks import Works, cancel
from nfq_enforcer.text import read_json, shorten

_log = logging.getLogger(__name__)

_AHEAD = 2  # batches
_PATIENCE = 60.0  # s for a reader to ask for more
_MAX_ANSWERS = 8  # at a time, to all nodes
NOTICE = (
    "the flows of other nodes come through the store: anyone with the store's credentials can read them, or make some "
    "up; see 'peers' in the configuration for connections between the agents"
)


class _Question:
    """_Question: a request of this node, and the messages that have come for it."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.messages: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(2 * _AHEAD + 2)

    def add(self, message: Mapping[str, Any]) -> None:
        with suppress(asyncio.QueueFull):  # the node has sent more than it may; what is missing ends with SILENCE
            self.messages.put_nowait(message)


class _Answer:
    """_Answer: an answer of this node that is being sent."""

    def __init__(self) -> None:
        self.room = asyncio.BoundedSemaphore(_AHEAD)
        self.task: asyncio.Task[None] | None = None


class StoreRelay:
    """StoreRelay: asks other nodes for their flows, and answers their requests, by messages."""

    def __init__(self, node: str, mail: Mail, serve: Serve, refusal: str | None = None) -> None:
        """Take this node's name, and the function that yields its flows; with ``refusal`` every request gets that."""
        self._node = node
        self._mail = mail
        self._serve = serve
        self._refusal = refusal
        self._questions: dict[str, _Question] = {}
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._leaving = Works()
        mail.receive_by(self.receive)

    @property
    def notice(self) -> str:
        """Return the sentence about the readers of the store."""
        return NOTICE

    async def stop(self) -> None:
        """End all answers, and report that to their readers."""
        answers = dict(self._answers)
        await cancel(*(answer.task for answer in answers.values()), *self._leaving.running)
        for sender, number in answers:
            with suppress(NfqError):
                await self._send(sender, "end", number)

    # -- requests of this node ----------------------------------------------------------------------------------------

    async def ask(self, node: NodeReport, params: Params) -> AsyncGenerator[Any, None]:
        """Yield the batches of a node; raise NfqError with the reason if it cannot be asked, or stops answering."""
        if node.live is False:
            raise NfqError(
                f"its agent does not run, or cannot reach the store: last heartbeat {node.last_seen or 'never'}"
            )
        number, question = secrets.token_hex(8), _Question(node.name)
        self._questions[number] = question
        try:
            if not await self._send(node.name, "ask", number, params=params):
                raise NfqError(f"its agent (version {node.version}) does not listen for requests at the store")
            patience = FIRST
            while (batch := await _next(question, patience)) is not None:
                yield batch
                patience = SILENCE
                await self._send(node.name, "more", number)
        finally:
            del self._questions[number]
            self._leaving.start(self._leave(node.name, number))

    async def _leave(self, node: str, number: str) -> None:
        with suppress(NfqError):
            await self._send(node, "stop", number)

    async def _send(self, node: str, kind: str, number: str, **content: Any) -> bool:
        message = {"kind": kind, "from": self._node, "id": number, **content}
        return await self._mail.send(node, json.dumps(message, separators=(",", ":")).encode())

    # -- messages to this node ----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle a message; one that is not valid is dropped."""
        try:
            message = read_json(data)
        except ValueError:
            return
        match message:
            case {"kind": "ask", "from": str(sender), "id": str(number), "params": dict(params)}:
                self._begin(sender, number, params)
            case {"kind": "more" | "stop" as kind, "from": str(sender), "id": str(number)}:
                self._continue((sender, number), stop=kind == "stop")
            case {"kind": "flows" | "end" | "error", "from": str(sender), "id": str(number)}:
                question = self._questions.get(number)
                if question is not None and question.node == sender:
                    question.add(message)

    def _continue(self, key: tuple[str, str], *, stop: bool) -> None:
        answer = self._answers.get(key)
        if answer is None or answer.task is None:
            return
        if stop:
            answer.task.cancel()
        else:
            with suppress(ValueError):  # a reader cannot ask for more than it was sent
                answer.room.release()

    def _begin(self, sender: str, number: str, params: Params) -> None:
        key = sender, number
        if key in self._answers:
            return
        if len(self._answers) >= 2 * _MAX_ANSWERS:  # a refusal takes its time, too
            return
        refusal = self._refusal
        if len(self._answers) >= _MAX_ANSWERS:
            refusal = f"it answers {_MAX_ANSWERS} requests already; try again later"
        self._answers[key] = answer = _Answer()
        answer.task = asyncio.create_task(self._answer(sender, number, params, answer, refusal))

    async def _answer(self, sender: str, number: str, params: Params, answer: _Answer, refusal: str | None) -> None:
        try:
            if refusal is not None:
                raise NodeRefused(refusal)
            await self._send_flows(sender, number, params, answer)
        except NfqError as error:
            with suppress(NfqError):
                await self._send(sender, "error", number, text=str(error))
        except Exception:  # the entry point of a task
            _log.exception("a request of node %s failed", shorten(sender))
            with suppress(NfqError):
                await self._send(sender, "error", number, text="the agent failed at this request; its log says why")
        finally:
            self._answers.pop((sender, number), None)

    async def _send_flows(self, sender: str, number: str, params: Params, answer: _Answer) -> None:
        async with aclosing(self._serve(params)) as batches:
            async for batch in batches:
                try:
                    async with asyncio.timeout(_PATIENCE):
                        await answer.room.acquire()
                except TimeoutError:
                    raise NfqError(f"its reader has not read for {_PATIENCE:.0f} seconds") from None
                if not await self._send(sender, "flows", number, flows=batch):
                    return  # the reader is gone
        await self._send(sender, "end", number)


async def _next(question: _Question, patience: float) -> Any:
    """Return the next batch, None at the end of the answer; raise NfqError for an error, or after the patience."""
    try:
        async with asyncio.timeout(patience):
            message = await question.messages.get()
    except TimeoutError:
        raise NfqError(f"its agent has not answered for {patience:.0f} seconds") from None
    if message["kind"] == "error":
        raise NodeRefused(shorten(str(message.get("text")), 300))
    return message.get("flows") if message["kind"] == "flows" else None
