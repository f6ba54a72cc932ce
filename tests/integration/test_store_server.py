"""Real servers in their deployments: each address form connects, and each failure is one clear sentence."""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from nfq_enforcer.store.address import HostPort, parse
from nfq_enforcer.store.redis.commands import Commands
from nfq_enforcer.store.redis.connection import (
    FAILURES,
    PERMISSIONS,
    SENTINEL_PERMISSIONS,
    Connection,
    ServerInfo,
    StoreError,
    check,
    sentence,
)
from tests.support.redis_servers import (
    LOOPBACK,
    Certificates,
    RedisServer,
    Sentinel,
    free_port,
    valkey_server,
    wait_until,
)
from tests.support.store_steps import take_every_step

SECRET = "geheim-s3cret"
WRONG = "wr0ng-geheim"
TIMEOUT = 30.0
BRIEF = 0.2  # for a server that never answers
FULL_ACL = f"full on >{SECRET} ~nfqe:* {PERMISSIONS}"
ACL = f"nfq on >{SECRET} ~nfqe:* +ping +info +select +client|setname +xread +hget"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[RedisServer]:
    """Give a server with a dedicated user beside the default one."""
    with RedisServer(folder / "plain", acl=[ACL]) as server:
        yield server


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[RedisServer]:
    """Give a server that requires a password."""
    with RedisServer(folder / "locked", password=SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return Certificates.make(folder / "certificates")


@pytest.fixture(scope="module")
def guarded(folder: Path, certificates: Certificates) -> Iterator[RedisServer]:
    """Give a server with TLS only, which requires a client certificate."""
    with RedisServer(folder / "guarded", tls=certificates) as server:
        yield server


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert after every test that the log contains no password."""
    caplog.set_level(logging.DEBUG)
    yield
    formatter = logging.Formatter()
    for record in (*caplog.get_records("setup"), *caplog.get_records("call"), *caplog.get_records("teardown")):
        assert SECRET not in formatter.format(record)
        assert WRONG not in formatter.format(record)


@asynccontextmanager
async def connected(url: str, timeout: float = TIMEOUT) -> AsyncIterator[Redis]:
    server = Connection(parse(url))
    async with aclosing(server.client(*await server.locate(), timeout=timeout)) as client:
        yield client


async def info(url: str, timeout: float = TIMEOUT) -> ServerInfo:
    async with connected(url, timeout) as client:
        return await check(client)


async def refusal(url: str, timeout: float = TIMEOUT) -> str:
    """Return the error sentence for a server that cannot be used; assert that no form of the error has a password."""
    with pytest.raises(StoreError) as caught:
        await info(url, timeout)
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in f"{error} {error!r}"
        assert WRONG not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return str(caught.value)


@asynccontextmanager
async def stranger(*answers: bytes) -> AsyncIterator[str]:
    """Give the address of a server that is no Redis: it gives these answers, and then none."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = iter(answers)
        while await reader.read(4096):
            writer.write(next(left, b""))
        writer.close()

    async with await asyncio.start_server(meet, LOOPBACK, 0) as server:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"


class TestReached:
    async def test_a_plain_server_says_what_it_is(self, plain: RedisServer) -> None:
        seen = await info(plain.url())

        assert seen.product == "Redis"
        assert f"redis_version:{seen.version}" in plain.ask("INFO")
        assert f"run_id:{seen.run_id}" in plain.ask("INFO")

    async def test_by_its_name(self, plain: RedisServer) -> None:
        assert (await info(f"redis://localhost:{plain.port}")).product == "Redis"

    async def test_over_ipv6(self, folder: Path) -> None:
        with RedisServer(folder / "ipv6", host="::1") as server:
            assert f"[::1]:{server.port}" in server.url()
            assert (await info(server.url())).product == "Redis"

    async def test_the_database_is_the_one_of_the_address(self, plain: RedisServer) -> None:
        async with connected(plain.url(path="/3")) as client:
            await client.set("nfqe:where", "3")

        assert plain.ask("-n", "3", "GET", "nfqe:where") == "3\n"
        assert plain.ask("GET", "nfqe:where") == "\n"

    async def test_the_connection_bears_our_name(self, plain: RedisServer) -> None:
        async with connected(plain.url()) as client:
            await client.ping()

            assert "name=nfq-enforcer " in plain.ask("CLIENT", "LIST")

    @pytest.mark.parametrize("way", ["address", "file"])
    async def test_a_user_with_a_password(self, plain: RedisServer, tmp_path: Path, way: str) -> None:
        file = tmp_path / "password"
        file.write_text(f"{SECRET}\n")
        urls = {
            "address": plain.url(login=f"nfq:{SECRET}"),
            "file": plain.url(login="nfq", path=f"?password_file={file}"),
        }

        async with connected(urls[way]) as client:
            assert await client.execute_command("HGET", "nfqe:h", "f") is None  # type: ignore[no-untyped-call]

    async def test_a_user_with_the_permissions_of_the_documentation(self, folder: Path) -> None:
        with RedisServer(folder / "permissions", acl=[FULL_ACL]) as server:
            url = server.url(login=f"full:{SECRET}", path="/1")
            async with connected(url) as client, connected(url) as reader:
                await check(client)
                await take_every_step(Commands(client, reader, "nfqe"))
                with pytest.raises(redis_errors.NoPermissionError):
                    await client.hget("other:h", "f")

    async def test_the_password_of_the_default_user(self, locked: RedisServer) -> None:
        assert (await info(locked.url(login=f":{SECRET}"))).product == "Redis"

    async def test_a_password_file_is_read_for_each_connection(self, locked: RedisServer, tmp_path: Path) -> None:
        file = tmp_path / "password"
        url = locked.url(path=f"?password_file={file}")

        file.write_text(WRONG)
        assert await refusal(url) == "the user or the password is wrong, or the user is disabled"
        file.write_text(SECRET)
        assert (await info(url)).product == "Redis"

    async def test_tls_with_certificates_of_both_sides(self, guarded: RedisServer, certificates: Certificates) -> None:
        options = tls_options(certificates)

        assert (await info(guarded.url(path=options))).product == "Redis"
        assert (await info(f"rediss://localhost:{guarded.port}{options}")).product == "Redis"

    async def test_valkey(self, folder: Path) -> None:
        with RedisServer(folder / "valkey", binary=valkey_server(), password=SECRET, acl=[FULL_ACL]) as server:
            seen = await info(server.url(login=f":{SECRET}"))
            assert await info(server.url(login=f"full:{SECRET}")) == seen

        assert seen.product == "Valkey"
        assert int(seen.version.split(".")[0]) >= 8


class TestRefused:
    async def test_a_wrong_password(self, plain: RedisServer, locked: RedisServer) -> None:
        told = "the user or the password is wrong, or the user is disabled"

        assert await refusal(plain.url(login=f"nfq:{WRONG}")) == told
        assert await refusal(plain.url(login=f"nobody:{SECRET}")) == told
        assert await refusal(locked.url(login=f":{WRONG}")) == told

    async def test_no_password_where_one_is_asked_for(self, locked: RedisServer) -> None:
        assert await refusal(locked.url()) == "it asks for a password, and none is given"

    async def test_a_password_where_there_is_none(self, plain: RedisServer) -> None:
        told = "it has no password for the default user, but one is given"

        assert await refusal(plain.url(login=f":{SECRET}")) == told

    async def test_a_server_that_does_not_know_the_command_that_bears_the_password(self, folder: Path) -> None:
        with RedisServer(folder / "renamed", settings=['rename-command AUTH ""']) as server:
            told = await refusal(server.url(login=f"nfq:{SECRET}"))

        assert told.startswith("it refused a command: ")
        assert "AUTH" in told

    @pytest.mark.parametrize(("command", "named"), [("HSET nfqe:h f v", "'hset'"), ("HGET other f", "keys")])
    async def test_what_the_user_may_not_do_is_named(self, plain: RedisServer, command: str, named: str) -> None:
        async with connected(plain.url(login=f"nfq:{SECRET}")) as client:
            with pytest.raises(redis_errors.NoPermissionError) as caught:
                await client.execute_command(*command.split())  # type: ignore[no-untyped-call]

        assert sentence(caught.value).startswith("the user may not do all that is needed: ")
        assert named in sentence(caught.value)

    async def test_a_password_file_that_is_not_there(self, plain: RedisServer) -> None:
        told = f"the store's password_file /no/such cannot be read: {os.strerror(errno.ENOENT)}"

        assert await refusal(plain.url(path="?password_file=/no/such")) == told

    async def test_a_certificate_of_another_authority(self, guarded: RedisServer, folder: Path) -> None:
        other = Certificates.make(folder / "other")

        assert (await refusal(guarded.url(path=f"?ca_file={other.ca}"))).startswith("its certificate is refused: ")

    async def test_a_certificate_for_another_name(self, folder: Path, certificates: Certificates) -> None:
        with RedisServer(folder / "elsewhere", host="127.0.0.2", tls=certificates) as server:
            told = await refusal(server.url(path=f"?ca_file={certificates.ca}"))

        assert told.startswith("its certificate is refused: ")

    async def test_no_certificate_where_one_is_asked_for(
        self, guarded: RedisServer, certificates: Certificates
    ) -> None:
        told = await refusal(guarded.url(path=f"?ca_file={certificates.ca}"))

        assert told.endswith(": see cert_file")

    async def test_a_certificate_file_that_is_not_there(self, guarded: RedisServer) -> None:
        told = f"the store's ca_file /no/such cannot be read: {os.strerror(errno.ENOENT)}"

        assert await refusal(guarded.url(path="?ca_file=/no/such")) == told

    async def test_a_file_that_is_no_certificate(self, guarded: RedisServer, tmp_path: Path) -> None:
        (tmp_path / "ca").write_text("this is none")

        assert (await refusal(guarded.url(path=f"?ca_file={tmp_path / 'ca'}"))).startswith("TLS with it failed: ")

    async def test_tls_where_redis_speaks_none(self, plain: RedisServer, certificates: Certificates) -> None:
        url = f"rediss://{LOOPBACK}:{plain.port}?ca_file={certificates.ca}"

        assert await refusal(url, BRIEF) == "it did not answer in time"  # Redis waits for the end of a line

    async def test_a_database_that_is_not_there(self, plain: RedisServer) -> None:
        assert (await refusal(plain.url(path="/999"))).startswith("it refused a command: ")

    async def test_cluster_mode(self, folder: Path) -> None:
        with RedisServer(folder / "cluster", settings=["cluster-enabled yes", "cluster-port 0"]) as server:
            assert (await refusal(server.url())).startswith("it runs in cluster mode, which is not supported: ")

    async def test_a_replica(self, plain: RedisServer, folder: Path) -> None:
        with RedisServer(folder / "replica", replica_of=plain) as server:
            told = await refusal(server.url())
            async with connected(server.url()) as client:
                with pytest.raises(redis_errors.ReadOnlyError) as caught:
                    await client.set("nfqe:x", "1")

        assert told == f"it is a replica, which takes no writes; its primary is {LOOPBACK}:{plain.port}"
        assert sentence(caught.value) == "it is a replica, which takes no writes"

    async def test_nothing_listening(self) -> None:
        told = f"it cannot be reached: {os.strerror(errno.ECONNREFUSED)}"

        assert await refusal(f"redis://{LOOPBACK}:{free_port()}") == told

    async def test_a_name_that_is_not_known(self) -> None:
        assert (await refusal("redis://no-such-host.invalid")).startswith("its name is not known: ")

    @pytest.mark.parametrize(
        ("answers", "told"),
        [
            ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "it does not answer as a Redis server does"),
            ([b"$x\r\n"], "it does not answer as a Redis server does"),
            ([b"+OK POP3 ready\r\n"], "the user or the password is wrong, or the user is disabled"),
            ([b"+OK\r\n", b"+yes\r\n"], "it does not answer as a Redis server does"),
            ([b"+OK\r\n", b"+OK\r\n", b"+OK\r\n"], "it does not answer as a Redis server does"),
            ([b"+OK\r\n", b"+OK\r\n", b":1\r\n"], "it does not answer as a Redis server does"),
        ],
    )
    async def test_a_server_that_is_no_redis(self, answers: list[bytes], told: str) -> None:
        async with stranger(*answers) as place:
            assert await refusal(f"redis://:{SECRET}@{place}") == told

    async def test_a_server_that_never_answers(self) -> None:
        async with stranger() as place:
            assert await refusal(f"redis://:{SECRET}@{place}", BRIEF) == "it did not answer in time"

    async def test_a_server_that_speaks_no_tls(self) -> None:
        async with stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n") as place:
            assert await refusal(f"rediss://:{SECRET}@{place}") == "it does not speak TLS on this port"

    async def test_a_lost_connection_is_not_made_again_unseen(self, folder: Path) -> None:
        with RedisServer(folder / "restarted") as server:
            async with connected(server.url()) as client:
                assert await client.ping()
                server.kill()
                server.restart()

                for _ in range(3):
                    with pytest.raises(FAILURES) as caught:
                        await client.ping()
                    assert sentence(caught.value) == "it closed the connection"
            assert (await info(server.url())).product == "Redis"


class TestResolve:
    async def test_a_server_is_resolved_to_all_its_addresses(self) -> None:
        found = await Connection(parse("redis://localhost:7000")).resolve()

        assert (ip_address("127.0.0.1"), 7000) in found
        assert {port for _, port in found} == {7000}

    async def test_what_has_no_address_is_left_out(self) -> None:
        server = Connection(parse(f"redis+sentinel://no-such-host.invalid,[::1]:{free_port()}/main"))

        assert {str(address) for address, _ in await server.resolve()} == {"::1"}


Deployment = tuple[RedisServer, RedisServer, list[Sentinel]]


class TestSentinels:
    @pytest.fixture
    def deployment(self, folder: Path) -> Iterator[Deployment]:
        """Give a primary, its replica and three Sentinels that have discovered each other."""
        with ExitStack() as stack:
            primary = stack.enter_context(RedisServer(folder / "primary", password=SECRET))
            replica = stack.enter_context(RedisServer(folder / "second", password=SECRET, replica_of=primary))
            sentinels = [
                stack.enter_context(Sentinel(folder / f"sentinel{number}", primary, password=SECRET))
                for number in range(3)
            ]
            wait_until(lambda: all(map(knows_all, sentinels)), "the Sentinels know of each other and of the replica")
            yield primary, replica, sentinels

    async def test_the_primary_is_found_before_and_after_a_failover(
        self, deployment: Deployment, tmp_path: Path
    ) -> None:
        primary, replica, sentinels = deployment
        server = Connection(parse(sentinel_url(sentinels, tmp_path)))

        assert await server.locate() == (LOOPBACK, primary.port)
        ports = {primary.port, *(sentinel.port for sentinel in sentinels)}
        assert await server.resolve() == {(ip_address(LOOPBACK), port) for port in ports}

        primary.kill()
        wait_until(lambda: all(names(sentinel, replica) for sentinel in sentinels), "the replica is the primary")

        assert await server.locate() == (LOOPBACK, replica.port)
        assert (await info(sentinel_url(sentinels, tmp_path))).product == "Redis"

        sentinels[0].kill()
        sentinels[1].kill()
        assert await server.locate() == (LOOPBACK, replica.port)

    async def test_tls_to_sentinels_and_to_what_they_name(
        self, guarded: RedisServer, certificates: Certificates, folder: Path
    ) -> None:
        with Sentinel(folder / "guard", guarded, tls=certificates) as sentinel:
            url = f"rediss+sentinel://{LOOPBACK}:{sentinel.port}/main{tls_options(certificates)}"

            assert await Connection(parse(url)).locate() == (LOOPBACK, guarded.port)
            assert (await info(url)).product == "Redis"

    async def test_a_service_that_they_do_not_watch(self, folder: Path, plain: RedisServer, tmp_path: Path) -> None:
        with Sentinel(folder / "lonely", plain, acl=[f"sam on >{SECRET} {SENTINEL_PERMISSIONS}"]) as sentinel:
            nobody = HostPort(LOOPBACK, free_port())

            told = await refusal(f"redis+sentinel://{nobody},{LOOPBACK}:{sentinel.port}/other")

            as_redis = await refusal(f"redis://{LOOPBACK}:{sentinel.port}")
            (tmp_path / "password").write_text(SECRET)
            options = f"?sentinel_user=sam&sentinel_password_file={tmp_path / 'password'}"
            found = await Connection(parse(f"redis+sentinel://{LOOPBACK}:{sentinel.port}/main{options}")).locate()

        assert told == (
            "no Sentinel names a primary of 'other': "
            f"{nobody}: it cannot be reached: {os.strerror(errno.ECONNREFUSED)}; "
            f"{LOOPBACK}:{sentinel.port}: it watches nothing called 'other'"
        )
        assert as_redis == "it is a Sentinel; as one it is named redis+sentinel://host/service"
        assert found == (LOOPBACK, plain.port)


def tls_options(certificates: Certificates) -> str:
    certificate, key = certificates.of("client")
    return f"?ca_file={certificates.ca}&cert_file={certificate}&key_file={key}"


def sentinel_url(sentinels: list[Sentinel], folder: Path) -> str:
    file = folder / "sentinel-password"
    file.write_text(f"{SECRET}\n")
    servers = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in sentinels)
    return f"redis+sentinel://:{SECRET}@{servers}/main?sentinel_password_file={file}"


def knows_all(sentinel: Sentinel) -> bool:
    state = sentinel.ask("SENTINEL", "MASTER", "main").split()
    seen = dict(zip(state[::2], state[1::2], strict=False))
    return (seen.get("num-slaves"), seen.get("num-other-sentinels")) == ("1", "2")


def names(sentinel: Sentinel, server: RedisServer) -> bool:
    return sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main").split() == [server.host, str(server.port)]
