"""Rules of process endpoints: their chains, the marks of their packets, and rules with numbers of cgroups."""

from dataclasses import replace

from nfq_enforcer.cluster.replica import Cgroup
from nfq_enforcer.core.wire import skb
from nfq_enforcer.dataplane.queue.netlink import attributes
from nfq_enforcer.dataplane.queue.requests import FAMILY, split_messages
from nfq_enforcer.dataplane.rules import connmark, filter_table, made_rules, packet_mark, process_rules, transaction
from nfq_enforcer.dataplane.rules.comparison import Fault
from nfq_enforcer.dataplane.rules.filter_table import PLACE, Chain, Content, QueueRule, SocketRule, tag

CGROUPS = (Cgroup(2, 70), Cgroup(1, 5))


def test_without_cgroups_no_packet_meets_the_chains() -> None:
    assert set(process_rules.socket_rules(()).values()) == {()}


def test_each_cgroup_has_a_rule_in_each_direction() -> None:
    rules = process_rules.socket_rules(CGROUPS)

    assert rules["sockets_in"] == (SocketRule("to_process", 1, 5), SocketRule("to_process", 2, 70))
    assert rules["sockets_out"] == (SocketRule("from_process", 1, 5), SocketRule("from_process", 2, 70))
    assert (rules["switch_in"], rules["switch_out"]) == ((SocketRule("processes_in"),), (SocketRule("processes_out"),))


def test_a_chain_follows_those_that_it_goes_to() -> None:
    seen = {"from_endpoint", "to_endpoint", "return"}
    for name, chain in process_rules.chains().items():
        for rule in chain.rules:
            words = rule.split()
            for verb in ("jump", "goto"):
                if verb in words:
                    assert words[words.index(verb) + 1] in seen
        seen.add(name)
    assert {"processes_in", "processes_out", "to_process", "from_process"} <= seen


def test_marks_and_connmarks_leave_those_of_others_alone() -> None:
    assert connmark.OF_PROCESS & (connmark.MASK | connmark.REDIRECTED | connmark.FROM_PROXY | 0xFF) == 0
    ways = {packet_mark.OF_PROCESS, packet_mark.SENT_BY_PROCESS, packet_mark.DECIDED}
    proxy = {packet_mark.ASKING, packet_mark.REDIRECTED, packet_mark.TO_PROXY, packet_mark.FROM_PROXY}
    assert len(ways) == 3
    assert not ways & proxy
    assert all(way & ~packet_mark.WAY == 0 and not way & packet_mark.ASKING for way in ways)


def test_the_worker_learns_the_side_of_the_process_from_the_mark() -> None:
    assert packet_mark.skb_flags(packet_mark.OF_PROCESS | packet_mark.FROM_ENDPOINT | 5) == skb.OF_PROCESS
    assert packet_mark.skb_flags(packet_mark.SENT_BY_PROCESS) == skb.OF_PROCESS | skb.SENT_BY_PROCESS


def test_rules_that_nft_cannot_write_are_compared_by_their_comments() -> None:
    rules = process_rules.socket_rules(CGROUPS)
    chains = {name: Chain("", []) for name in rules}
    wanted = Content({}, chains, {}, socket_rules=rules)
    listed = "table inet nfq_enforcer {\n"
    for name, each in rules.items():
        lines = "".join(f'\t\tsocket cgroupv2 goto x comment "{tag(rule.text)}"\n' for rule in each)
        listed += f"\tchain {name} {{\n{lines}\t}}\n"

    assert list(filter_table.structure_faults(f"{listed}}}\n", wanted)) == []
    fewer = replace(wanted, socket_rules=process_rules.socket_rules(CGROUPS[:1]))
    faults = [Fault(PLACE, f"chain {name} has other rules") for name in ("sockets_in", "sockets_out")]
    assert list(filter_table.structure_faults(f"{listed}}}\n", fewer)) == faults
    assert "flush chain" not in filter_table.render_structure(wanted)


def test_a_transaction_empties_each_chain_first_and_asks_for_one_acknowledgement() -> None:
    rules: dict[str, tuple[QueueRule | SocketRule, ...]] = {
        "a": (SocketRule("x", 2, 70), SocketRule("y")),
        "b": (),
        "c": (QueueRule("c", 100, 2, bypass=True),),
    }
    _, *messages, _ = transaction._batch("inet", list(made_rules._requests(rules)))

    kinds = [kind & 0xFF for message in messages for kind, _ in split_messages(message)]
    assert kinds == [8, 6, 6, 8, 8, 6]  # NFT_MSG_DELRULE, NFT_MSG_NEWRULE
    assert [int.from_bytes(message[6:8], "little") & 4 for message in messages] == [0, 0, 0, 0, 0, 4]
    ((_, body),) = split_messages(messages[1])
    fields = attributes(body[FAMILY.size :])
    assert (70).to_bytes(8, "little") in fields[4]
    assert b"socket\0" in fields[4]
    ((_, body),) = split_messages(messages[2])
    assert b"socket\0" not in attributes(body[FAMILY.size :])[4]
