"""Replies of servers with a translated address: the chains that decide them before table security."""

import re

from nfq_enforcer.dataplane.queue.protocol import KNOWN_QUEUES, allocate_queues
from nfq_enforcer.dataplane.rules import packet_mark, translated_replies
from nfq_enforcer.dataplane.rules.filter_table import QueueRule

CHAINS = translated_replies.chains(["ip saddr 192.0.2.1"], uses_marks=True)


def test_each_base_chain_takes_replies_of_translated_connections_only() -> None:
    """Packets by lo are decided in OUTPUT."""
    for name in ("mark_translated", "queue_translated"):
        (rule,) = CHAINS[name].rules
        assert rule.startswith('ct status dnat ct direction reply iifname != "lo" goto ')


def test_they_come_between_table_filter_and_the_translation_of_the_source() -> None:
    priorities = [
        int(re.findall(r"hook input priority (-?\d+);", CHAINS[name].hook)[0])
        for name in ("mark_translated", "queue_translated")
    ]

    assert 0 < priorities[0] < priorities[1] < 100


def test_no_bit_of_ours_that_a_packet_arrives_with_counts() -> None:
    cleared = f"meta mark set meta mark & {~(packet_mark.MASK | packet_mark.WAY) & 0xFFFFFFFF:#x}"

    assert CHAINS["translated"].rules[0] == cleared
    assert CHAINS["decided"].rules[-1] == cleared


def test_what_is_exempt_has_no_class() -> None:
    assert "ip saddr 192.0.2.1 accept" in CHAINS["translated"].rules


def test_known_flows_have_the_queues_of_all_workers_and_errors_those_of_the_first() -> None:
    queues = allocate_queues(100, 2)

    assert translated_replies.queue_rules(queues, bypass=True) == (
        QueueRule("translated_known", queues[0].headers, 2 * KNOWN_QUEUES, True),
        QueueRule("translated_errors", queues[0].openings, 1, True),
    )
