"""What a member holds: it follows the store, keeps what it understands, and tells once what has changed."""

from collections import deque
from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.labels import LabelFilter, Labels
from nfq_enforcer.policy.documents import Namespace
from nfq_enforcer.policy.loader import parse
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.mirror import Mirror
from nfq_enforcer.store.redis.schema import Key, StoreEntry

WEB, DB, NODE = (Kind.ENDPOINT, "default/web"), (Kind.ENDPOINT, "default/db"), (Kind.NODE, "n1")
NAMESPACE = (Kind.DOCUMENT, "Namespace//default")
NUMBER = Identity(1000)
IDENTITY = (Kind.IDENTITY, str(NUMBER))
BAD = b'{"v":2}'
REASON = "it is of version 2; this program understands 1"


def endpoint(name: str = "web", ip: str = "10.0.0.1", node: str = "n1") -> EndpointRecord:
    labels = Labels.parse({"app": "web"})
    address = (ip_address(ip).packed,)
    return EndpointRecord("default", name, node, NUMBER, address, None, labels, "default", frozenset())


def value(record: EndpointRecord | NodeRecord | Labels | Namespace) -> bytes:
    if isinstance(record, EndpointRecord):
        return schema.encode_endpoint(record).encode()
    if isinstance(record, NodeRecord):
        return schema.encode_node(record).encode()
    if isinstance(record, Labels):
        return schema.encode_identity(record).encode()
    return schema.encode_document(record).encode()


def namespace(labels: str) -> Namespace:
    text = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{{labels}}}}}\n"
    (one,) = parse(text, "x.yaml")
    assert isinstance(one.document, Namespace)
    return one.document


@pytest.fixture
def entries() -> Mirror:
    """Give the entries of node ``n1``, still empty."""
    return Mirror("n1", LabelFilter())


class TestAccepted:
    def test_a_change_is_held_and_told_once(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))

        assert entries.changed is True
        assert entries.take() == [Change(*WEB, endpoint())]
        assert (entries.changed, entries.take()) == (False, [])
        assert entries.entries == {WEB: StoreEntry(5, value(endpoint()))}
        assert entries.take_unsaved() == {WEB: StoreEntry(5, value(endpoint()))}
        assert entries.take_unsaved() == {}

    def test_what_is_not_newer_changes_nothing(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.take()
        for number in (4, 5):
            entries.accept(WEB, number, value(endpoint(ip="10.0.0.9")))
            entries.accept(WEB, number, None)

        assert entries.take() == []
        assert entries.entries[WEB] == StoreEntry(5, value(endpoint()))

    def test_what_is_gone_is_told_if_it_was_there(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.take()
        entries.accept(WEB, 6, None)
        entries.accept(DB, 6, None)

        assert entries.take() == [Change(*WEB, None)]
        assert entries.take_unsaved() == {WEB: None}
        assert entries.own == {}

    def test_what_this_node_knows_better_counts_whatever_its_id(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.assume(WEB, StoreEntry(1, value(endpoint(ip="10.0.0.9"))))
        assert entries.entries[WEB].id == 1
        entries.assume(WEB, None)
        assert entries.entries == {}

    def test_how_far_it_reaches_is_where_the_stream_was_read_to_or_what_was_written_beyond(
        self, entries: Mirror
    ) -> None:
        entries.position = 5
        entries.accept(WEB, 9, None)
        assert entries.reach == 9
        entries.position = 12
        assert entries.reach == 12


class TestNotUnderstood:
    def test_what_was_known_stays_and_the_value_is_named(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.accept(WEB, 6, BAD)

        assert entries.entries[WEB].id == 5
        assert entries.described_refusals(9) == [{"key": "endpoints default/web", "reason": REASON}]

    @pytest.mark.parametrize("mended", [value(endpoint()), None])
    def test_it_is_forgotten_when_it_is_mended_or_gone(self, entries: Mirror, mended: bytes | None) -> None:
        entries.accept(WEB, 6, BAD)
        entries.accept(WEB, 7, mended)

        assert entries.refused == {}

    def test_only_so_many_are_named(self, entries: Mirror) -> None:
        for number in range(5):
            entries.accept((Kind.ENDPOINT, f"default/e{number}"), 6, BAD)
        entries.skip("changes 1-1", "it is nothing of ours")

        assert len(entries.described_refusals(3)) == 3
        assert entries.described_refusals(9)[-1] == {"key": "changes 1-1", "reason": "it is nothing of ours"}

    def test_of_skipped_changes_all_are_counted_and_the_last_ones_named(self, entries: Mirror) -> None:
        for number in range(100):
            entries.skip(f"changes {number}-0", "no")

        assert entries.skips == 100
        assert entries.described_refusals(99)[-1]["key"] == "changes 99-0"
        assert len(entries.described_refusals(99)) < 20


def replace(entries: Mirror, by: Mapping[Key, StoreEntry], bad: Mapping[Key, str]) -> None:
    """Replace all at once."""
    deque(entries.replacing(by, bad), 0)


class TestReplaced:
    def test_only_what_differs_is_told(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.accept(DB, 5, value(endpoint("db", "10.0.0.2")))
        entries.take()
        node = StoreEntry(7, value(NodeRecord((), "1")))
        replace(entries, {WEB: StoreEntry(5, value(endpoint())), NODE: node}, {})

        assert entries.take() == [Change(*DB, None), Change(*NODE, NodeRecord((), "1"))]
        assert (entries.resyncs, entries.take_unsaved()) == (1, None)

    def test_an_older_entry_counts_too_for_the_store_may_have_lost_the_newer(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        replace(entries, {WEB: StoreEntry(3, value(endpoint(ip="10.0.0.9")))}, {})

        assert entries.entries[WEB] == StoreEntry(3, value(endpoint(ip="10.0.0.9")))

    def test_what_is_not_understood_leaves_what_was_known(self, entries: Mirror) -> None:
        for key, name in ((WEB, "web"), (DB, "db")):
            entries.accept(key, 5, value(endpoint(name)))
        entries.take()
        replace(entries, {WEB: StoreEntry(6, BAD)}, {DB: "no entry"})

        assert entries.take() == []
        assert entries.entries.keys() == {WEB, DB}
        assert entries.refused == {DB: "no entry", WEB: REASON}

    def test_what_was_not_understood_and_is_gone_is_gone(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.accept(WEB, 6, BAD)
        replace(entries, {}, {})

        assert (entries.entries, entries.refused) == ({}, {})


class TestRecalled:
    def test_what_was_saved_is_held_and_told_and_need_not_be_saved_again(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.position, entries.serial, entries.revision, entries.forks = 5, 4, 3, frozenset({"b@2-0", "a@1-0"})
        again = Mirror("n1", LabelFilter())
        deque(again.recalling(entries.entries, entries.marks), 0)

        assert again.entries == entries.entries
        assert (again.position, again.serial, again.revision, again.forks) == (5, 4, 3, entries.forks)
        assert again.take() == [Change(*WEB, endpoint())]
        assert again.take_unsaved() == {}

    def test_nothing_was_ever_saved(self, entries: Mirror) -> None:
        deque(entries.recalling({}, {}), 0)

        assert (entries.position, entries.serial, entries.revision, entries.forks) == (0, 0, 0, frozenset())


class TestFollows:
    def test_this_node_s_endpoints_are_told_apart(self, entries: Mirror) -> None:
        entries.accept(IDENTITY, 4, value(Labels.parse({"app": "web"})))
        entries.accept(WEB, 5, value(endpoint()))
        entries.accept(DB, 5, value(endpoint("db", "10.0.0.2", node="n2")))
        assert entries.own == {"default/web": endpoint()}
        assert [entries.is_own(key) for key in (WEB, DB, IDENTITY, NODE)] == [True, False, True, False]

        entries.accept(WEB, 6, value(endpoint(node="n2")))
        assert entries.own == {}

    def test_an_endpoint_has_the_number_of_its_labels(self, entries: Mirror) -> None:
        labels = entries.placed(endpoint()).labels
        assert entries.placed(endpoint()).preferred == derive([labels])[labels]
        entries.accept(IDENTITY, 5, value(labels))
        assert entries.placed(endpoint()).preferred == NUMBER
        assert not entries.is_mislabelled(endpoint())

        entries.accept(NAMESPACE, 6, value(namespace("team: red")))
        assert "team=red" in str(entries.placed(endpoint()).labels)
        assert entries.is_mislabelled(endpoint())
        assert entries.placed(endpoint(), {}).labels == labels

        entries.accept(NAMESPACE, 7, None)
        assert not entries.is_mislabelled(endpoint())

    def test_labels_of_this_node_s_endpoints_want_the_number_that_they_had(self, entries: Mirror) -> None:
        labels = entries.placed(endpoint()).labels
        entries.accept(IDENTITY, 5, value(labels))
        entries.accept(WEB, 5, value(endpoint()))
        entries.accept(IDENTITY, 6, None)

        assert entries.placed(endpoint()).preferred == NUMBER

    def test_a_number_that_means_other_labels_is_no_longer_that_of_the_first(self, entries: Mirror) -> None:
        one, other = Labels.parse({"app": "one"}), Labels.parse({"app": "other"})
        entries.accept(IDENTITY, 5, value(one))
        entries.accept(IDENTITY, 6, value(other))

        assert (entries.labels, entries.numbers) == ({NUMBER: other}, {other: NUMBER})

    def test_labels_that_got_another_number_keep_it_when_the_first_is_collected(self, entries: Mirror) -> None:
        labels = Labels.parse({"app": "one"})
        entries.accept(IDENTITY, 5, value(labels))
        entries.accept((Kind.IDENTITY, "2000"), 6, value(labels))
        entries.accept(IDENTITY, 7, None)

        assert entries.numbers == {labels: Identity(2000)}

    def test_forks_are_known_by_the_entry_that_told_of_them(self, entries: Mirror) -> None:
        entries.forks = frozenset({f"{'a' * 40}@7-1"})

        assert entries.knows(7 << 32 | 1)
        assert not entries.knows(7 << 32 | 11)
        assert not entries.knows(1)

    def test_entries_are_counted_by_kind(self, entries: Mirror) -> None:
        entries.accept(WEB, 5, value(endpoint()))
        entries.accept(NODE, 5, value(NodeRecord((), "1")))

        assert entries.counts() == {Kind.NODE: 1, Kind.DOCUMENT: 0, Kind.IDENTITY: 0, Kind.ENDPOINT: 1}


VALUES = [value(endpoint()), value(endpoint(ip="10.0.0.9")), value(endpoint(node="n2")), BAD, b"x", None]
CHANGES = st.lists(st.tuples(st.sampled_from([WEB, NODE]), st.integers(1, 9), st.sampled_from(VALUES)), max_size=12)


@given(CHANGES, CHANGES)
def test_told_changes_always_come_to_what_is_held(
    before: list[tuple[Key, int, bytes | None]], after: list[tuple[Key, int, bytes | None]]
) -> None:
    entries = Mirror("n1", LabelFilter())
    for change in before:
        entries.accept(*change)
    told = {(change.kind, change.name): change.record for change in entries.take()}
    replace(entries, {key: StoreEntry(number, data) for key, number, data in after if data is not None}, {})
    told |= {(change.kind, change.name): change.record for change in entries.take()}

    held = {key: schema.decode(*key, entry.value) for key, entry in entries.entries.items()}
    assert {key: record for key, record in told.items() if record is not None} == held
    assert entries.own == {key[1]: one for key, one in held.items() if getattr(one, "node", None) == "n1"}
