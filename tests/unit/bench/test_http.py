"""Goals and tables of the cost of HTTP rules, from figures."""

from tests.bench import http
from tests.bench.figures import CONNECTIONS, Figures
from tests.bench.http import CPU_REQUEST, REQUESTS, RULES
from tests.bench.http_nodes import OTHERS, SAME_NODE
from tests.bench.http_rules import NO_RULES, name
from tests.support.labs import PER_FLOW, PER_PACKET


def figures() -> Figures:
    """Return figures of some contenders: 10 rules are too slow, and agents in the mode per-flow are missing."""
    made = Figures()
    for contender, place, measure, figure in (
        (NO_RULES, RULES, REQUESTS, 1000.0),
        (name(1), RULES, REQUESTS, 960.0),
        (name(10), RULES, REQUESTS, 800.0),
        (NO_RULES, RULES, CPU_REQUEST, 100.0),
        (name(1), RULES, CPU_REQUEST, 104.0),
        (http.PLAIN, SAME_NODE, CONNECTIONS, 100.0),
        (http.agent(PER_PACKET), SAME_NODE, CONNECTIONS, 80.0),
        (http.agent(PER_PACKET), OTHERS, CONNECTIONS, 97.0),
        (http.without_rules(PER_PACKET), OTHERS, CONNECTIONS, 100.0),
    ):
        made.add(contender, place, measure, figure)
    return made


def test_goals_compare_each_contender_with_its_reference() -> None:
    reached = {(result.figure, result.place): result.reached for result in http.results(figures())}

    assert reached["requests/s, 1 rule to none", RULES] is True
    assert reached["requests/s, 10 rules to none", RULES] is False
    assert reached["requests/s, 100 rules to none", RULES] is None
    assert reached["CPU a request, µs, 1 rule to none", RULES] is True
    of_agent = "new connections/s, agent, {}, to no agent, no rules"
    assert reached[of_agent.format(PER_PACKET), SAME_NODE] is True
    assert reached[of_agent.format(PER_FLOW), SAME_NODE] is None
    assert reached["new connections/s, agent, per-packet, to no HTTP rules at all", OTHERS] is False


def test_a_table_has_a_row_for_each_contender_of_its_place() -> None:
    assert [row[0] for row in http.rows(figures(), OTHERS)] == [
        http.agent(PER_PACKET),
        http.without_rules(PER_PACKET),
    ]
    assert "97 (0.97)" in http.rows(figures(), OTHERS)[0][3]
