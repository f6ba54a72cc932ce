"""Cost of HTTP rules: of the rules themselves, of whole agents, to endpoints without such rules, and in memory.

One interleaved run. In brackets the tables have the ratio of medians to a place's first contender, or for endpoints
without HTTP rules to the same agent without HTTP rules.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from rich.console import Console

from tests.bench import http_memory, http_nodes, http_rules
from tests.bench.figures import CONNECTIONS, CPU_CONNECTION, Figures, Measure
from tests.bench.goals import Result
from tests.bench.http_load import Client
from tests.bench.http_memory import Opened
from tests.bench.http_nodes import ANOTHER_NODE, OTHERS, SAME_NODE
from tests.bench.http_rules import COUNTS, NO_RULES, name
from tests.bench.interleaved import Run
from tests.bench.report import compared_rows, goal_columns, goal_rows, markdown_table
from tests.support.labs import MODES

REQUESTS = Measure("requests_per_second", "requests/s", 0, True)
CPU_REQUEST = Measure("cpu_us_per_request", "CPU a request, µs", 1, False)
MEASURES = (REQUESTS, CPU_REQUEST, CONNECTIONS, CPU_CONNECTION)
RULES = "the proxy without an agent"
PLAIN = "no agent, no rules"
MEMORY_COLUMNS = ("", "memory, MiB", "opened in, s", "CPU a slot, ms")

_SECONDS = 1.0
_FINE = 4  # times as many repetitions where the goals are differences of a few percent
_BOUNDS = {1: (1.05, 0.95), 10: (1.1, 0.9), 100: (1.15, 0.85)}  # of CPU and requests/s by the number of rules
_CONNECTIONS_BOUND, _OTHERS_BOUND = 0.8, 0.98


class Turn(NamedTuple):
    """Turn: a contender at a place."""

    contender: str
    place: str
    client: Client
    with_connections: bool

    def run(self, figures: Figures, seconds: float) -> None:
        """Measure the turn."""
        load = self.client.requests(seconds)
        figures.add(self.contender, self.place, REQUESTS, load.rate)
        figures.add(self.contender, self.place, CPU_REQUEST, load.cpu_us)
        if self.with_connections:
            load = self.client.connections(seconds)
            figures.add(self.contender, self.place, CONNECTIONS, load.rate)
            figures.add(self.contender, self.place, CPU_CONNECTION, load.cpu_us)


class Memory(NamedTuple):
    """Memory: the figures of Envoy, and of agents without a slot and with new pairs at once."""

    envoy: list[Opened]
    agents: list[tuple[Opened, Opened]]


def agent(mode: str) -> str:
    """Return the name of an agent with HTTP rules."""
    return f"agent, {mode}"


def without_rules(mode: str) -> str:
    """Return the name of an agent without HTTP rules."""
    return f"{agent(mode)}, no HTTP rules at all"


def measure(repetitions: int, seconds: float | None, console: Console) -> Run:
    """Carry out the run; ``seconds`` of each kind of traffic."""
    run = Run(Figures(), [])
    with ExitStack() as stack:
        turns = [Turn(one, RULES, client, False) for one, client in stack.enter_context(http_rules.clients()).items()]
        run.measure(turns, repetitions * _FINE, seconds or _SECONDS, console)
        plain = turns[0].client
        places = SAME_NODE, ANOTHER_NODE
        nodes = [Turn(PLAIN, place, plain, True) for place in places]
        for mode in MODES:
            console.print(f"  set up: {agent(mode)}")
            clients = stack.enter_context(http_nodes.clients(mode, with_rules=True))
            nodes += [Turn(agent(mode), place, clients[place], True) for place in places]
        run.measure(nodes, repetitions, seconds or _SECONDS, console)
    for mode in MODES:
        _measure_others(run, mode, repetitions * _FINE, seconds or _SECONDS, console)
    return run


def _measure_others(run: Run, mode: str, repetitions: int, seconds: float, console: Console) -> None:
    """Measure an endpoint without HTTP rules, while no agent runs but these two: the difference is of a few percent."""
    with ExitStack() as stack:
        turns = []
        for with_rules, contender in ((True, agent(mode)), (False, without_rules(mode))):
            console.print(f"  set up: {contender}")
            clients = stack.enter_context(http_nodes.clients(mode, with_rules))
            turns.append(Turn(contender, OTHERS, clients[OTHERS], True))
        run.measure(turns, repetitions, seconds, console)


def measure_memory() -> Memory:
    """Return the memory of Envoy and of an agent, with and without slots."""
    return Memory(http_memory.measure(), http_memory.measure_agents())


def _reference(place: str, contender: str) -> str:
    if place == OTHERS:
        return next(without_rules(mode) for mode in MODES if contender in {agent(mode), without_rules(mode)})
    return NO_RULES if place == RULES else PLAIN


def columns() -> list[str]:
    """Return the headings of a place's table."""
    return ["", *(measure.title for measure in MEASURES)]


def rows(figures: Figures, place: str) -> list[list[str]]:
    """Return the table of a place."""
    return compared_rows(figures, place, MEASURES, lambda contender, _measure: _reference(place, contender))


def results(figures: Figures) -> list[Result]:
    """Return the results of all goals."""
    return [*_of_rules(figures), *_of_agents(figures)]


def _of_rules(figures: Figures) -> Iterator[Result]:
    for measure, number in ((CPU_REQUEST, 0), (REQUESTS, 1)):
        for count in COUNTS:
            ratio = figures.ratio(RULES, measure, name(count), NO_RULES)
            text = f"{measure.title}, {name(count)} to none"
            yield Result(text, RULES, ratio, _BOUNDS[count][number], not measure.more_is_better)


def _of_agents(figures: Figures) -> Iterator[Result]:
    for mode in MODES:
        ratio = figures.ratio(SAME_NODE, CONNECTIONS, agent(mode), PLAIN)
        text = f"{CONNECTIONS.title}, {agent(mode)}, to {PLAIN}"
        yield Result(text, SAME_NODE, ratio, _CONNECTIONS_BOUND, at_most=False)
    for mode in MODES:
        for measure in (CONNECTIONS, REQUESTS):
            ratio = figures.ratio(OTHERS, measure, agent(mode), without_rules(mode))
            text = f"{measure.title}, {agent(mode)}, to no HTTP rules at all"
            yield Result(text, OTHERS, ratio, _OTHERS_BOUND, at_most=False)


def memory_rows(memory: Memory) -> list[list[str]]:
    """Return the table of memory."""
    without, _ = memory.agents[0]
    return [
        *(_memory_row(f"Envoy, {one.slots:,} slots", one) for one in memory.envoy),
        _memory_row("agent and worker, no slot", without),
        *(_memory_row(f"agent and worker, {one.slots:,} new pairs at once", one) for _, one in memory.agents),
    ]


def _memory_row(title: str, opened: Opened) -> list[str]:
    figures = [f"{opened.seconds:.1f}", f"{opened.cpu:.1f}"] if opened.slots else ["", ""]
    return [title, f"{opened.memory:.0f}", *figures]


_METHOD = f"""\
nginx answers each request with two bytes; wrk has one thread and 16 connections, which stay open (requests/s) or close
after one request (connections/s). The proxy without an agent, and an endpoint without HTTP rules, have {_FINE} times as
many repetitions; with the latter, no other agents run. CPU is that of Envoy alone without an agent, and of agents,
workers and Envoy of all nodes of the path with them (`/proc/PID/stat`). Without an agent, nobody reads Envoy's access
log. The last of several rules allows the requests. Memory is PSS. CPU a slot is that of Envoy in the first rows, and
that of the agent in the others, where each connection sends a request that has to be answered."""


def markdown(run: Run, memory: Memory, about: str) -> str:
    """Render the run as a Markdown document, which is generated only and not edited by hand."""
    parts = [
        "# Cost of HTTP rules",
        "Written by `make bench`; medians, in brackets the ratio to the first line of a table, or to the same agent "
        "without any HTTP rule.",
        *filter(None, (f"{about}.", run.warning)),
        "## Goals",
        markdown_table(goal_columns(), goal_rows(results(run.figures))),
    ]
    for place in run.figures.places():
        parts += [f"## {place[0].upper()}{place[1:]}", markdown_table(columns(), rows(run.figures, place))]
    parts += ["## Memory", markdown_table(MEMORY_COLUMNS, memory_rows(memory)), "## Method", _METHOD]
    return "\n\n".join(parts) + "\n"
