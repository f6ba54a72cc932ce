"""Table of known identities: a set whose growth stalls no packet."""

from nfq_enforcer.core.identity import CLUSTER_MAX, CLUSTER_MIN, Identity
from nfq_enforcer.core.tables.identities import IdentityTable, apply_changes

FIRST, OTHER, LAST = Identity(CLUSTER_MIN), Identity(CLUSTER_MIN + 256), Identity(CLUSTER_MAX)


def test_it_is_the_set_of_the_identities_that_were_added() -> None:
    table = IdentityTable([FIRST, OTHER])

    apply_changes(table, [(LAST, True), (OTHER, False), (OTHER, False), (FIRST, True)])

    assert set(table) == {FIRST, LAST}
    assert (len(table), FIRST in table, OTHER in table, LAST in table) == (2, True, False, True)


def test_changes_apply_in_order() -> None:
    table = IdentityTable()

    apply_changes(table, [(FIRST, True), (FIRST, False), (OTHER, False), (OTHER, True)])

    assert set(table) == {OTHER}
