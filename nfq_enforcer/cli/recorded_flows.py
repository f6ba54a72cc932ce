"""Recorded flows for ``policy suggest`` and ``policy impact``: of files, of the agent's log, or as they come."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from nfq_enforcer import input_file
from nfq_enforcer.agent import client
from nfq_enforcer.cli import output
from nfq_enforcer.cli.filter_options import Filters
from nfq_enforcer.core.identity import travels
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.errors import BadInput, NfqError
from nfq_enforcer.observe import saved
from nfq_enforcer.observe.flow import Logged
from nfq_enforcer.observe.query import Query, parameters
from nfq_enforcer.observe.recording import Recording
from nfq_enforcer.observe.text import beside, is_flow
from nfq_enforcer.observe.times import parse_duration, parse_time
from nfq_enforcer.policy.ports import PROTOCOLS, TrafficSpec
from nfq_enforcer.policy.recorded import RecordedEnd, RecordedFlow
from nfq_enforcer.policy.simulation import ECHO_REQUEST

_WAITING = 10_000  # flows between the reader and the recording; the agent counts what it loses beyond
_ECHOES = {"ICMPv4": ECHO_REQUEST["IPv4"], "ICMPv6": ECHO_REQUEST["IPv6"]}

Item = Mapping[str, Any]


class Source(NamedTuple):
    """Source of recorded flows, as the options of a command describe it."""

    socket: Path
    filters: Filters
    files: list[str] | None = None
    duration: str | None = None  # to record flows as they come
    since: str | None = None
    until: str | None = None


def record(source: Source, *, dropped: bool = False) -> Recording:
    """Return the recording of the flows of a source; raise BadInput for options that exclude each other."""
    now = time.time()
    if source.duration is not None and (source.files or source.until):
        raise BadInput(f"--for and {'--input-file' if source.files else '--until'} exclude each other")
    written = {"since": source.since, "until": source.until}
    times: dict[str, Any] = {name: parse_time(text, now) for name, text in written.items() if text is not None}
    query = Query(*source.filters, **times)  # a mistake is found without an agent
    # The response of an HTTP request comes from the target of its connection, so such filters cannot run in the agent.
    by_side = any(name.startswith(("from-", "to-")) for given in source.filters for name in given)
    params = parameters(*(Filters({}, {}) if by_side else source.filters), **times)
    recording = Recording(dropped=dropped)
    try:
        for logged in _flows(source, params):
            # a flow counts as its opener's
            if query.admits(logged._replace(event=logged.event._replace(is_reply=False))):
                recording.add(logged)
    except KeyboardInterrupt:
        if source.duration is None:
            raise
    for reason, number in recording.left_out.items():
        output.note(f"{number} events left out: {reason}")
    return recording


def _flows(source: Source, params: dict[str, Any]) -> Iterator[Logged]:
    if source.files:
        for name in source.files:
            lines = input_file.lines(Path(name), input_file.FLOW_SIZE)
            yield from (flow.logged for flow in saved.select(lines, Query(), output.note))
    elif source.duration is None:
        yield from _parsed(client.stream(source.socket, "observe", client.TIMEOUT, **params))
    else:
        yield from _parsed(_coming(source.socket, params, parse_duration(source.duration)))


def _coming(socket: Path, params: dict[str, Any], duration: float) -> Iterator[Item]:
    """Yield flows as they come for so many seconds, or until the user interrupts."""
    if "since" not in params:
        params = {**params, "last": 0}
    items: queue.Queue[Item | NfqError] = queue.Queue(_WAITING)

    def read() -> None:
        try:
            for item in client.stream(socket, "observe", follow=True, **params):
                items.put(item)
            items.put(NfqError("the agent ended before the time was over"))
        except NfqError as error:
            items.put(error)

    # A read from the agent ends when a flow comes, maybe never: a thread waits for it, and ends with the program.
    threading.Thread(target=read, daemon=True).start()
    output.note(f"recording for {duration:g} s; Ctrl-C ends it earlier")
    deadline = time.monotonic() + duration
    try:
        while (rest := deadline - time.monotonic()) > 0:
            item = items.get(timeout=rest)
            if isinstance(item, NfqError):
                raise item
            yield item
    except queue.Empty:
        return


def _parsed(items: Iterable[Item]) -> Iterator[Logged]:
    """Yield the flows of an agent; what is none is noted."""
    for item in items:
        try:
            if is_flow(item):
                yield saved.parse(item)
            else:
                output.note(beside(item))
        except ValueError as error:
            output.note(f"a flow cannot be read: {type(error).__name__}: {error}")


def open_connections(socket: Path, owners: Mapping[str, tuple[str, str]]) -> dict[RecordedFlow, int]:
    """Return the open connections of the agent's node, with their number; ``owners``: endpoints by address."""
    ends: dict[str, Any] = {"from": "", "to": ""}
    answer = client.call(socket, "conntrack", **ends)
    if answer["searched"] < answer["total"]:
        output.note(f"searched {answer['searched']} of {answer['total']} open connections")
    labels = {
        one["identity"]: Labels(map(saved.parse_label, one["labels"])) for one in client.call(socket, "identities")
    }
    flows: dict[RecordedFlow, int] = {}
    for one in answer["flows"]:
        flow = _open(one, labels, owners)
        if flow is not None:
            flows[flow] = flows.get(flow, 0) + 1
    return flows


def _open(one: Item, labels: Mapping[int, Labels], owners: Mapping[str, tuple[str, str]]) -> RecordedFlow | None:
    protocol = one["protocol"]
    if protocol in PROTOCOLS:
        traffic = TrafficSpec(PROTOCOLS[protocol], one["destination"]["port"] or 0)
    elif protocol in _ECHOES:  # of ICMP, only queries are flows, and almost all of them are echo requests
        traffic = TrafficSpec(*_ECHOES[protocol])
    else:
        return None
    return RecordedFlow(_end(one["source"], labels, owners), _end(one["destination"], labels, owners), traffic)


def _end(end: Item, labels: Mapping[int, Labels], owners: Mapping[str, tuple[str, str]]) -> RecordedEnd:
    identity = end["identity"] or 0
    names = owners.get(end["address"], ("", "")) if travels(identity) else ("", "")
    return RecordedEnd(ip_address(end["address"]), labels.get(identity), *names)
