"""Mirror: holds the entries of the store that it can decode, and delivers each change once."""

from collections import deque
from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_enforcer.cluster.records import Change, EndpointRecord, Kind, NodeRecord
from nfq_enforcer.core.identity import Identity, derive
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.policy.documents import Namespace
from nfq_enforcer.policy.label_filter import LabelFilter
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
def mirror() -> Mirror:
    """Give an empty mirror of node ``n1``."""
    return Mirror("n1", LabelFilter())


class TestAccepted:
    def test_a_change_is_held_and_told_once(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))

        assert mirror.has_changes is True
        assert mirror.take_changes() == [Change(*WEB, endpoint())]
        assert (mirror.has_changes, mirror.take_changes()) == (False, [])
        assert mirror.entries == {WEB: StoreEntry(5, value(endpoint()))}
        assert mirror.take_unsaved() == {WEB: StoreEntry(5, value(endpoint()))}
        assert mirror.take_unsaved() == {}

    def test_what_is_not_newer_changes_nothing(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.take_changes()
        for number in (4, 5):
            mirror.accept(WEB, number, value(endpoint(ip="10.0.0.9")))
            mirror.accept(WEB, number, None)

        assert mirror.take_changes() == []
        assert mirror.entries[WEB] == StoreEntry(5, value(endpoint()))

    def test_what_is_gone_is_told_if_it_was_there(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.take_changes()
        mirror.accept(WEB, 6, None)
        mirror.accept(DB, 6, None)

        assert mirror.take_changes() == [Change(*WEB, None)]
        assert mirror.take_unsaved() == {WEB: None}
        assert mirror.own == {}

    def test_what_this_node_knows_better_counts_whatever_its_id(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.override(WEB, StoreEntry(1, value(endpoint(ip="10.0.0.9"))))
        assert mirror.entries[WEB].id == 1
        mirror.override(WEB, None)
        assert mirror.entries == {}

    def test_how_far_it_reaches_is_where_the_stream_was_read_to_or_what_was_written_beyond(
        self, mirror: Mirror
    ) -> None:
        mirror.position = 5
        mirror.accept(WEB, 9, None)
        assert mirror.last_id == 9
        mirror.position = 12
        assert mirror.last_id == 12


class TestNotUnderstood:
    def test_what_was_known_stays_and_the_value_is_named(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.accept(WEB, 6, BAD)

        assert mirror.entries[WEB].id == 5
        assert mirror.described_refusals(9) == [{"key": "endpoints default/web", "reason": REASON}]

    @pytest.mark.parametrize("mended", [value(endpoint()), None])
    def test_it_is_forgotten_when_it_is_mended_or_gone(self, mirror: Mirror, mended: bytes | None) -> None:
        mirror.accept(WEB, 6, BAD)
        mirror.accept(WEB, 7, mended)

        assert mirror.refused == {}

    def test_only_so_many_are_named(self, mirror: Mirror) -> None:
        for number in range(5):
            mirror.accept((Kind.ENDPOINT, f"default/e{number}"), 6, BAD)
        mirror.note_foreign("changes 1-1", "it is nothing of ours")

        assert len(mirror.described_refusals(3)) == 3
        assert mirror.described_refusals(9)[-1] == {"key": "changes 1-1", "reason": "it is nothing of ours"}

    def test_of_skipped_changes_all_are_counted_and_the_last_ones_named(self, mirror: Mirror) -> None:
        for number in range(100):
            mirror.note_foreign(f"changes {number}-0", "no")

        assert mirror.foreign_count == 100
        assert mirror.described_refusals(99)[-1]["key"] == "changes 99-0"
        assert len(mirror.described_refusals(99)) < 20


def replace(mirror: Mirror, by: Mapping[Key, StoreEntry], bad: Mapping[Key, str]) -> None:
    """Replace all entries without a pause."""
    deque(mirror.replace_all(by, bad), 0)


class TestReplaced:
    def test_only_what_differs_is_told(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.accept(DB, 5, value(endpoint("db", "10.0.0.2")))
        mirror.take_changes()
        node = StoreEntry(7, value(NodeRecord((), "1")))
        replace(mirror, {WEB: StoreEntry(5, value(endpoint())), NODE: node}, {})

        assert mirror.take_changes() == [Change(*DB, None), Change(*NODE, NodeRecord((), "1"))]
        assert (mirror.resyncs, mirror.take_unsaved()) == (1, None)

    def test_an_older_entry_counts_too_for_the_store_may_have_lost_the_newer(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        replace(mirror, {WEB: StoreEntry(3, value(endpoint(ip="10.0.0.9")))}, {})

        assert mirror.entries[WEB] == StoreEntry(3, value(endpoint(ip="10.0.0.9")))

    def test_what_is_not_understood_leaves_what_was_known(self, mirror: Mirror) -> None:
        for key, name in ((WEB, "web"), (DB, "db")):
            mirror.accept(key, 5, value(endpoint(name)))
        mirror.take_changes()
        replace(mirror, {WEB: StoreEntry(6, BAD)}, {DB: "no entry"})

        assert mirror.take_changes() == []
        assert mirror.entries.keys() == {WEB, DB}
        assert mirror.refused == {DB: "no entry", WEB: REASON}

    def test_what_was_not_understood_and_is_gone_is_gone(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.accept(WEB, 6, BAD)
        replace(mirror, {}, {})

        assert (mirror.entries, mirror.refused) == ({}, {})


class TestRecalled:
    def test_what_was_saved_is_held_and_told_and_need_not_be_saved_again(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.position, mirror.serial, mirror.revision, mirror.forks = 5, 4, 3, frozenset({"b@2-0", "a@1-0"})
        again = Mirror("n1", LabelFilter())
        deque(again.load_saved(mirror.entries, mirror.marks), 0)

        assert again.entries == mirror.entries
        assert (again.position, again.serial, again.revision, again.forks) == (5, 4, 3, mirror.forks)
        assert again.take_changes() == [Change(*WEB, endpoint())]
        assert again.take_unsaved() == {}

    def test_nothing_was_ever_saved(self, mirror: Mirror) -> None:
        deque(mirror.load_saved({}, {}), 0)

        assert (mirror.position, mirror.serial, mirror.revision, mirror.forks) == (0, 0, 0, frozenset())


class TestFollows:
    def test_this_node_s_endpoints_are_told_apart(self, mirror: Mirror) -> None:
        mirror.accept(IDENTITY, 4, value(Labels.parse({"app": "web"})))
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.accept(DB, 5, value(endpoint("db", "10.0.0.2", node="n2")))
        assert mirror.own == {"default/web": endpoint()}
        assert [mirror.is_own(key) for key in (WEB, DB, IDENTITY, NODE)] == [True, False, True, False]

        mirror.accept(WEB, 6, value(endpoint(node="n2")))
        assert mirror.own == {}

    def test_an_endpoint_has_the_number_of_its_labels(self, mirror: Mirror) -> None:
        labels = mirror.endpoint_request(endpoint()).labels
        assert mirror.endpoint_request(endpoint()).preferred == derive([labels])[labels]
        mirror.accept(IDENTITY, 5, value(labels))
        assert mirror.endpoint_request(endpoint()).preferred == NUMBER
        assert not mirror.is_mislabelled(endpoint())

        mirror.accept(NAMESPACE, 6, value(namespace("team: red")))
        assert "team=red" in str(mirror.endpoint_request(endpoint()).labels)
        assert mirror.is_mislabelled(endpoint())
        assert mirror.endpoint_request(endpoint(), {}).labels == labels

        mirror.accept(NAMESPACE, 7, None)
        assert not mirror.is_mislabelled(endpoint())

    def test_an_identity_without_the_label_of_the_cluster_is_of_an_older_version(self, mirror: Mirror) -> None:
        labels = mirror.endpoint_request(endpoint()).labels
        older = Labels(label for label in labels if label.key != "io.cilium.k8s.policy.cluster")
        assert len(older) == len(labels) - 1

        mirror.accept(IDENTITY, 5, value(older))
        mirror.accept(WEB, 5, value(endpoint()))
        assert mirror.is_mislabelled(endpoint())  # so that this node writes its endpoint again

        other = Mirror("n1", LabelFilter(), "east")
        assert "k8s:io.cilium.k8s.policy.cluster=east" in str(other.endpoint_request(endpoint()).labels)

    def test_labels_of_this_node_s_endpoints_want_the_number_that_they_had(self, mirror: Mirror) -> None:
        labels = mirror.endpoint_request(endpoint()).labels
        mirror.accept(IDENTITY, 5, value(labels))
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.accept(IDENTITY, 6, None)

        assert mirror.endpoint_request(endpoint()).preferred == NUMBER

    def test_a_number_that_means_other_labels_is_no_longer_that_of_the_first(self, mirror: Mirror) -> None:
        one, other = Labels.parse({"app": "one"}), Labels.parse({"app": "other"})
        mirror.accept(IDENTITY, 5, value(one))
        mirror.accept(IDENTITY, 6, value(other))

        assert (mirror.labels, mirror.numbers) == ({NUMBER: other}, {other: NUMBER})

    def test_labels_that_got_another_number_keep_it_when_the_first_is_collected(self, mirror: Mirror) -> None:
        labels = Labels.parse({"app": "one"})
        mirror.accept(IDENTITY, 5, value(labels))
        mirror.accept((Kind.IDENTITY, "2000"), 6, value(labels))
        mirror.accept(IDENTITY, 7, None)

        assert mirror.numbers == {labels: Identity(2000)}

    def test_forks_are_known_by_the_entry_that_told_of_them(self, mirror: Mirror) -> None:
        mirror.forks = frozenset({f"{'a' * 40}@7-1"})

        assert mirror.has_seen_fork(7 << 32 | 1)
        assert not mirror.has_seen_fork(7 << 32 | 11)
        assert not mirror.has_seen_fork(1)

    def test_entries_are_counted_by_kind(self, mirror: Mirror) -> None:
        mirror.accept(WEB, 5, value(endpoint()))
        mirror.accept(NODE, 5, value(NodeRecord((), "1")))

        assert mirror.counts() == {Kind.NODE: 1, Kind.DOCUMENT: 0, Kind.IDENTITY: 0, Kind.ENDPOINT: 1}


VALUES = [value(endpoint()), value(endpoint(ip="10.0.0.9")), value(endpoint(node="n2")), BAD, b"x", None]
CHANGES = st.lists(st.tuples(st.sampled_from([WEB, NODE]), st.integers(1, 9), st.sampled_from(VALUES)), max_size=12)


@given(CHANGES, CHANGES)
def test_told_changes_always_come_to_what_is_held(
    before: list[tuple[Key, int, bytes | None]], after: list[tuple[Key, int, bytes | None]]
) -> None:
    mirror = Mirror("n1", LabelFilter())
    for change in before:
        mirror.accept(*change)
    delivered = {(change.kind, change.name): change.record for change in mirror.take_changes()}
    replace(mirror, {key: StoreEntry(number, data) for key, number, data in after if data is not None}, {})
    delivered |= {(change.kind, change.name): change.record for change in mirror.take_changes()}

    held = {key: schema.decode(*key, entry.value) for key, entry in mirror.entries.items()}
    assert {key: record for key, record in delivered.items() if record is not None} == held
    assert mirror.own == {key[1]: one for key, one in held.items() if getattr(one, "node", None) == "n1"}
