"""Messages between agents by way of a real store: delivered or reported, and none is kept."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_enforcer.errors import NfqError
from nfq_enforcer.store.redis.connection import PERMISSIONS
from tests.support.members import Node
from tests.support.redis_servers import RedisServer

SECRET = "s3cret"
PATIENCE = 20.0


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail if it does not for long."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def delivers(sender: Node, receiver: str) -> bool:
    """Return whether a message has a receiver; False while nothing can be sent."""
    try:
        return await sender.store.mail.send(receiver, b"ping")
    except NfqError:
        return False


async def await_delivery(sender: Node, receiver: str) -> None:
    """Return when a node receives messages; fail if it does not for long."""
    async with asyncio.timeout(PATIENCE):
        while not await delivers(sender, receiver):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("channels", ["&nfqe:*", "&*"])
def test_a_message_reaches_its_node_alone_and_is_not_kept(channels: str, tmp_path: Path) -> None:
    async def exchange(url: str, port: int) -> None:
        one, two = Node("n1", url, tmp_path), Node("n2", url, tmp_path)
        received: dict[str, list[bytes]] = {"n1": [], "n2": []}
        await one.start()
        await two.start()
        one.store.mail.receive_by(received["n1"].append)
        two.store.mail.receive_by(received["n2"].append)
        await await_delivery(one, "n2")
        await until(lambda: received["n2"])
        assert await one.store.mail.send("n2", b"hello")
        await until(lambda: b"hello" in received["n2"])
        await two.stop()
        assert not await one.store.mail.send("n2", b"nobody")
        await one.stop()
        assert received["n1"] == []

    acl = [f"nfqe on >{SECRET} ~nfqe:* resetchannels {channels} {PERMISSIONS}"]
    with RedisServer(tmp_path / "server", acl=acl) as server:
        asyncio.run(exchange(server.url(login=f"nfqe:{SECRET}"), server.port))


def test_a_user_without_channels_costs_the_messages_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(url: str) -> str:
        node = await Node("n1", url, tmp_path).start()
        await until(lambda: "by way of the store" in caplog.text)
        await node.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {a: b}}\n")
        with pytest.raises(NfqError) as caught:
            await node.store.mail.send("n2", b"hello")
        await node.stop()
        return str(caught.value)

    acl = [f"nfqe on >{SECRET} ~nfqe:* resetchannels {PERMISSIONS}"]
    with RedisServer(tmp_path / "server", acl=acl) as server:
        reason = asyncio.run(start(server.url(login=f"nfqe:{SECRET}")))

    assert reason.startswith("the user may not do all that is needed")
    assert "flows cannot be exchanged with other nodes by way of the store: the user may not" in caplog.text


def test_a_sender_that_is_cancelled_or_cut_off_costs_the_next_ones_nothing(tmp_path: Path) -> None:
    async def exchange(server: RedisServer) -> None:
        one, two = await Node("n1", server.url(), tmp_path).start(), await Node("n2", server.url(), tmp_path).start()
        await await_delivery(one, "n2")
        for turns in range(6):
            sending = asyncio.create_task(one.store.mail.send("n2", b"hello"))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            assert await one.store.mail.send("n2", b"hello")
        assert one.store.mail._client is not None
        await one.store.mail._client.connection.disconnect()  # type: ignore[union-attr]
        with pytest.raises(NfqError):
            await one.store.mail.send("n2", b"hello")
        await await_delivery(one, "n2")
        await one.stop()
        await two.stop()

    with RedisServer(tmp_path / "server") as server:
        asyncio.run(exchange(server))


def test_messages_come_again_after_a_restart_of_the_store(tmp_path: Path) -> None:
    async def exchange(server: RedisServer) -> None:
        one, two = await Node("n1", server.url(), tmp_path).start(), await Node("n2", server.url(), tmp_path).start()
        await await_delivery(one, "n2")
        await asyncio.to_thread(server.kill)
        await until(lambda: not one.connected)
        with pytest.raises(NfqError, match="the store"):
            await one.store.mail.send("n2", b"hello")
        await asyncio.to_thread(server.start)
        await await_delivery(one, "n2")
        await one.stop()
        await two.stop()

    with RedisServer(tmp_path / "server") as server:
        asyncio.run(exchange(server))
