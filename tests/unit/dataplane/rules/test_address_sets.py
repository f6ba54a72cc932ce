"""ipsets of the endpoints' addresses, as text."""

from nfq_enforcer.dataplane.rules import address_sets
from nfq_enforcer.dataplane.rules.filter_table import Members


def ends(*addresses: str) -> Members:
    v4, v6 = (frozenset(one for one in addresses if (":" in one) == wanted) for wanted in (False, True))
    return {"ends4": v4, "ends6": v6}


def test_a_change_has_the_difference_of_each_family() -> None:
    assert address_sets.render_change(
        ends("10.0.0.1", "10.0.0.2", "fd00::1"), ends("10.0.0.2", "10.0.0.3", "fd00::1")
    ) == (
        "create nfqe-local4 hash:ip family inet maxelem 1048576\ndel nfqe-local4 10.0.0.1\nadd nfqe-local4 10.0.0.3\n"
    )
    assert address_sets.render_change(ends(), ends("fd00::1")) == (
        "create nfqe-local6 hash:ip family inet6 maxelem 1048576\nadd nfqe-local6 fd00::1\n"
    )


def test_equal_ends_change_nothing() -> None:
    assert address_sets.render_change(ends("10.0.0.1"), ends("10.0.0.1")) == ""


def test_the_sizes_are_those_of_our_sets() -> None:
    listed = """Name: nfqe-local4
Type: hash:ip
Number of entries: 12

Name: administrators
Type: hash:ip
Number of entries: 5

Name: nfqe-local6
Type: hash:ip
Number of entries: 0
"""
    assert address_sets.sizes(listed) == {"nfqe-local4": 12, "nfqe-local6": 0}
    assert address_sets.sizes("") == {}
