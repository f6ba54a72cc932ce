"""Counts of TLS connections: one for each verdict, reason and set of documents, in bounded number."""

from nfq_enforcer.core.access_log import HelloRecord, hello_event
from nfq_enforcer.core.identity import WORLD
from nfq_enforcer.core.tables.conntrack import Opening
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.core.verdict import Direction, DropReason
from nfq_enforcer.observe.http_counts import OTHER
from nfq_enforcer.observe.status import TlsConnectionCount
from nfq_enforcer.observe.tls_counts import TlsCounts

OPENING = Opening(bytes(4), bytes(4), 6, 40_000, 443, -1, -1, False, WORLD, WORLD)


def test_connections_count_by_documents_verdict_and_reason() -> None:
    counts = TlsCounts(at_most=2)
    for name, reason in (("a", None), ("a", None), ("b", DropReason.TLS_REFUSED), ("c", DropReason.TLS_REFUSED)):
        rules = (RuleRef("CiliumNetworkPolicy", "shop", name, Direction.INGRESS, 0),)
        counts.add(hello_event(HelloRecord(1.0, OPENING, Direction.INGRESS, "x", reason, rules)))
    counts.add_other(DropReason.TLS_REFUSED)
    counts.add_other(None)

    assert counts.read() == [
        TlsConnectionCount("shop/a", "FORWARDED", "", 2),
        TlsConnectionCount("shop/b", "DROPPED", "TLS_REFUSED", 1),
        TlsConnectionCount(OTHER, "DROPPED", "TLS_REFUSED", 2),
        TlsConnectionCount(OTHER, "FORWARDED", "", 1),
    ]
