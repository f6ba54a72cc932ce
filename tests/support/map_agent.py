"""Agent for tests of the service map: the agent's own API server and flow log, with flows that a test makes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from nfq_enforcer.agent.api import ApiServer, Params
from nfq_enforcer.errors import NfqError
from nfq_enforcer.observe.flow import render_lost
from nfq_enforcer.observe.log import FlowLog

Json = dict[str, Any]
_Result = TypeVar("_Result")


def end(namespace: str, name: str, *labels: str, identity: int = 300) -> Json:
    """Return one end of a flow: an endpoint."""
    return {"identity": identity, "labels": list(labels), "namespace": namespace, "pod_name": name}


def flow(source: Json, destination: Json, *, port: int = 80, verdict: str = "FORWARDED", **fields: Any) -> Json:
    """Return a flow of now in Hubble's form."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "verdict": verdict,
        **({"drop_reason_desc": "POLICY_DENIED"} if verdict == "DROPPED" else {}),
        "IP": {"source": "192.0.2.1", "destination": "192.0.2.2", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": port, "flags": {"SYN": True}}},
        "source": source,
        "destination": destination,
        "Type": "L3_L4",
        "node_name": "n1",
        "traffic_direction": "INGRESS",
        "is_reply": False,
        "Summary": "TCP Flags: SYN",
        **fields,
    }


class MapAgent:
    """Map agent: the methods of an agent that the service map calls, over a real socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: FlowLog[Json] = FlowLog()
        self.policy: Json = {}
        self.asked: list[str] = []  # names of endpoints
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, flows: Iterable[Json]) -> None:
        """Add flows to the log, as workers do."""

        def add() -> None:
            for one in flows:
                self.log.add(one)

        self._in_loop(add)

    async def observe(self, params: Params) -> AsyncIterator[Json]:
        """Yield the kept flows, then new ones, with the filter by verdict."""
        verdict = params.get("verdict")
        with self.log.follow() as follower:
            for one in self.log.last():
                if verdict in (None, one["verdict"]):
                    yield one
            while True:
                one = await follower.next()
                if lost := follower.take_lost():
                    yield render_lost(lost)
                if verdict in (None, one["verdict"]):
                    yield one

    async def endpoint_policy(self, params: Params) -> Json:
        """Return the policy that the test has set."""
        self.asked.append(params["name"])
        if not self.policy:
            raise NfqError(f"no endpoint has the name '{params['name']}'")
        return self.policy

    @contextmanager
    def running(self) -> Iterator["MapAgent"]:
        """Serve in a thread until the context ends; a later context serves again, with the same log."""
        started, stop = threading.Event(), asyncio.Event()

        async def serve() -> None:
            server = ApiServer(
                self.path, {"observe": self.observe, "endpoint_policy": self.endpoint_policy}, group=""
            )
            await server.start()
            self._loop = asyncio.get_running_loop()
            started.set()
            await stop.wait()
            await server.stop()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            self._in_loop(stop.set)
            thread.join()

    def _in_loop(self, function: Callable[[], _Result]) -> None:
        assert self._loop is not None
        done = threading.Event()

        def call() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10)
