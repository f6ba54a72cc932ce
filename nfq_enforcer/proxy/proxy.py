"""Proxy: Envoy with its slots, for the agent.

The configuration that a new Envoy starts with is complete, so Envoy can be replaced at any time. The slots are saved,
so that the next agent finds the listeners of a running Envoy; their rules stay in force until it sets new ones.
"""

import asyncio
import hashlib
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nfq_enforcer.core.tables.l7 import EVERY_PROTOCOL, NO_PROTOCOL, ProxyProtocols
from nfq_enforcer.proxy import admin, envoy, listening, resources
from nfq_enforcer.proxy.access_log import LoggedHello, LoggedRequest, PipeReader, parse
from nfq_enforcer.proxy.envoy import EnvoyError
from nfq_enforcer.proxy.rule_set import NO_REQUEST, RuleSet
from nfq_enforcer.proxy.xds import Key, XdsServer
from nfq_enforcer.state_file import replace_text
from nfq_enforcer.tasks import cancel

_log = logging.getLogger(__name__)
_LISTENERS: Key = (resources.LISTENER, "")
_POLL = 0.01  # s between two looks at the listening ports
_PATIENCE = 10.0  # s for Envoy to apply a change of rules
_LISTENING = 30.0  # s for Envoy to begin to listen on one more port: it makes new listeners before all other work
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}  # by IP version
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # s between the end of Envoy and the next start
_STABLE = 30.0  # s of running after which the first pause applies again
_FILES = 65_536
_AGENT_AWAY = b"REST update for "  # Envoy's line at each attempt to reach an agent that is away
_FEWEST_SPARE, _MOST_SPARE = 4, 16  # listeners in advance
_END = 5.0  # s for Envoy to end


class ProxyStatus(NamedTuple):
    """Status of the proxy."""

    version: str  # empty while Envoy does not respond
    pid: int | None
    slots: int
    restarts: int
    rejected: int  # updates of configuration that Envoy has refused
    memory: int  # bytes that Envoy has allocated
    connections: int  # of clients


class Opening(NamedTuple):
    """Opening of a slot: its first rules, and the protocols that it reads."""

    rules: RuleSet
    protocols: ProxyProtocols = ProxyProtocols.HTTP


class Proxy:
    """Proxy: runs Envoy, opens and closes slots, and changes their rules."""

    def __init__(
        self,
        directory: Path,
        first_port: int,
        uid: int,
        mark: Callable[[int], int],
        on_access: Callable[[LoggedRequest | LoggedHello], None],
        on_state: Callable[[bool], None] = lambda _: None,
        versions: tuple[int, ...] = (4, 6),
    ) -> None:
        """Set the directory of its files, the port of slot 0, Envoy's user, and the mark of each slot's packets.

        ``on_access`` receives each record of the access log, ``on_state`` each change of ``running``. ``versions``: the
        IP versions of this host.
        """
        self.restarts = 0
        self._directory = directory
        self._first_port = first_port
        self._uid = uid
        self._mark = mark
        self._on_access = on_access
        self._on_state = on_state
        self._versions = versions
        self._xds = XdsServer(self._refuse)
        self._listeners: dict[int, str] = {}  # of open slots
        self._protocols: dict[int, ProxyProtocols] = {}  # that they read
        self._spare: dict[int, str] = {}  # of others, for which Envoy has no rules yet and so does not listen
        self._rules: dict[int, RuleSet] = {}
        self._pipes: list[PipeReader] = []
        self._envoy: envoy.Running | None = None
        self._is_found = False  # the running Envoy was started by an earlier agent
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Return whether Envoy runs and listens on the port of each slot."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """Return Envoy's process id; None while it does not run."""
        return self._envoy.pid if self._envoy else None

    @property
    def slots(self) -> tuple[int, ...]:
        """Return the open slots, also those of an Envoy that was found running."""
        return tuple(self._listeners)

    def port(self, slot: int) -> int:
        """Return the port of a slot's listener."""
        return self._first_port + slot

    async def start(self) -> None:
        """Start Envoy, or find the one of an earlier agent; raise EnvoyError if that is not possible here."""
        self._listening_ports((0,))
        bootstrap = json.dumps(resources.bootstrap(Path(envoy.ADMIN), Path(envoy.XDS)))
        command = envoy.command(envoy.binary(), self._uid, bootstrap)
        try:
            await self._prepare(command)
        except OSError as error:
            await self.detach()
            raise EnvoyError(f"Envoy cannot run with its files in {self._directory}: {error.strerror}") from None
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._ready.wait()

    async def _prepare(self, command: list[str]) -> None:
        envoy.prepare(self._directory, self._uid)
        fingerprint = self._fingerprint(command)
        self._envoy = envoy.find(self._directory, fingerprint)
        self._is_found = self._envoy is not None
        if self._is_found:
            self._restore_slots()
        self._set_listeners()
        _raise_limit_of_files()
        await self._xds.listen(self._directory / envoy.XDS, self._uid)
        for name, on_line in ((envoy.ACCESS, self._record), (envoy.LOG, _log_line)):
            self._pipes.append(PipeReader(self._directory / name, on_line))
        self._task = asyncio.create_task(self._keep(command, fingerprint))

    async def stop(self) -> None:
        """End Envoy, and with it all of its connections."""
        await self.detach()
        if self._envoy is not None:
            await _end(self._envoy)
            self._envoy = None
        for name in (envoy.PID, envoy.SLOTS):
            (self._directory / name).unlink(missing_ok=True)

    async def detach(self) -> None:
        """Leave Envoy running, with its slots and rules, for the next agent."""
        await cancel(self._task)
        await self._xds.stop()
        while self._pipes:
            self._pipes.pop().close()

    def set_rules(self, rules: Mapping[int, RuleSet]) -> None:
        """Set the rules of open slots; Envoy gets those that have changed. A slot that is not open yet has none."""
        for slot, rule_set in rules.items():
            if slot in self._protocols and self._rules.get(slot) != rule_set:
                self._rules[slot] = rule_set
                self._send_rules(slot, rule_set)
                for rule in resources.unusable(rule_set):
                    _log.error(
                        "%s allows no request in slot %d: Envoy cannot evaluate it (docs/http.md)", rule.ref, slot
                    )

    async def applied(self, slots: Iterable[int]) -> None:
        """Return when Envoy has the rules of these slots; raise TimeoutError if it does not take them."""
        async with asyncio.timeout(_PATIENCE):
            for slot in slots:
                for key in self._keys(slot):
                    await self._xds.wait_accepted(key)

    def open(self, openings: Mapping[int, Opening]) -> None:
        """Have Envoy open slots, unless they are open already: all of them by one change of its listeners."""
        for slot, opening in openings.items():
            self._protocols.setdefault(slot, opening.protocols)
        self.set_rules({slot: opening.rules for slot, opening in openings.items()})
        added = [slot for slot in openings if slot not in self._listeners]
        for slot in added:
            self._spare.pop(slot, None)
            self._listeners[slot] = self._listener(slot, self._protocols[slot])
        if added:
            self._set_listeners()
            self._save_slots()

    async def listening(self, slots: Collection[int]) -> list[int]:
        """Return those of the slots on whose ports Envoy listens, as soon as it does on one; raise TimeoutError."""
        async with asyncio.timeout(_LISTENING):
            while not (found := self._listening(slots)):
                await asyncio.sleep(_POLL)
        return found

    def prepare_slots(self) -> None:
        """Give Envoy the next slots' listeners in advance: each change of listeners costs it a look at all of them."""
        if not self._ready.is_set() or len(self._spare) >= _FEWEST_SPARE:
            return
        first = max((*self._listeners, *self._spare), default=0) + 1
        added = range(first, first + _MOST_SPARE - len(self._spare))
        self._spare |= {slot: self._listener(slot, ProxyProtocols.HTTP) for slot in added}
        self._set_listeners()

    async def close(self, slots: Collection[int]) -> None:
        """Deny all requests and names of the slots' connections, then remove the slots' listeners.

        Raise TimeoutError if Envoy does not do so; until then the slots must not be opened for other ends.
        """
        known = [slot for slot in slots if slot in self._listeners]
        if not known:
            return
        self.set_rules(dict.fromkeys(known, NO_REQUEST))
        if self._envoy is not None:
            await self.applied(known)
        keys = [key for slot in known for key in self._keys(slot)]
        for slot in known:
            del self._listeners[slot], self._rules[slot], self._protocols[slot]
        self._set_listeners()
        self._save_slots()
        for key in keys:
            self._xds.remove(key)
        async with asyncio.timeout(_PATIENCE):
            await self._xds.wait_accepted(_LISTENERS)

    async def status(self) -> ProxyStatus:
        """Return the status, with figures that Envoy has been asked for."""
        path = self._directory / envoy.ADMIN
        info = await admin.get(path, "/server_info")
        pattern = r"(update_rejected|downstream_cx_active|server\.memory_allocated)$"
        found = admin.counters(await admin.get(path, f"/stats?format=json&filter={pattern}"))
        return ProxyStatus(
            version=info["version"].split("/")[1] if info else "",
            pid=self.pid,
            slots=len(self._listeners),
            restarts=self.restarts,
            rejected=sum(value for name, value in found.items() if name.endswith("update_rejected")),
            memory=found.get("server.memory_allocated", 0),
            connections=sum(found.get(f"{each}.downstream_cx_active", 0) for each in ("http.http", "tcp.tls")),
        )

    async def connections(self) -> dict[int, int]:
        """Return the number of clients' connections of each slot; raise EnvoyError if Envoy does not respond."""
        names = "downstream_cx_active", "downstream_pre_cx_active"  # the latter: no complete ClientHello yet
        page = await admin.get(self._directory / envoy.ADMIN, "/stats?format=json&filter=downstream_(pre_)?cx_active$")
        if page is None:
            raise EnvoyError("Envoy does not respond")
        found = admin.counters(page)
        return {
            slot: sum(found.get(f"listener.127.0.0.1_{self.port(slot)}.{name}", 0) for name in names)
            for slot in self._listeners
        }

    def _fingerprint(self, command: list[str]) -> str:
        """Return a text that differs for two agents whose Envoys have different configurations."""
        program = envoy.binary().stat()
        listeners = [self._listener(slot, EVERY_PROTOCOL) for slot in (0, 1)]
        parts = (*command, str(program.st_size), str(program.st_mtime_ns), *listeners)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _listener(self, slot: int, protocols: ProxyProtocols) -> str:
        made = resources.listener(slot, self.port(slot), self._mark(slot), protocols, self._versions)
        return json.dumps(made)

    def _set_listeners(self) -> None:
        """Give Envoy the listeners; a new Envoy only those with rules, since it would wait for the rules of all."""
        has_all = self._is_found or self._ready.is_set()
        slots = {slot: text for slot, text in self._listeners.items() if has_all or slot in self._rules} | self._spare
        self._xds.set(_LISTENERS, tuple(slots[slot] for slot in sorted(slots)))

    def _restore_slots(self) -> None:
        with suppress(OSError, ValueError, TypeError):
            saved = json.loads((self._directory / envoy.SLOTS).read_text())
            self._protocols = {int(slot): ProxyProtocols(protocols) for slot, protocols in saved.items()}
            self._listeners = {slot: self._listener(slot, each) for slot, each in self._protocols.items()}

    def _save_slots(self) -> None:
        save(self._directory / envoy.SLOTS, {slot: self._protocols[slot] for slot in self._listeners})

    def _refuse(self, key: Key) -> None:
        """Deny all requests of a slot whose rules Envoy has refused: else the old rules would stay in force."""
        slot = next((slot for slot in self._listeners if key in self._keys(slot)), None)
        if slot is None:
            _log.error("Envoy refuses the listeners; its log has the reason")
            return
        _log.error("Envoy refuses the rules of slot %d, which denies all requests now; its log has the reason", slot)
        self._send_rules(slot, NO_REQUEST)

    def _send_rules(self, slot: int, rule_set: RuleSet) -> None:
        for kind, made in resources.rule_resources(slot, rule_set, self._protocols[slot]).items():
            self._xds.set((kind, resources.name(slot)), (json.dumps(made),))

    def _keys(self, slot: int) -> list[Key]:
        """Return the keys of the resources that have the rules of a slot."""
        protocols = self._protocols.get(slot, NO_PROTOCOL)
        return [(kind, resources.name(slot)) for kind in resources.rule_types(protocols)]

    async def _keep(self, command: list[str], fingerprint: str) -> None:
        """Start Envoy whenever it does not run."""
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while True:
            begun = loop.time()
            try:
                self._envoy = self._envoy or envoy.start(self._directory, command, fingerprint)
                await self._watch(self._envoy.pid)
            except EnvoyError as error:
                _log.error("%s", error)
            self._envoy = None
            self.restarts += 1
            pause = _FIRST_PAUSE if loop.time() - begun > _STABLE else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _watch(self, pid: int) -> None:
        """Return when Envoy has ended."""
        ready = asyncio.create_task(self._become_ready())
        try:
            await _wait_end(pid)
        finally:
            await cancel(ready)
        _log.warning("Envoy has ended; its connections have, too")
        was_ready = self._ready.is_set()
        self._ready.clear()
        self._is_found = False
        self._spare.clear()
        self._xds.forget_client()
        self._set_listeners()
        if was_ready:
            self._on_state(False)

    async def _become_ready(self) -> None:
        await self._xds.wait_accepted(_LISTENERS)
        while len(self._listening(self._rules)) < len(self._rules):
            await asyncio.sleep(_POLL)
        self._ready.set()
        self._set_listeners()
        self._on_state(True)

    def _listening(self, slots: Collection[int]) -> list[int]:
        """Return those of the slots on whose ports Envoy listens, in each IP version."""
        if not slots:
            return []
        found = self._listening_ports(slots)
        return [slot for slot in slots if self.port(slot) in found]

    def _listening_ports(self, slots: Collection[int]) -> frozenset[int]:
        families = [_FAMILIES[version] for version in self._versions]
        return listening.ports(self.port(min(slots)), self.port(max(slots)), families)

    def _record(self, line: bytes) -> None:
        record = parse(line)
        if record is not None:
            self._on_access(record)


def save(path: Path, value: object) -> None:
    """Save a value as JSON for the next agent; without it that agent makes slots anew, so an error is only logged."""
    try:
        replace_text(path, json.dumps(value))
    except OSError as error:
        _log.error("slots of the proxy are not saved for the next agent: %s: %s", path, error.strerror)


def _raise_limit_of_files() -> None:
    """Allow for as many files as the system lets this process have: Envoy has a connection open for each slot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, _FILES):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _FILES), hard))


def _log_line(line: bytes) -> None:
    if line.strip() and _AGENT_AWAY not in line:
        _log.warning("Envoy: %s", line.decode("utf-8", "replace").strip())


async def _end(running: envoy.Running) -> None:
    """End Envoy; return when it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not envoy.is_alive(running):
            break
        os.kill(running.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END):
                await _wait_end(running.pid)


async def _wait_end(pid: int) -> None:
    """Return when a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    envoy.reap(pid)
