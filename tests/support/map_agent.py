"""Agent for tests of the service map: the agent's own API server, flow log and handler, with the flows of a test."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from nfq_enforcer.agent.api import ApiServer, Method, Params
from nfq_enforcer.agent.handlers.observe import ObserveHandlers
from nfq_enforcer.agent.handlers.parts import Parts
from nfq_enforcer.agent.peers.cluster_flows import ClusterFlows
from nfq_enforcer.cluster.names import End, Ends
from nfq_enforcer.core.events import FlowEvent
from nfq_enforcer.core.identity import Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.verdict import Direction, DropReason, FlowVerdict
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.flow import EventIds, Logged
from nfq_enforcer.observe.log import KEPT, FlowLog
from tests.support.flows import SYN, opening

_IDS = EventIds()
_PATIENT = 10.0  # s


def end(namespace: str, name: str, **labels: str) -> End:
    """Return the names of an endpoint."""
    return End(Labels.parse(labels), namespace, name)


def event(source: End, destination: End, *, port: int = 80, at: float | None = None, **changed: Any) -> Logged:
    """Return the event of an allowed TCP connection, by default of now; ``changed`` overrides its fields."""
    opened = opening(Identity(300), Identity(301), ports=(40_000, port), src="192.0.2.1", dst="192.0.2.2")
    made = FlowEvent(0.0, FlowVerdict.FORWARDED, None, Direction.INGRESS, opened, SYN, is_reply=False)
    wall_time = time.time() if at is None else at
    return Logged(made._replace(**changed), Ends(source, destination), wall_time, "n1", _IDS.next())


def dropped(source: End, destination: End, *, port: int = 80, at: float | None = None, **changed: Any) -> Logged:
    """Return the event of a refused connection."""
    fields = {"verdict": FlowVerdict.DROPPED, "reason": DropReason.POLICY_DENIED, **changed}
    return event(source, destination, port=port, at=at, **fields)


class MapAgent:
    """Map agent: the methods of an agent that the service map calls, over a real socket."""

    def __init__(self, path: Path, kept: int = KEPT) -> None:
        self.path = path
        self.log: FlowLog[Logged] = FlowLog(kept)
        self.policy: dict[str, Any] = {}
        self.asked: list[str] = []  # names of endpoints
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, *flows: Logged) -> None:
        """Add flows to the log, as the agent does."""

        def add() -> None:
            for flow in flows:
                self.log.add(flow)

        self._in_loop(add)

    async def endpoint_policy(self, params: Params) -> dict[str, Any]:
        """Return the policy that the test has set."""
        self.asked.append(params["name"])
        if not self.policy:
            raise NfqError(f"no endpoint has the name '{params['name']}'")
        return self.policy

    async def documents(self, _params: Params) -> dict[str, Any]:
        """Return the documents of an agent that has none."""
        return {
            **{"node": "n1", "revision": 1, "enforcement": "auto", "allow_localhost": "always", "cluster": "default"},
            **{"kube_apiserver": [], "identity_labels": [], "documents": []},
        }

    @contextmanager
    def running(self, *before: Logged) -> Iterator["MapAgent"]:
        """Serve in a thread until the context ends; a later context is an agent that was started anew."""
        self.log = FlowLog(self.log._kept)
        for flow in before:
            self.log.add(flow)
        started, stop = threading.Event(), asyncio.Event()
        thread = threading.Thread(target=asyncio.run, args=(self._serve(started, stop),))
        thread.start()
        assert started.wait(_PATIENT)
        try:
            yield self
        finally:
            self._in_loop(stop.set)
            thread.join()

    async def _serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        parts = cast(Parts, SimpleNamespace(log=self.log, settings=SimpleNamespace(name="n1")))
        methods: dict[str, Method] = {
            "observe": ObserveHandlers(parts, cast(ClusterFlows, None)).observe,
            "endpoint_policy": self.endpoint_policy,
        }
        server = ApiServer(self.path, methods, group="")
        await server.start()
        self._loop = asyncio.get_running_loop()
        started.set()
        await stop.wait()
        await server.stop()

    def _in_loop(self, function: Callable[[], object]) -> None:
        assert self._loop is not None
        done = threading.Event()

        def call() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(_PATIENT)


def restamped(flows: Iterable[Logged]) -> list[Logged]:
    """Return the flows as of now."""
    now = time.time()
    return [flow._replace(wall_time=now, uuid=_IDS.next()) for flow in flows]
