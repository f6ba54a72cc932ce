"""Slot keeper: slots are made for the connections that want them, and follow the policy in force."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nfq_enforcer.agent import slot_keeper
from nfq_enforcer.agent.slot_keeper import SlotKeeper
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.tables.ipcache import Ipcache
from nfq_enforcer.core.tables.l7 import HttpMatch, ProxyProtocols
from nfq_enforcer.core.tables.policymap import L7Rule, PolicyEntry, PolicyKey, PolicyMap, RuleRef
from nfq_enforcer.core.tables.slots import SlotChange, SlotKey
from nfq_enforcer.core.tables.snapshot import LocalEndpoint, Snapshot
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.core.wire.packet import TCP
from nfq_enforcer.errors import NfqError
from nfq_enforcer.proxy.proxy import Opening
from nfq_enforcer.proxy.rule_set import RuleSet

WEB, CLIENT = Identity(300), Identity(500)
KEY = SlotKey("", "default/web", CLIENT, WEB, (CLIENT,), (WEB,), 80)
OTHER = KEY._replace(port=81)
REF = RuleRef("CiliumNetworkPolicy", "default", "web", Direction.INGRESS, 0)
GET, POST = (L7Rule(REF, HttpMatch(method=method)) for method in ("GET", "POST"))


class Parts:
    """Parts that a keeper works with, which record its steps: workers, proxy, snapshot."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.running = True
        self.fails: dict[str, Exception] = {}
        self.rules: dict[int, RuleSet] = {}
        self.slots: tuple[int, ...] = ()
        self.used: dict[int, int] = {}
        self.next_used: list[dict[int, int]] = []  # in place of ``used``
        self.silent: set[int] = set()  # slots for which the proxy never listens
        self.listening_at_once = 1000
        self.allow(GET)

    def allow(self, *rules: L7Rule) -> None:
        entries = {PolicyKey(CLIENT, TCP, port, 16): PolicyEntry(l7=rules) for port in (80, 81)}
        policy = PolicyMap(entries, enforced=True, enforced_by=(REF,))
        web = LocalEndpoint("default/web", WEB, "veth", policy, policy)
        self.snapshot = Snapshot(1, {b"\n\x01\x00\n": web}, Ipcache({}, []))

    async def change_slots(self, changes: Iterable[SlotChange]) -> None:
        self._step("workers", *changes)

    async def start(self) -> None:
        self._step("start")

    def open(self, openings: Mapping[int, Opening]) -> None:
        assert {opening.protocols for opening in openings.values()} == {ProxyProtocols.HTTP}
        self._step("open", *openings)
        self.rules |= {slot: opening.rules for slot, opening in openings.items()}

    async def listening(self, slots: Collection[int]) -> list[int]:
        self._step("listening", *slots)
        found = [slot for slot in slots if slot not in self.silent]
        if not found:
            raise TimeoutError
        return found[: self.listening_at_once]

    def prepare_slots(self) -> None:
        self._step("prepare")

    async def close(self, slots: Collection[int]) -> None:
        self._step("close", *slots)

    def set_rules(self, rules: Mapping[int, RuleSet]) -> None:
        self.rules |= rules

    async def applied(self, slots: Collection[int]) -> None:
        self._step("applied", *slots)

    async def connections(self) -> Mapping[int, int]:
        self._step("connections")
        return self.next_used.pop(0) if self.next_used else self.used

    async def stop(self) -> None:
        self._step("stop")

    async def detach(self) -> None:
        self._step("detach")

    def _step(self, *step: Any) -> None:
        self.steps.append(step)
        if error := self.fails.get(step[0]):
            raise error


def run(tmp_path: Path, work: Callable[[SlotKeeper, Parts], Awaitable[None]]) -> Parts:
    """Run a function with a keeper, and return its parts."""
    parts = Parts()

    async def main() -> None:
        keeper = SlotKeeper(parts, parts, lambda: parts.snapshot, tmp_path / "keys.json")  # type: ignore[arg-type]
        await work(keeper, parts)
        await keeper.stop()

    asyncio.run(main())
    return parts


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_proxy_starts_with_the_first_policy_that_needs_it(tmp_path: Path) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        parts.running = False
        parts.allow()
        await keeper.update()
        await settle()
        assert (parts.steps, await keeper.status()) == ([], None)
        parts.allow(GET)
        for _ in range(2):
            await keeper.update()
            await settle()

    assert run(tmp_path, work).steps == [("start",), ("stop",)]


def test_an_agent_starts_the_proxy_that_its_first_policy_needs(tmp_path: Path) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        parts.running = False
        await keeper.begin()
        await settle()

    assert run(tmp_path, work).steps == [("start",), ("stop",)]


def test_a_proxy_that_cannot_start_is_said_with_the_policy_that_needs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        parts.running, parts.fails["start"] = False, NfqError("Envoy is not installed")
        for _ in range(2):
            await keeper.update()
            await settle()
        assert keeper.error == "Envoy is not installed"
        parts.fails.clear()
        await keeper.update()
        parts.running = True
        await settle()
        assert keeper.error is None

    assert run(tmp_path, work).steps == [("start",)] * 3 + [("stop",)]
    assert len([record for record in caplog.records if "Envoy is not installed" in record.message]) == 1


def test_a_slot_is_of_use_once_the_proxy_listens_and_all_workers_know_it(tmp_path: Path) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        keeper.want(KEY)
        keeper.want(KEY)
        await settle()
        assert (keeper.key(1), keeper.rules(KEY), len(keeper)) == (KEY, ((GET,),), 1)
        assert list(keeper) == [(KEY, 1)]

    parts = run(tmp_path, work)
    assert parts.steps == [
        ("start",),
        ("workers", SlotChange(KEY, 1, False)),
        ("open", 1),
        ("listening", 1),
        ("workers", SlotChange(KEY, 1, True)),
        ("prepare",),
        ("stop",),
    ]
    assert parts.rules == {1: RuleSet(((GET,),))}


def test_a_change_of_policy_reaches_the_slots_that_it_concerns(tmp_path: Path) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        keeper.want(KEY)
        await settle()
        await keeper.update()
        parts.allow(GET, POST)
        await keeper.update()
        parts.snapshot = Snapshot(2, {}, Ipcache({}, []))
        await keeper.update()

    parts = run(tmp_path, work)
    assert [step for step in parts.steps if step[0] == "applied"] == [("applied",), ("applied", 1), ("applied", 1)]
    assert parts.rules == {1: RuleSet(((),))}


def test_rules_that_the_proxy_has_not_taken_are_waited_for_again(tmp_path: Path) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        keeper.want(KEY)
        await settle()
        parts.allow(POST)
        parts.fails["applied"] = TimeoutError()
        for _ in range(2):
            with pytest.raises(NfqError, match="has not put the rules of 1 slots in force"):
                await keeper.update()
        parts.running = False
        await keeper.update()

    run(tmp_path, work)


def test_slots_that_are_wanted_together_are_opened_together(tmp_path: Path) -> None:
    keys = [KEY._replace(port=port) for port in range(1, 151)]

    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        parts.listening_at_once = 60
        for key in keys:
            keeper.want(key)
        await settle()
        assert dict(keeper) == {key: slot for slot, key in enumerate(keys, 1)}

    parts = run(tmp_path, work)
    assert [(step[0], len(step) - 1) for step in parts.steps] == [
        *(("start", 0), ("workers", 100), ("open", 100)),
        *(("listening", 100), ("workers", 60), ("listening", 40), ("workers", 40)),
        *(("workers", 50), ("open", 50), ("listening", 50), ("workers", 50)),
        *(("prepare", 0), ("stop", 0)),
    ]


def test_a_slot_for_which_the_proxy_does_not_listen_leaves_the_others_open(tmp_path: Path) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        parts.silent = {2}
        for key in (KEY, OTHER):
            keeper.want(key)
        await settle()
        assert (dict(keeper), keeper.error) == ({KEY: 1}, "the proxy does not respond")
        keeper.want(OTHER)
        await settle()
        assert (dict(keeper), keeper.error) == ({KEY: 1, OTHER: 3}, None)

    parts = run(tmp_path, work)
    assert ("close", 2) in parts.steps
    assert [slot for _, slot in json.loads((tmp_path / "keys.json").read_text())] == [1, 3]


def test_a_slot_that_the_proxy_does_not_close_is_closed_at_the_next_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slot_keeper, "_PAUSE", 0.0)

    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        keeper._free = [1]
        parts.silent, parts.fails["close"] = {1}, TimeoutError()
        keeper.want(KEY)
        await settle()
        assert len(keeper) == 0
        parts.silent.clear()
        parts.fails.clear()
        keeper.want(KEY)
        await settle()
        keeper.want(KEY)
        await settle()
        assert dict(keeper) == {KEY: 1}

    assert [step for step in run(tmp_path, work).steps if step[0] == "close"][:2] == [("close", 1)] * 2
    assert "1 slots of the proxy are not free: it does not respond" in caplog.text


def test_a_slot_that_gets_a_connection_while_it_is_freed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_keeper, "_PAUSE", 0.0)

    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        keeper._free = [1]
        keeper.want(KEY)
        await settle()
        parts.next_used = [{}, {1: 1}]
        keeper.want(OTHER)
        await settle()
        assert dict(keeper) == {KEY: 1}

    steps = run(tmp_path, work).steps
    assert steps[steps.index(("connections",)) :] == [
        ("connections",),
        ("workers", SlotChange(KEY, 1, False)),
        ("connections",),
        ("workers", SlotChange(KEY, 1, True)),
        ("workers",),
        ("close",),
        ("stop",),
    ]


@pytest.mark.parametrize("step", ["start", "open", "workers"])
def test_a_slot_that_cannot_be_made_is_tried_again_and_logged_once(
    tmp_path: Path, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        parts.fails[step] = NfqError("Envoy is not installed")
        for _ in range(3):
            keeper.want(KEY)
            await settle()
        assert keeper.error == "Envoy is not installed"
        parts.fails.clear()
        keeper.want(KEY)
        await settle()
        assert [keeper.error, len(keeper)] == [None, 1]

    run(tmp_path, work)
    assert [record.message for record in caplog.records if "no slot" in record.message] == [
        "connections with HTTP rules or server names are dropped, because the proxy has no slot for them: "
        "Envoy is not installed"
    ]


def test_slots_without_connections_are_freed_when_all_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_keeper, "MAX_SLOTS", 2)
    monkeypatch.setattr(slot_keeper, "_PAUSE", 0.0)

    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        keeper.want(KEY)
        keeper.want(OTHER)
        await settle()
        parts.used = {1: 3}
        third = KEY._replace(port=82)
        parts.fails["connections"] = NfqError("Envoy does not respond")
        keeper.want(third)
        assert keeper.refused == 1
        await settle()
        assert keeper.error == "all 2 slots are in use, and Envoy does not respond"
        parts.fails.clear()
        keeper.want(third)
        await settle()
        keeper.want(third)
        await settle()
        assert dict(keeper) == {KEY: 1, third: 2}

    parts = run(tmp_path, work)
    assert ("close", 2) in parts.steps


def test_the_slots_of_an_earlier_agent_are_taken_over(tmp_path: Path) -> None:
    async def first(keeper: SlotKeeper, parts: Parts) -> None:
        keeper.want(KEY)
        keeper.want(OTHER)
        await settle()
        await keeper.stop(leave=True)
        assert parts.steps[-1] == ("detach",)

    run(tmp_path, first)

    async def second(keeper: SlotKeeper, parts: Parts) -> None:
        parts.slots = (2, 3)
        await keeper.begin()
        await settle()
        assert dict(keeper) == {OTHER: 2}
        keeper.want(KEY)
        await settle()
        assert dict(keeper) == {OTHER: 2, KEY: 1}

    assert ("close", 3) in run(tmp_path, second).steps


def test_slots_that_cannot_be_taken_over_are_made_anew(tmp_path: Path) -> None:
    async def first(keeper: SlotKeeper, parts: Parts) -> None:
        keeper.want(KEY)
        await settle()

    run(tmp_path, first)

    async def second(keeper: SlotKeeper, parts: Parts) -> None:
        parts.fails["start"] = NfqError("Envoy is not installed")
        await keeper.begin()
        assert (len(keeper), keeper.error) == (0, "Envoy is not installed")
        parts.fails.clear()
        keeper.want(KEY)
        await settle()
        assert dict(keeper) == {KEY: 1}

    run(tmp_path, second)


@pytest.mark.parametrize("text", ["", "[[]]", "{}", "[[[1], 2]]", json.dumps([[["a"], 1]])])
def test_a_file_of_keys_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)

    async def work(keeper: SlotKeeper, parts: Parts) -> None:
        await keeper.begin()
        assert len(keeper) == 0
        assert await keeper.status() is None

    run(tmp_path, work)
