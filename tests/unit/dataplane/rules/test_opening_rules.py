"""Rules of openings, as text: known flows, budgets of sources, excess."""

import re

import pytest

from nfq_enforcer.dataplane.queue.protocol import allocate_queues
from nfq_enforcer.dataplane.rules import ruleset
from nfq_enforcer.dataplane.rules.opening_rules import MAX_RATE, Budgets
from nfq_enforcer.dataplane.rules.ruleset import IPV4, IPV6, AddressFamily, Ruleset

KNOWN = [
    "-m conntrack --ctstate ESTABLISHED -g NFQE-KNOWN",
    "! -p tcp -m conntrack --ctstate NEW --ctstatus CONFIRMED -g NFQE-KNOWN",
]
LIMIT = "-m hashlimit --hashlimit-upto"
SIZE = "--hashlimit-htable-max 65536 --hashlimit-htable-expire 2000"


def rules_of(chain: str, budgets: Budgets | None, family: AddressFamily = IPV4, workers: int = 1) -> list[str]:
    rules = Ruleset(allocate_queues(100, workers), fail_open=False, cluster_mtus={}, budgets=budgets)
    start = f"-A {chain} "
    lines = ruleset.render(rules, family, {}).splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_openings_have_budgets_by_endpoint_source_and_prefix() -> None:
    assert rules_of("NFQE-QUEUE", Budgets(1, 2, 3, 4, 5)) == [
        *KNOWN,
        f"-m mark --mark 0x10000000/0xf0000000 "
        f"{LIMIT} 1/sec --hashlimit-burst 1 --hashlimit-mode srcip --hashlimit-name nfqe-endpoint-1 {SIZE} "
        f"{LIMIT} 4/sec --hashlimit-burst 4 --hashlimit-name nfqe-all-endpoints-4 -g NFQE-OPENINGS",
        f"-m mark --mark 0xa0000000/0xf0000000 "
        f"{LIMIT} 2/sec --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name nfqe-source-2 {SIZE} "
        f"{LIMIT} 3/sec --hashlimit-burst 3 --hashlimit-mode srcip --hashlimit-name nfqe-prefix-3 {SIZE} "
        "--hashlimit-srcmask 24 "
        f"{LIMIT} 4/sec --hashlimit-burst 4 --hashlimit-name nfqe-all-sources-4 -g NFQE-OPENINGS",
        "-g NFQE-EXCESS",
    ]


def test_excess_openings_are_dropped_beyond_a_limit() -> None:
    assert rules_of("NFQE-EXCESS", Budgets(1, 2, 3, 4, 5)) == [
        "-m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-name nfqe-excess-5 -j DROP",
        "-j NFQUEUE --queue-num 149",
    ]


def test_a_remote_source_of_ipv6_is_the_prefix_of_a_link() -> None:
    masks = [re.findall(r"srcmask (\d+)", rule) for rule in rules_of("NFQE-QUEUE", Budgets(), IPV6)]

    assert masks == [[], [], [], ["64", "48"], []]


def test_without_budgets_all_openings_share_a_queue() -> None:
    assert rules_of("NFQE-QUEUE", None) == [*KNOWN, "-g NFQE-OPENINGS"]
    assert rules_of("NFQE-EXCESS", None) == ["-j NFQUEUE --queue-num 149"]


@pytest.mark.parametrize(
    ("workers", "budgets"),
    [
        (1, Budgets()),
        (3, Budgets(guaranteed=15_000, excess=60_000)),
        (256, Budgets(guaranteed=MAX_RATE, excess=MAX_RATE)),
    ],
)
def test_workers_share_the_openings_of_all_sources(workers: int, budgets: Budgets) -> None:
    assert rules_of("NFQE-QUEUE", Budgets(), workers=workers) == rules_of("NFQE-QUEUE", budgets)
