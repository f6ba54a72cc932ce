"""Messages between the agents of a cluster, by publish and subscribe on the store's server, which keeps none of them.

Each agent listens to one channel, ``PREFIX:mail:NODE``, on a connection of its own, so that large answers delay neither
heartbeats nor changes. A failure here, as of a user without the permissions, leaves the node's session as it is: the
reason is logged once, and other nodes learn that nobody listens.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from nfq_enforcer.store.redis.connection import FAILURES, Connection, StoreError, sentence
from nfq_enforcer.store.redis.reachability import Reachability
from nfq_enforcer.store.redis.timings import SessionTimings
from nfq_enforcer.tasks import Works

_log = logging.getLogger(__name__)
MAX_MESSAGE = 4 << 20  # bytes; a longer one is dropped by its receiver


class StoreMail:
    """StoreMail: the ``Mail`` of a node, while its session is joined."""

    def __init__(self, node: str, connection: Connection, reachability: Reachability, timings: SessionTimings) -> None:
        """Take this node's name and the parts of its session; nothing is connected yet."""
        self._node = node
        self._connection = connection
        self._reachability = reachability
        self._timings = timings
        self._receive: Callable[[bytes], None] = _ignore
        self._client: Redis | None = None
        self._sending = Works()
        self._failure: str | None = None  # the reason for which nothing can be sent or received

    def receive_by(self, receive: Callable[[bytes], None]) -> None:
        """Set the function that receives the messages to this node."""
        self._receive = receive

    async def send(self, node: str, message: bytes) -> bool:
        """Send a message; return whether an agent received it; raise StoreError if the store cannot be reached."""
        client = self._client
        if client is None:
            raise StoreError(self._failure or self._unreachable())
        try:
            # to its end, also if the caller is cancelled: redis-py closes a connection that waits for an answer
            return await self._sending.run(self._publish(client, node, message))
        except FAILURES as error:
            if self._client is client:
                self._client = None  # ``_listen`` connects again
            raise StoreError(f"the store did not take the request: {sentence(error)}") from error

    async def _publish(self, client: Redis, node: str, message: bytes) -> bool:
        return bool(await client.publish(self._channel(node), message))

    def _unreachable(self) -> str:
        return self._reachability.unreachable if self._reachability.error else "the store is being connected"

    def _channel(self, node: str) -> str:
        return f"{self._connection.address.prefix}:mail:{node}"

    async def run(self) -> None:
        """Listen while the session is joined, again after each failure; never return."""
        while True:
            await self._reachability.joined.wait()
            try:
                await self._listen()
            except StoreError as error:
                self._note(str(error))
            except FAILURES as error:
                self._note(sentence(error))
            except Exception:  # an internal error must not end the loop
                _log.exception("receiving messages of other nodes failed")
                self._note("an internal error; the log has it")
            await asyncio.sleep(self._timings.longest_pause if self._failure else self._timings.first_pause)

    def _note(self, reason: str) -> None:
        if not self._reachability.joined.is_set():  # the session reports a store that is away
            return
        if reason != self._failure:
            _log.warning("flows cannot be exchanged with other nodes by way of the store: %s", reason)
        self._failure = reason

    async def _listen(self) -> None:
        """Receive messages until the session has left the server that it is joined to now."""
        joined = self._reachability.commands
        async with self._subscribed() as (client, subscription):
            self._client, self._failure = client, None
            try:
                while joined is not None and self._reachability.commands is joined and self._client is client:
                    item = await subscription.get_message(timeout=self._timings.read_wait)
                    if item is not None and item["type"] == "message" and len(item["data"]) <= MAX_MESSAGE:
                        self._receive(item["data"])
            finally:
                self._client = None

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[tuple[Redis, Any]]:
        """Give a connected client for messages to others, and a subscription to those to this node."""
        host, port = await self._connection.locate()
        timeout = self._timings.command_timeout
        client, listener = (self._connection.client(host, port, timeout=timeout) for _ in range(2))
        subscription = listener.pubsub()
        try:
            await client.publish(self._channel(""), b"")  # a channel without readers: may this user publish?
            await subscription.subscribe(self._channel(self._node))
            if await subscription.get_message(timeout=timeout) is None:
                raise StoreError("it did not answer in time")
            yield client, subscription
        finally:
            for closing in (subscription, listener, client):
                with suppress(RedisError, OSError):
                    await closing.aclose()


def _ignore(_message: bytes) -> None:
    """Drop a message: nothing on this node expects one."""
