"""Cost of DNS rules: of answers that pass the learner, compared with UDP that the same agent judges, and in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.topology import WORLD
from tests.bench.agents import running
from tests.bench.dns_load import ZONE, Client, Names, serving
from tests.bench.figures import Figures, Measure
from tests.bench.goals import Result
from tests.bench.interleaved import Run
from tests.bench.processes import tree_memory
from tests.bench.report import compared_rows, goal_columns, goal_rows, markdown_table
from tests.support.labs import DRIVERS, PER_PACKET, policy

ANSWERS = Measure("answers_per_second", "answers/s", 0, True)
CPU_ANSWER = Measure("cpu_us_per_answer", "CPU an answer, µs", 1, False)
MEASURES = (ANSWERS, CPU_ANSWER)
PLACE = "answers with known addresses"
LEARNED_COLUMNS = ("", "answers/s", "memory before, MiB", "and after, MiB")

_NODE, _CLIENTS = "n1", ("front1", "back1")
_KNOWN = Names(0, 1_000, 1)
_NEW = (Names(1_000, 2_000, 25), Names(3_000, 2_000, 25))  # of each client: as many as an endpoint may have
_SECONDS = 1.0
_BOUND = 0.5


class Turn(NamedTuple):
    """Turn: a contender."""

    contender: str
    client: Client

    @property
    def place(self) -> str:
        """Return the only place."""
        return PLACE

    def run(self, figures: Figures, seconds: float) -> None:
        """Measure the turn."""
        load = self.client.repeat(seconds)
        figures.add(self.contender, PLACE, ANSWERS, load.rate)
        figures.add(self.contender, PLACE, CPU_ANSWER, load.cpu_us)


class Learned(NamedTuple):
    """Learned addresses: the rate of answers with addresses that are all new, and the memory of agent and worker."""

    driver: str
    rate: float
    before: float  # MiB
    after: float


def judged(driver: str) -> str:
    """Return the name of an agent that judges DNS as any UDP."""
    return f"agent, {driver}, port 53 without DNS rules"


def learning(driver: str) -> str:
    """Return the name of an agent that learns from DNS."""
    return f"agent, {driver}, DNS rules and toFQDNs"


def measure(repetitions: int, seconds: float | None, console: Console) -> Run:
    """Carry out the run; ``seconds`` of each contender's turn."""
    run = Run(Figures(), [])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        turns = []
        for driver in DRIVERS:
            for contender, rules in ((judged(driver), {}), (learning(driver), _RULES)):
                console.print(f"  set up: {contender}")
                lab = stack.enter_context(_serving(driver, rules, _KNOWN))
                turns.append(Turn(contender, _client(lab, _CLIENTS[0], _KNOWN, folder)))
        run.measure(turns, repetitions, seconds or _SECONDS, console)
    return run


def measure_learning() -> list[Learned]:
    """Return the figures of new addresses, with each driver."""
    return [_learn(driver) for driver in DRIVERS]


def _learn(driver: str) -> Learned:
    with tempfile.TemporaryDirectory() as folder, _serving(driver, _RULES, *_NEW) as lab:
        node = lab.nodes[_NODE]
        before = tree_memory(node.pid)
        loads = [_client(lab, name, names, Path(folder)).once() for name, names in zip(_CLIENTS, _NEW, strict=True)]
        return Learned(driver, sum(load.rate for load in loads) / len(loads), before, tree_memory(node.pid))


_RULES: dict[str, Any] = {"rules": {"dns": [{"matchPattern": "*"}]}}


@contextmanager
def _serving(driver: str, rules: dict[str, Any], *names: Names) -> Iterator[Lab]:
    """Run an agent with a driver and rules for DNS, and a server for these names."""
    dns = {"toEntities": ["world"], "toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}], **rules}]}
    by_name = {"toFQDNs": [{"matchPattern": f"*.{ZONE}"}]}
    egress: list[dict[str, Any]] = [dns, by_name] if rules else [dns]
    documents = "".join(policy(role, role, egress=egress) for role in ("frontend", "backend"))
    with (
        running(documents, _NODE, driver=driver, datapath=PER_PACKET) as lab,
        serving(lab.topology.namespace(WORLD), names),
    ):
        yield lab


def _client(lab: Lab, name: str, names: Names, folder: Path) -> Client:
    queries = folder / f"{names.first}"
    queries.write_text(names.queries())
    return Client(lab.topology.namespace(name), str(lab.address(WORLD)), queries, lab.nodes[_NODE].pid)


def columns() -> list[str]:
    """Return the headings of the table of answers."""
    return ["", *(measure.title for measure in MEASURES)]


def rows(figures: Figures, place: str) -> list[list[str]]:
    """Return the table of a place."""
    references = {name(driver): judged(driver) for driver in DRIVERS for name in (judged, learning)}
    return compared_rows(figures, place, MEASURES, lambda contender, _measure: references[contender])


def results(figures: Figures) -> list[Result]:
    """Return the results of all goals."""
    ratios = {driver: figures.ratio(PLACE, ANSWERS, learning(driver), judged(driver)) for driver in DRIVERS}
    return [
        Result(f"{ANSWERS.title}, {driver}, DNS rules to none", PLACE, ratio, _BOUND, at_most=False)
        for driver, ratio in ratios.items()
    ]


def learned_rows(learned: list[Learned]) -> list[list[str]]:
    """Return the table of new addresses."""
    return [[one.driver, f"{one.rate:,.0f}", f"{one.before:.0f}", f"{one.after:.0f}"] for one in learned]


_METHOD = f"""\
dnsperf has 64 queries outstanding from 8 ports; the server has its answers ready. CPU is that of agent and worker
(`/proc/PID/stat`), for query and answer, which are both queued. Known: {_KNOWN.size:,} names with an address each. New:
each of {len(_NEW)} endpoints asks {_NEW[0].size:,} names once, with {_NEW[0].addresses} addresses each, in all
{sum(names.size * names.addresses for names in _NEW):,}. Memory is PSS."""


def markdown(run: Run, learned: list[Learned], about: str) -> str:
    """Render the run as a Markdown document, which is generated only and not edited by hand."""
    parts = [
        "# Cost of DNS rules",
        "Written by `make bench`; medians, in brackets the ratio to the same agent without DNS rules.",
        *filter(None, (f"{about}.", run.warning)),
        *("## Goals", markdown_table(goal_columns(), goal_rows(results(run.figures)))),
        *("## Answers with known addresses", markdown_table(columns(), rows(run.figures, PLACE))),
        *("## Answers with new addresses", markdown_table(LEARNED_COLUMNS, learned_rows(learned))),
        *("## Method", _METHOD),
    ]
    return "\n\n".join(parts) + "\n"
